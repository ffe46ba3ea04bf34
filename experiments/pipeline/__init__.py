"""Images from disk, batch by batch: sets that do not fit in memory, or of differing sizes."""
