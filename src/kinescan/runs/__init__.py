"""What a verb does with a run's folder and its recipe."""
