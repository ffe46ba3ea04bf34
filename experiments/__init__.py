"""Training scripts that reproduce the papers' experiments with `sam_optax`."""
