import av
import av.codec.codec

_CODECS = ("h264", "hevc", "av1", "vp9", "vp8", "mpeg4", "mpeg2video", "mjpeg", "gif")


def probe_decoders() -> dict[str, str]:
    """What decodes video here: the versions of PyAV and its FFmpeg, and whether each common codec can be read.

    Example:
        >>> sorted(probe_decoders())[:2], probe_decoders()["h264"]
        (['FFmpeg', 'PyAV'], 'yes')
    """
    found = {"PyAV": av.__version__, "FFmpeg": str(av.ffmpeg_version_info)}
    return found | {codec: "yes" if _can_decode(codec) else "no: this FFmpeg was built without it" for codec in _CODECS}


def _can_decode(codec: str) -> bool:
    try:
        av.codec.Codec(codec, "r")
    except av.codec.codec.UnknownCodecError:
        return False
    return True
