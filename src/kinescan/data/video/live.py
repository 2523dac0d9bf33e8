import logging
import math
import os
import stat
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import av
import av.error
from av.video.reformatter import VideoReformatter

from kinescan.data.video.clock import LiveClock
from kinescan.data.video.codec import codec_now, new_decoder, part_for
from kinescan.data.video.decoder import choose_stream
from kinescan.data.video.limits import Limits
from kinescan.data.video.opening import NOT_ALLOWED, bound_frames, open_pipe, open_url, url_scheme
from kinescan.data.video.picture import square_size, to_rgb
from kinescan.data.video.pipe import STANDARD_INPUT, NothingOfVideo, Pipe
from kinescan.data.video.replayed import ShownPackets
from kinescan.data.video.transport import Continuity
from kinescan.errors import ConfigError, VideoError
from kinescan.runtime.addresses import is_in_object_store
from kinescan.runtime.urls import is_url, mask_url, mask_urls
from kinescan.shapes import Pixels

logger = logging.getLogger(__name__)

_BEHIND_SECONDS = 2.0
"""Lag behind the video source's clock that is worth a line in the log."""
_WAITED_SECONDS = 0.05
_SLACK_SECONDS = 1e-6
_MAX_PACKETS_IN_DECODER = 256
_MP4_ADVICE = (
    "An mp4 with its index at the end has to be gone back in, which a pipe and most servers do not allow. Give the "
    "file by its name, or send it as MPEG-TS (ffmpeg -i a.mp4 -c copy -f mpegts -)."
)


def is_live(source: str | Path) -> bool:
    """Whether a video source can only be read once, from its start to its end: "-", a URL, a named pipe or a device.

    What lies in an object store is a file.
    """
    if is_in_object_store(source):
        return False
    if str(source) == STANDARD_INPUT or is_url(source):
        return True
    try:
        mode = os.stat(source).st_mode
    # a null character is in no path
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def refuse_terminal(source: str | Path) -> None:
    """Raises ConfigError where standard input is meant and no program writes into it."""
    if str(source) == STANDARD_INPUT and (sys.stdin is None or sys.stdin.isatty()):
        raise ConfigError(
            "standard input is a terminal, or closed. Let a program write a video into it: "
            "ffmpeg -i SOURCE -f mpegts - | kinescan stream -"
        )


