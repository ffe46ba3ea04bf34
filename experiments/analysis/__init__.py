"""Pictures and measures of sharpness, of any loss over a set or of a run."""
