"""Sets: from the disk to the batch that a step is given.

`loading` reads the set of a recipe: into memory by `reading` and `sets`, which holds out, makes
noisy and makes long-tailed, or as a stream of differing images by `streams` and `pipeline`. `feeds`
hands both to a trainer, and `augment` is what its batches go through; `normalization` says which
mean and deviation images get. A new set of TFDS needs no code; one made here stands like `digits`.
It may import recipes and system. Begin with `loading`.
"""
