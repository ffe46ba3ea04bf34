"""Pictures and measures of sharpness, of any loss over a set or of a run.

`trained` reads a run, `objective` is its loss, `hessian`, `sharpness`, `landscape`, `gradients` and
`replay` measure it, `attacks` changes its images, `parts` puts the measures together and `kept`
keeps them from one call to the next; `pictures` and `table` show them. It may import cli and all
below. Begin with `parts`.
"""
