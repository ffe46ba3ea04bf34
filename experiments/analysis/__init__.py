"""Pictures and measures of sharpness and robustness, of any loss over a set or of a run.

`trained` reads a run, `objective` is its loss, `hessian`, `sharpness`, `landscape`, `gradients` and
`replay` measure it, `parts` puts the measures together and `kept` keeps them from one call to the
next; `attacks` changes images, and `attacked` is a run that sees such. `table` shows the numbers,
and `pictures`: they stand in `sharpness_pictures` and `training_pictures`, drawn with `figures`. It
may import cli and all below. Begin with `parts`.
"""
