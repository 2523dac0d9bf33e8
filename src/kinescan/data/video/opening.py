"""The one door through which FFmpeg opens anything: what may be opened is set beforehand, and it opens nothing else.

FFmpeg guesses from a name and from the first bytes what it has before it. Names such as "concat:a.mp4" are protocols to
it, and texts such as ffconcat, SDP or HLS name other files and addresses, which it opens. So a file is opened by
"file:" and its absolute path, whatever its name looks like, only formats that hold a video themselves are allowed, and
no protocol but the one that is needed.
"""

import os
import stat
import struct
from pathlib import Path
from typing import BinaryIO, Protocol

import av
import av.container
import av.error

from kinescan.data.stored import is_plain, open_bytes
from kinescan.data.video.limits import Clock, Limits
from kinescan.data.video.sample_tables import refuse_endless_tables
from kinescan.errors import ConfigError, VideoError
from kinescan.runtime.files import kind_of
from kinescan.runtime.http_store import StoreError
from kinescan.runtime.urls import is_url, mask_url

_CONTAINERS = (
    "apng asf avi dv flv gif gxf ivf live_flv matroska mov mpeg mpegts mpegvideo mxf nsv nut ogg pva rm wtv"
    " yuv4mpegpipe"
)
_RAW_STREAMS = (
    "av1 avs2 avs3 cavsvideo dirac dnxhd evc h261 h263 h264 hevc m4v mjpeg mjpeg_2000 mpjpeg obu vc1 vc1test vvc"
)
_RECORDERS = "cine dhav flic kux lxf roq swf ty"
_IMAGES = (
    "image2 bmp_pipe gif_pipe j2k_pipe jpeg_pipe jpegls_pipe jpegxl_pipe pam_pipe pbm_pipe pgm_pipe png_pipe ppm_pipe"
    " tiff_pipe webp_pipe"
)
_SOUND = "aac ac3 aiff amr caf flac mp3 w64 wav"
FORMATS = tuple(f"{_CONTAINERS} {_RAW_STREAMS} {_RECORDERS} {_IMAGES} {_SOUND}".split())
"""FFmpeg's names of the formats that are opened: each holds its pictures itself (of sound, only that it is sound)."""
_STREAMED = tuple(name for name in FORMATS if name != "image2")

_HTTP = ("http", "https", "httpproxy", "tcp", "tls", "crypto")
_RTSP = ("rtsp", "rtsps", "rtp", "srtp", "udp", "tcp", "tls", "http", "https")
_RTMP = ("rtmp", "rtmpe", "rtmps", "rtmpt", "rtmpts", "ffrtmphttp", "ffrtmpcrypt", "tcp", "tls", "http", "https")
PROTOCOLS: dict[str, tuple[str, ...]] = {
    "file": ("file",),
    "http": _HTTP,
    "https": _HTTP,
    "rtsp": _RTSP,
    "rtsps": _RTSP,
    **dict.fromkeys(("rtmp", "rtmpe", "rtmps", "rtmpt", "rtmpts"), _RTMP),
    "rtp": ("rtp", "udp"),
    "srt": ("srt",),
    "rist": ("rist",),
    "tcp": ("tcp",),
    "tls": ("tls", "tcp"),
    "udp": ("udp",),
}
"""Beginnings of URLs that are read, with the protocols that FFmpeg may use for each."""
_PLAYLISTS = dict.fromkeys(("http", "https"), ("hls",))
_SPEECH = {"rtsp": ("rtsp",), "rtsps": ("rtsp",), "rtp": ("rtp",)}

NOT_ALLOWED = (
    "it is in no video format that is read here, or its header makes no sense. Text is not a video, and lists of other "
    "files or addresses (ffconcat, HLS, SDP) are not followed; give what they name"
)
"""What FFmpeg's "invalid argument" means behind this door."""


class Readable(Protocol):
    """A pipe."""

    def read(self, num_bytes: int, /) -> bytes:
        """Up to so many bytes; none at the end."""
        ...


def open_file(path: str | Path, limits: Limits, clock: Clock) -> av.container.InputContainer:
    """A file, opened as video by its path and never as anything that its name looks like.

    Args:
        path: the file.
        limits: what it may take.
        clock: how long opening it, and reading a packet later, may last.

    Raises:
        VideoError: it is not there, no regular file, empty, or in no format that is read here.
    """
    plain = is_plain(path)
    if plain:
        _require_video_file(path)
    refuse_endless_tables(path)
    try:
        if plain:
            container = av.open(
                f"file:{os.path.abspath(path)}",
                options=_options(FORMATS, ("file",), limits),
                metadata_errors="ignore",
                timeout=clock.seconds_left,
            )
        else:
            container = open_pipe(open_bytes(path), limits)
    except StoreError as error:
        raise VideoError(path, error.reason) from error
    except av.error.ExitError:
        raise clock.error() from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(path, _reason(error)) from error
    try:
        clock.check()
        _refuse_huge_pictures(path, limits)
        bound_frames(path, container, limits)
    except VideoError:
        container.close()
        raise
    return container


