"""From scores of frames to events: when something began and ended, and who is told."""
