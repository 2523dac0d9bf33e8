"""Our own checkpoints: a folder with weights, settings, card and the record of the run."""
