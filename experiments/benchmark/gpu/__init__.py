"""What only an accelerator can tell, in parts of a few minutes each, for `experiments.gpu_check`.

`setup` is what all parts share, `loop` a method in the trainer's loop, `turns` such loops side by
side. A part is a function of the setup that yields its rows one by one: `steps`, `epochs`,
`decisions`, `determinism`, `precision`, `compilation`, `wide`, `peers` (with `torch_resnet`) and
`real`; `child` is the process of its own that two of them start. `kept` writes the rows as they
come and adds up several calls, `promised` holds the bars, and `report` shows it. Begin with `loop`.
"""
