"""Which codec a stream has at present, and a decoder for it.

A transport stream may go over to another codec on its way. FFmpeg notes it in the stream's parameters, which PyAV does
not show; its decoder stays that of the moment of opening, and makes nothing, or refusals, of what follows. A filter of
bitstreams is made from the parameters of the moment, and only for the codecs that it is for.
"""

import av
import av.error
from av.bitstream import BitStreamFilterContext

_FILTERS = {
    "h264": "h264_metadata",
    "hevc": "hevc_metadata",
    "vvc": "vvc_metadata",
    "mpeg2video": "mpeg2_metadata",
    "mpeg4": "mpeg4_unpack_bframes",
    "av1": "av1_metadata",
    "vp9": "vp9_metadata",
}
_BEGINNINGS = {
    "h264": (b"\0\0\1\x09", b"\0\0\1\x67", b"\0\0\1\x27"),
    "hevc": (b"\0\0\1\x46\x01", b"\0\0\1\x40\x01"),
    "mpeg2video": (b"\0\0\1\xb3",),
    "mpeg4": (b"\0\0\1\xb0",),
}
"""Marks (access unit delimiters, parameter sets, sequence headers) with which a codec's first frame begins."""


def codec_now(stream: av.VideoStream, before: str) -> str:
    """The codec of the packets that come now.

    Args:
        stream: of an open container.
        before: the codec so far, which is given back where nothing tells.

    Example:
        >>> import io
        >>> from kinescan.data.video import write_video
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_video(f"{folder}/a.ts", torch.zeros(5, 3, 24, 32, dtype=torch.uint8), fps=10)
        ...     with av.open(f"{folder}/a.ts") as container:
        ...         codec_now(container.streams.video[0], before="mpeg2video")
        'h264'
    """
    names = [before, *(name for name in _FILTERS if name != before)] if before in _FILTERS else list(_FILTERS)
    return next((name for name in names if _is(stream, name)), before)


def part_for(codec: str, packet: av.Packet) -> av.Packet:
    """What of a packet is for a codec: FFmpeg joins the last frame of one codec to the first of the next."""
    data = bytes(packet)
    offsets = [data.find(mark) for mark in _BEGINNINGS.get(codec, ())]
    offset = next((offset for offset in offsets if offset > 0), 0)
    if not offset:
        return packet
    part = av.Packet(data[offset:])
    part.pts, part.dts, part.time_base = packet.pts, packet.dts, packet.time_base
    return part


def new_decoder(codec: str, options: dict[str, str]) -> av.VideoCodecContext:
    """A decoder in one thread, which would hold frames back otherwise."""
    decoder = av.VideoCodecContext.create(codec, "r")
    decoder.options = options
    decoder.thread_type = "NONE"
    decoder.thread_count = 1
    return decoder


def _is(stream: av.VideoStream, codec: str) -> bool:
    try:
        BitStreamFilterContext(_FILTERS[codec], in_stream=stream)
    except (av.error.FFmpegError, ValueError):
        return False
    return True
