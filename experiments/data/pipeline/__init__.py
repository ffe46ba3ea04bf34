"""Images from disk, batch by batch: sets that do not fit in memory, or of differing sizes.

`stream` is what a caller sees. `records` reads the images, `transforms` makes of each what a model
sees, `maker` is what a worker does, which hands pieces over in the shared memory of `blocks`, and
`batches` puts them together. It may import what its room may, and of the room itself `disk`
alone. Begin with `stream`.
"""