class LiveVideo:
    """Frames of a video source that cannot be gone back in, decoded as they come: each once, in order, upright.

    Nothing is kept and no frame waits for a later one, but for those that the codec itself reorders. Where
    container or codec notice that data was lost, frames are left out from there to the next key frame, and so are those
    before the first one where a video source is joined on its way. They are counted and logged. MPEG-TS numbers its
    packets, so that losses are noticed; of what RTP loses by UDP, some shows as garbage in frames that FFmpeg calls
    sound.

    Args:
        source: "-" for standard input, a URL that FFmpeg can read (rtsp://, http://, tcp://, udp://, ...), or a named
            pipe.
        timeout_seconds: how long to wait for the video source to open, for data to arrive, and for the first whole
            frame.
        limits: on the size of frames.
        square_pixels: stretch frames whose pixels are not square, as a player does (see VideoReader).
        shown: what earlier connections to a live playlist have shown, which is left out now.

    Attributes:
        source: its name for messages, without the secrets that a URL may hold (see `mask_url`).
        num_frames: whole frames so far.
        num_left_out: frames left out so far.
        num_refused: packets so far of which the decoder made nothing.

    Raises:
        ConfigError: timeout_seconds is not positive, or standard input is a terminal.
        VideoError: the video source cannot be opened or holds no video. Iteration raises it where the video source
            breaks off or falls silent, or gives no whole frame.

    Example:
        >>> import tempfile
        >>> from kinescan.data.video import write_video
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_video(f"{folder}/a.ts", torch.zeros(5, 3, 24, 32, dtype=torch.uint8), fps=10)
        ...     with LiveVideo(f"file://{folder}/a.ts") as video:
        ...         print([list(pixels.shape) for pixels, seconds in video][:2], video.num_frames)
        [[3, 24, 32], [3, 24, 32]] 5
    """

    def __init__(
        self,
        source: str | Path,
        *,
        timeout_seconds: float = 30.0,
        limits: Limits | None = None,
        square_pixels: bool = False,
        shown: ShownPackets | None = None,
    ) -> None:
        if not timeout_seconds > 0:
            raise ConfigError(f"timeout_seconds must be positive, got {timeout_seconds}.")
        refuse_terminal(source)
        self.source = mask_url(source)
        self._given = str(source)
        self._has_secrets = self.source != self._given
        self.num_frames = 0
        self.num_left_out = 0
        self.num_refused = 0
        self._timeout_seconds = timeout_seconds
        self._limits = limits or Limits()
        self._square_pixels = square_pixels
        self._pipe: Pipe | None = None
        self._file: BinaryIO | None = None
        self._container = self._open(self._given)
        try:
            self._stream = choose_stream(self.source, self._container, None)
            bound_frames(self.source, self._container, self._limits)
            self._continuity = self._count_blocks()
        except VideoError:
            self.close()
            raise
        # the size of a playlist is not that of what it names
        has_size = self._container.size > 0 and self._container.format.name != "hls"
        self._shown = shown if self._container.format.name == "hls" else None
        self._is_recording = bool(self._container.duration) or has_size
        # threads would hold frames back
        self._stream.thread_type = "NONE"
        self._stream.codec_context.thread_count = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LiveVideo({self.source!r}, {self.num_frames} frames so far)"

    @property
    def ends_by_itself(self) -> bool:
        """Whether its end is one, and no break: a pipe's, and that of a recording, which says how long it is."""
        return self._pipe is not None or self._is_recording

    def close(self) -> None:
        """Closes the video source; a second call does nothing."""
        self._container.close()
        if self._pipe is not None:
            self._pipe.close()
        if self._file is not None:
            self._file.close()

    def __iter__(self) -> Iterator[tuple[Pixels, float]]:
        """Frame after frame ([3, H, W], uint8) with its time in seconds, by the video source's own clock.

        Times increase. Where that clock jumps, forward or back, as when a camera starts anew, times continue from
        there, and it is logged once; frames of a video source without a clock are timed as they come (see `LiveClock`).
        """
        reformatter, lag, clock = VideoReformatter(), Lag(self.source), self._clock()
        frames = self._whole_frames()
        try:
            while True:
                asked = time.monotonic()
                entry = next(frames, None)
                if entry is None:
                    break
                frame, raw_seconds, arrived = entry
                waited = max(0.0, arrived - asked)
                seconds = clock.time_of(raw_seconds, now=arrived, waited=waited)
                self.num_frames += 1
                lag.look(seconds, waited)
                yield to_rgb(self.source, frame, reformatter, self._shown_size(frame)).permute(2, 0, 1), seconds
        finally:
            if self.num_left_out:
                logger.warning(
                    "%s: %d of %d frames were damaged or came before a key frame, and were left out",
                    *(self.source, self.num_left_out, self.num_left_out + self.num_frames),
                )
            if self.num_refused:
                logger.warning(
                    "%s: %d packet(s) could not be decoded: damaged, before a key frame, or of a codec that the video "
                    "has gone over to, in which case it has to be opened anew",
                    *(self.source, self.num_refused),
                )
        if self._pipe is not None:
            self._pipe.tell_unused(self.source)
        if not self.num_frames:
            raise VideoError(
                self.source,
                f"ended before its first whole frame ({self.num_left_out} were damaged). Check that it sends key "
                "frames.",
            )

    def _clock(self) -> LiveClock:
        rate = self._stream.average_rate or self._stream.guessed_rate
        frame_seconds = float(1 / rate) if rate else None
        has_clock = not _invents_times(self._container.format)
        is_recording = is_url(self._given) and self._given.startswith("file:")
        is_recording |= self._pipe is not None and self._pipe.file is not None
        if not has_clock:
            how = f"counted at {float(rate or 25):g} a second" if is_recording else "timed as they come"
            logger.warning(
                "%s: %s carries no times, so frames are %s. Send MPEG-TS to have them timed by their source.",
                *(self.source, self._container.format.name, how),
            )
        return LiveClock(self.source, frame_seconds=frame_seconds, by_arrival=not has_clock and not is_recording)

    def _whole_frames(self) -> Iterator[tuple[av.VideoFrame, float | None, float]]:
        """Frames with their times by the video source's clock, and by the wall's when they came.

        Packets are known by their ordinals, which the decoder passes to the frames.
        """
        decoder, damage, asked = self._stream.codec_context, Damage(), time.monotonic()
        codec = decoder.codec.canonical_name
        times: dict[int, tuple[float | None, float]] = {}
        for ordinal, packet in enumerate(self._packets()):
            arrived = self._arrived(packet)
            if packet.size:
                raw_seconds = None if packet.pts is None else float(packet.pts * packet.time_base)
                times[ordinal] = raw_seconds, arrived
                packet.pts = packet.dts = ordinal
            now = codec_now(self._stream, codec) if packet.size else codec
            try:
                if now != codec:
                    # FFmpeg joins the last frame of the old codec to the first of the new
                    rest = [*_what_comes(decoder, packet), *_what_comes(decoder, None)]
                    decoder, codec = self._follow(codec, now), now
                    frames = [*rest, *_what_comes(decoder, part_for(codec, packet))]
                else:
                    frames = decoder.decode(packet)
            except av.error.FFmpegError:
                frames = []
                damage.add(ordinal)
                self.num_refused += 1
            if packet.size:
                self._look_for_losses(packet, ordinal, damage)
            for frame in frames:
                self._limits.check_size(self.source, frame.width, frame.height)
                if frame.pts is None:
                    frame.pts = ordinal
                if damage.spares(frame):
                    yield frame, *times.get(frame.pts, (None, arrived))
                    asked = time.monotonic()
                else:
                    self.num_left_out += 1
            self._refuse_to_wait(time.monotonic() - asked)
            # what the decoder has given up is not waited for
            while len(times) > _MAX_PACKETS_IN_DECODER:
                del times[next(iter(times))]

    def _follow(self, before: str, now: str) -> av.VideoCodecContext:
        """A decoder for the codec that a video source has gone over to."""
        logger.warning("%s: its codec changes from %s to %s; frames continue from there", self.source, before, now)
        return new_decoder(now, self._limits.decoder_options)

    def _shown_size(self, frame: av.VideoFrame) -> tuple[int, int]:
        width, height = frame.width, frame.height
        if self._square_pixels:
            width, height = square_size((width, height), self._stream.sample_aspect_ratio)
            self._limits.check_size(self.source, width, height)
        return width, height

    def _count_blocks(self) -> Continuity | None:
        """Counts the blocks of MPEG-TS whose bytes can be looked at: those of pipes and files, but not of a network."""
        stream_id = self._stream.id if self._container.format.name == "mpegts" else None
        if self._pipe is not None:
            return self._pipe.count_blocks(stream_id)
        if stream_id is None or url_scheme(self._given) != "file":
            return None
        file = self._file = open(self._given[len("file://") :], "rb")  # noqa: SIM115

        def read(num_bytes: int, offset: int) -> bytes:
            file.seek(offset)
            return file.read(num_bytes)

        return Continuity(stream_id, read=read)

    def _look_for_losses(self, packet: av.Packet, ordinal: int, damage: "Damage") -> None:
        if self._continuity is not None:
            missing = self._continuity.of(packet.pos, is_marked=packet.is_corrupt)
            if missing != "none":
                # a key frame behind a loss is whole, as the first of a recording that was joined to another
                damage.add(ordinal if missing == "inside" else ordinal + 0.5)
        elif packet.is_corrupt:
            damage.add(ordinal)
            if self._container.format.name == "mpegts":
                # FFmpeg's parsers move a mark to the packet before the damaged one
                damage.add(ordinal + 1)

    def _packets(self) -> Iterator[av.Packet]:
        """Those of the video, the last of them empty, which drains the decoder."""
        packets, asked = self._container.demux(self._stream), time.monotonic()
        if self._shown is not None:
            self._shown.opened()
        while True:
            try:
                if self._pipe is not None:
                    self._pipe.expect()
                packet = next(packets, None)
                if self._pipe is not None:
                    self._pipe.raise_what_came()
            except IndexError:
                # PyAV's, where streams began on the way, behind the last packet of this one
                return
            except (av.error.FFmpegError, OSError) as error:
                if self._ends_openly():
                    return
                is_mp4 = not self.num_frames and "mp4" in self._container.format.name
                advice = _MP4_ADVICE if is_mp4 else "Check the video source and the connection to it."
                raise VideoError(
                    self.source, f"broke off after {self.num_frames} frames: {self._words(error)}. {advice}"
                ) from self._cause(error)
            if packet is None:
                return
            if self._pipe is not None and packet.size:
                self._pipe.used(packet)
            if self._shown is not None and packet.size and self._shown.is_again(packet):
                if time.monotonic() - asked > self._timeout_seconds:
                    raise VideoError(
                        self.source,
                        f"only what was shown before came for {self._timeout_seconds:g} s: it no longer grows.",
                    )
                continue
            yield packet

    def _ends_openly(self) -> bool:
        """Whether an error is only that no boundary follows the last picture of MJPEG in parts, as is usual."""
        return self._pipe is not None and self._pipe.has_ended and self._container.format.name == "mpjpeg"

    def _arrived(self, packet: av.Packet) -> float:
        """When it came, by the system clock; FFmpeg reads seconds of a pipe before it gives the first packet."""
        if self._pipe is None or packet.pos is None:
            return time.monotonic()
        return self._pipe.arrived(packet.pos + packet.size)

    def _refuse_to_wait(self, waited_seconds: float) -> None:
        """For the next whole frame."""
        if waited_seconds > self._timeout_seconds:
            raise VideoError(
                self.source,
                f"data came for {waited_seconds:.1f} s without a whole frame: {self.num_left_out} were damaged or had"
                " no key frame before them. Check the connection, or let the video source send key frames more often.",
            )

    def _open(self, source: str) -> av.container.InputContainer:
        try:
            if is_url(source):
                return open_url(source, self._limits, self._timeout_seconds)
            self._pipe = Pipe(source, self._timeout_seconds)
            container = open_pipe(self._pipe.file or self._pipe, self._limits)
            self._pipe.raise_what_came()
            return container
        except (av.error.FFmpegError, OSError) as error:
            if self._pipe is not None:
                self._pipe.close()
                self._pipe.raise_what_came()
                if self._pipe.is_empty:
                    raise VideoError(
                        self.source,
                        "is empty: no data came before its end. Check the program that writes into it.",
                    ) from None
            raise VideoError(
                self.source,
                f"cannot be opened as video: {self._words(error)}. Check the address, and that FFmpeg knows what is "
                "sent there; a capture device has to be read by a program of yours (docs/streams.md).",
            ) from self._cause(error)

    def _cause(self, error: Exception) -> Exception | None:
        """What shows in a traceback: not FFmpeg's own error where that names a secret."""
        return None if self._has_secrets else error

    def _words(self, error: Exception) -> str:
        if isinstance(error, NothingOfVideo):
            return f"data came, but none of this video's, for {self._timeout_seconds:g} s"
        if isinstance(error, TimeoutError | av.error.ExitError):
            return f"nothing came for {self._timeout_seconds:g} s"
        if isinstance(error, av.error.ArgumentError):
            return NOT_ALLOWED
        return mask_urls(str(getattr(error, "strerror", None) or error))


