"""Images from disk, batch by batch: sets that do not fit in memory, or of differing sizes.

`records` reads them, `transforms` makes of each what a model sees, `stream` puts batches together
in worker processes, which hand them over in the shared memory of `blocks`. Begin with `stream`.
"""