def open_pipe(pipe: Readable | BinaryIO, limits: Limits) -> av.container.InputContainer:
    """What comes out of a pipe, or of an open file, opened as video.

    Raises:
        av.error.FFmpegError: it is not a video, or its format is not read here.
        OSError: the pipe cannot be read.
    """
    return av.open(pipe, options=_options(_STREAMED, (), limits), metadata_errors="ignore")


def open_url(url: str, limits: Limits, timeout_seconds: float) -> av.container.InputContainer:
    """What a URL gives, opened as video.

    Args:
        url: with one of the beginnings in `PROTOCOLS`.
        limits: on its frames.
        timeout_seconds: how long to wait for it to open, and for data to arrive.

    Raises:
        ConfigError: it has another beginning.
        av.error.FFmpegError: it cannot be opened.
        OSError: it cannot be opened.
    """
    scheme = url_scheme(url)
    formats = (*_STREAMED, *_PLAYLISTS.get(scheme, ()), *_SPEECH.get(scheme, ()))
    options = _options(formats, PROTOCOLS[scheme], limits)
    if scheme.startswith("rtsp"):
        options["rtsp_flags"] = "prefer_tcp"
    address = url[len(scheme) + len("://") :]
    url = f"file:{os.path.abspath(address)}" if scheme == "file" else f"{scheme}://{address}"
    return av.open(url, options=options, timeout=(timeout_seconds, timeout_seconds), metadata_errors="ignore")


def url_scheme(url: str) -> str:
    """The beginning of a URL, in small letters.

    Raises:
        ConfigError: URLs that begin so are not read.
    """
    scheme = url.partition("://")[0].lower()
    if not is_url(url) or scheme not in PROTOCOLS:
        allowed = ", ".join(f"{name}://" for name in PROTOCOLS)
        raise ConfigError(f"{mask_url(url)}: URLs that begin so are not read. Allowed: {allowed}, or a file's path.")
    return scheme


def _options(formats: tuple[str, ...], protocols: tuple[str, ...], limits: Limits) -> dict[str, str]:
    return {
        "format_whitelist": ",".join(formats),
        # an empty list would allow everything
        "protocol_whitelist": ",".join(protocols) or "none",
        **limits.decoder_options,
        # mov: no tracks in other files
        "enable_drefs": "0",
        # image2: the name is not a pattern of names
        "pattern_type": "none",
    }


def _require_video_file(path: str | Path) -> None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise VideoError(path, "no such file. Check the path.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(path, f"cannot be opened: {reason}. Check the path and its permissions.") from None
    if not stat.S_ISREG(found.st_mode):
        raise VideoError(path, f"is {kind_of(found.st_mode)}. Give a video file.")
    if found.st_size == 0:
        raise VideoError(path, "is empty (0 bytes). Fetch it again.")


def _reason(error: Exception) -> str:
    if isinstance(error, av.error.ArgumentError):
        return f"cannot be opened as video: {NOT_ALLOWED}."
    strerror = getattr(error, "strerror", None) or error
    return f"cannot be opened as video: {strerror}. It is cut before its index, or no video file."


def bound_frames(source: str | Path, container: av.container.InputContainer, limits: Limits) -> None:
    """Lets the decoders of a container allocate no frame above the limit, also where the size changes later.

    Raises:
        VideoError: by its header, a video is larger.
    """
    for stream in container.streams.video:
        context = stream.codec_context
        if context is not None:
            limits.check_size(source, context.width, context.height)
            context.options = {**context.options, **limits.decoder_options}


def _refuse_huge_pictures(path: str | Path, limits: Limits) -> None:
    """FFmpeg forgets a size above the limit, and would call such a gif or png damaged."""
    with open_bytes(path) as file:
        head = file.read(24)
    if head.startswith(b"GIF8") and len(head) >= 10:
        width, height = struct.unpack("<HH", head[6:10])
    elif head.startswith(b"\x89PNG") and len(head) == 24:
        width, height = struct.unpack(">II", head[16:24])
    else:
        return
    limits.check_size(path, width, height)