def shown_every(frames: Iterable[tuple[Pixels, float]], seconds: float) -> Iterator[tuple[Pixels, float]]:
    """The frames that a player shows at the first frame's time and every so many seconds after it, as they come.

    Args:
        frames: each with its time in seconds, increasing.
        seconds: between two of those times.

    Returns:
        Each frame as often as it is shown at one of the times, with that time, the first being 0.
    """
    first, count = 0.0, 0
    shown: Pixels | None = None
    time = 0.0
    for pixels, time in frames:
        if shown is None:
            first = time
        else:
            # what is shown at a time is known once a later frame comes
            while first + count * seconds < time - _SLACK_SECONDS:
                yield shown, count * seconds
                count += 1
        shown = pixels
    while shown is not None and first + count * seconds < time + _SLACK_SECONDS:
        yield shown, count * seconds
        count += 1


def _invents_times(kind: av.ContainerFormat) -> bool:
    """Whether FFmpeg counts frames of this format at a rate of its own: streams and pictures without a container."""
    is_raw = bool(kind.flags & av.format.Flags.no_timestamps.value)
    return is_raw or kind.name.endswith("_pipe") or kind.name in ("image2pipe", "rawvideo")


def _what_comes(decoder: av.VideoCodecContext, packet: av.Packet | None) -> list[av.VideoFrame]:
    """What a decoder makes of a packet that is only partly for it, or of the end (None)."""
    try:
        return decoder.decode(packet)
    except av.error.FFmpegError:
        return []


