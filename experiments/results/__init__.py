"""Folders of results: what is written, by whom, and what is read again later.

`folders` owns them, `files` writes a file whole or not at all, `lines` keeps what a command has
finished, so that it goes on, `markdown` is text for tables, `numerics` and `provenance` say
under which settings, devices and code a result came about, `watch` shows a run while it trains;
`collected` finds runs again, and `plots`, `sweep_plots` and `paper_tables` are their pictures and
tables. It may import recipes and system. Begin with `folders`.
"""
