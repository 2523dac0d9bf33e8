"""The only door to decoders: frames out of video files, and frames into them."""

from kinescan.data.video.writer import write_video

__all__ = ["write_video"]
