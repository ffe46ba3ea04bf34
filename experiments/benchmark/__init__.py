"""What a step of a method costs, beside plain SGD, beside peers, and beside what was promised.

Three commands: `python -m experiments.benchmark` for steps, `.growth` for models that grow and
`.pipeline` for images from disk. `problems` and `contestants` are what is measured, `measure` how,
`collectives` counts what a program sends, `bars` holds what is promised, `torch_peers` is PyTorch's
side; `table` and `report` show it. Of the pipeline `photographs` are what is read, and `throughput`
measures. `gpu` holds the parts of the command `gpu_check`. The room may import cli and all below.
Begin with `measure`.
"""
