"""Other people's checkpoints: files, layouts, conventions, and what was taken from them."""
