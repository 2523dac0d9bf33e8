"""The only door to decoders: frames out of video files, and frames into them."""

from kinescan.data.video.inspection import Inspection, inspect_video
from kinescan.data.video.limits import Limits
from kinescan.data.video.live import LiveVideo, is_live, refuse_terminal, shown_every
from kinescan.data.video.probe import probe_decoders
from kinescan.data.video.reader import Frames, VideoReader
from kinescan.data.video.reconnecting import Outage, Reconnect, ReconnectingVideo
from kinescan.data.video.writer import write_video

__all__ = [
    "Frames",
    "Inspection",
    "Limits",
    "LiveVideo",
    "Outage",
    "Reconnect",
    "ReconnectingVideo",
    "VideoReader",
    "inspect_video",
    "is_live",
    "probe_decoders",
    "refuse_terminal",
    "shown_every",
    "write_video",
]
