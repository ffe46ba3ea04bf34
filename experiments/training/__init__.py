"""Training: from a recipe and its data to the end of a run.

`optimizers` puts a method before its base optimizer, `objectives` (and `glmc`) say what a step
minimizes, `step` is the step as pure functions, the method's two gradients among them, and `state`
what it changes. `trainer` compiles it, or hands it to `pieces` where the host decides; `fit` goes
through the epochs; `runs` are the folders of seeds, `group` trains them, `checkpoints` saves their
state and `summary` what is left. It may import models, data, results, recipes and system. Begin
with `step`.
"""
