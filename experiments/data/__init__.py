"""Sets: from the disk to the batch that a step is given.

`loading` reads the set of a recipe: into memory by `reading` and `sets`, which holds out, makes
noisy and makes long-tailed, or as a stream of differing images by `streams` and `pipeline`, whose
workers crop them; `disk` finds what is prepared, registers `digits`, which is made here, and
prepares it. `feeds` hands a set to a trainer, and `augment` is what every batch goes through on the
device; `normalization` says which mean and deviation images get, `othersets` what else there is to
test on. It may import recipes and system. Begin with `loading`.
"""