class Damage:
    """Which frames are whole: those behind a key frame in the order of the packets, without damage in between.

    An ordinal counts packets as they come.
    """

    def __init__(self) -> None:
        self._key: int | None = None
        self._first_behind_key = math.inf
        # key frames are looked up while the decoder holds them; a long outage must not make this grow
        self._latest: deque[float] = deque(maxlen=_MAX_PACKETS_IN_DECODER)

    def add(self, ordinal: float) -> None:
        """A packet that is damaged, or that the decoder refuses; between two ordinals: one that is missing there."""
        self._latest.append(ordinal)
        if self._key is not None and ordinal >= self._key:
            self._first_behind_key = min(self._first_behind_key, ordinal)

    def spares(self, frame: av.VideoFrame) -> bool:
        """Whether the next frame, in the order of display, is whole; its time is its packet's ordinal."""
        if frame.is_corrupt:
            self.add(frame.pts)
        if frame.key_frame and frame.pts not in self._latest:
            self._key = frame.pts
            self._first_behind_key = min((one for one in self._latest if one > frame.pts), default=math.inf)
        return self._key is not None and self._key <= frame.pts < self._first_behind_key


class Lag:
    """Tells once that frames are used more slowly than the video source shows them.

    Args:
        source: its name, for the log.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._start: tuple[float, float] | None = None
        self._told = False

    def look(self, seconds: float, waited_seconds: float) -> None:
        """At a frame with this time, which was waited for so long."""
        now = time.monotonic()
        # who waits for frames is not behind them, however late they come
        if self._start is None or waited_seconds > _WAITED_SECONDS:
            self._start = now, seconds
        behind = (now - self._start[0]) - (seconds - self._start[1])
        if behind > _BEHIND_SECONDS and not self._told:
            self._told = True
            logger.warning(
                "%s: frames are used more slowly than they come, %.1f s behind by now. Feed fewer of them "
                "(kinescan stream --when-behind newest or --every, kinescan ask --fps), or use a faster machine.",
                *(self._source, behind),
            )
