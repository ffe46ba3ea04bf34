"""The ground floor: what the process runs on, and how it speaks to its user.

`errors` has what a command tells in one line, `words` what a user types and is told, `output` the
streams that it is told on, `interrupt` signals, `memory` how much there is, `mesh` the devices,
`compiler` what XLA is told, and `processes` several that train along. It imports no other room.
Begin with `errors`.
"""
