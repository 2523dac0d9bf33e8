"""Shards: many videos in few tars, with an index that says where each one is."""
