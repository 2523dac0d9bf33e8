"""VideoMamba, and the ways to tune it."""

from kinescan.models.videomamba.videomamba import VideoMamba, VideoMambaConfig

__all__ = ["VideoMamba", "VideoMambaConfig"]
