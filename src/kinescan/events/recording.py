"""A video of the stream with its events drawn in."""

import logging
import queue
import threading
import time
from collections import deque
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kinescan.errors import ConfigError
from kinescan.events.drawing import Timeline
from kinescan.events.told import Told
from kinescan.runtime.addresses import require_local

logger = logging.getLogger(__name__)

SUFFIXES = (".mp4", ".mov", ".mkv", ".ts")
_TICKS = 90_000
"""Time base of the video, in ticks per second."""
_MOST_WAITING = 16
"""Frames that wait for the encoder."""
_FILE_SECONDS = 3600.0
"""Length of a file; then the next one begins."""
_LONGEST_PAUSE_SECONDS = 2.0
"""A longer time without a frame is left out of the video."""
_USUAL_SECONDS = 0.04
"""Between two frames in the video where the stream's clock jumps."""
_RETRY_SECONDS = 60.0
_MOST_AHEAD_SECONDS = 60.0
"""Updates that may lie ahead of the newest frame, in seconds; more than that means that the clock ran back."""
_OPTIONS = {
    "movflags": "frag_keyframe+empty_moov+default_base_moof",
    "flush_packets": "1",
}
"""Every two seconds make a file that can be played without what follows it: a kill leaves all but the last."""
_CODEC = {"preset": "veryfast", "crf": "26", "tune": "zerolatency", "forced-idr": "1"}


class Recorder:
    """Writes every frame of a stream to a video, with the events of that moment and a timeline of the last seconds.

    A thread draws and encodes. Of a live source, frames that it cannot take in are left out and counted; a file waits
    for it. An event is drawn when it is told. Where the disk is full, the recording stops, the stream continues, and
    after a minute a new file is tried.

    A file is never replaced: OUT.mp4, OUT-2.mp4, ... is written, a new one each hour, and where the size of the frames
    changes. A kill leaves a file that can be played up to two seconds before it.

    Args:
        path: the file; .mp4, .mov, .mkv or .ts.
        waits: whether `watch` may wait for the thread, as for a file.

    Attributes:
        files: written so far.
        num_left_out: frames left out so far.

    Raises:
        ConfigError: the name ends in something else, or the folder cannot be written.
    """

    def __init__(self, path: str | Path, *, waits: bool = False) -> None:
        require_local(path)
        self.path = Path(path)
        self.name = str(path)
        self.files: list[Path] = []
        self.num_left_out = 0
        if self.path.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"--record {path}: its name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}.")
        if not self.path.parent.is_dir():
            raise ConfigError(f"{self.path.parent} is not a folder, so {path} cannot be written. Make the folder.")
        try:
            # the first file has the same name
            self._claim_path().unlink()
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be written ({error.strerror or error}). Name a file in another folder."
            ) from None
        self._waits = waits
        self._entries: queue.Queue[tuple[Tensor, float]] = queue.Queue(_MOST_WAITING)
        self._told: deque[Told] = deque()
        self._timeline = Timeline()
        self._file: _VideoFile | None = None
        self._retry_at = 0.0
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"recording {path}", daemon=True)
        self._thread.start()

    def watch(self, frame: Tensor, seconds: float) -> None:
        """Takes a frame, uint8 [3, H, W], with its time by the clock of the events."""
        try:
            # a disk that hangs must not hold a file for ever, either
            self._entries.put((frame, seconds), block=self._waits, timeout=10.0 if self._waits else None)
        except queue.Full:
            self._leave_out("it is too slow")

    def deliver(self, told: Told) -> None:
        """Takes the start or the end of an event, to be drawn from the next frame on."""
        self._told.append(told)

    def position(self, stream_id: str) -> int:
        """Earlier events are not drawn again."""
        return 0

    def close(self, patience_seconds: float) -> None:
        """Writes what waits, so long at most."""
        self._is_closing.set()
        self._thread.join(max(patience_seconds, 1.0))
        if self._thread.is_alive():
            logger.warning("%s: the last frames could not be written in time", self.name)
        if self.num_left_out:
            logger.warning("%s: %d frames were left out of the recording", self.name, self.num_left_out)

    def _run(self) -> None:
        while True:
            try:
                entry = self._entries.get(timeout=0.1)
            except queue.Empty:
                if self._is_closing.is_set():
                    break
                continue
            # frames wait here, so that what is told may be ahead of them
            while self._told and not 0 < self._told[0].update.told_at_seconds - entry[1] < _MOST_AHEAD_SECONDS:
                self._timeline.add(self._told.popleft())
            self._write(*entry)
        self._end_file()

    def _write(self, frame: Tensor, seconds: float) -> None:
        if self._file is None and time.monotonic() < self._retry_at:
            self._leave_out("")
            return
        try:
            pixels = self._timeline.draw(np.ascontiguousarray(frame.permute(1, 2, 0).numpy()), seconds)
            if self._file is not None and not self._file.fits(pixels):
                self._end_file()
            if self._file is None:
                self._file = self._new_file(pixels)
            self._file.add(pixels, seconds)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            self._leave_out("")
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            logger.warning(
                "%s: cannot be written (%s). The stream continues; the recording is tried again in %.0f s.",
                *(self.name, getattr(error, "strerror", None) or error, _RETRY_SECONDS),
            )
            self._end_file()

    def _new_file(self, pixels: NDArray[np.uint8]) -> "_VideoFile":
        path = self._claim_path()
        try:
            file = _VideoFile(path, pixels)
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise
        self.files.append(path)
        if path != self.path or len(self.files) > 1:
            logger.info("recording: %s", path)
        return file

    def _end_file(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        try:
            file.close()
        except (av.error.FFmpegError, OSError, ValueError) as error:
            logger.warning("%s: its end cannot be written (%s)", file.path, getattr(error, "strerror", None) or error)
        if not file.num_frames:
            # on a full disk there would be one more each minute
            self.files.remove(file.path)
            with suppress(OSError):
                file.path.unlink(missing_ok=True)

    def _leave_out(self, reason: str) -> None:
        self.num_left_out += 1
        if reason and self.num_left_out == 1:
            logger.warning("%s: frames are left out of the recording, since %s; they are counted", self.name, reason)

    def _claim_path(self) -> Path:
        """A new, empty file, which no other recorder takes.

        Raises:
            OSError: it cannot be made.
        """
        number, path = 1, self.path
        while True:
            try:
                path.touch(exist_ok=False)
            except FileExistsError:
                number += 1
                path = self.path.with_name(f"{self.path.stem}-{number}{self.path.suffix}")
            else:
                return path


class _VideoFile:
    """A video file that is being written, H.264 with a key frame every two seconds.

    Args:
        path: the file, which is replaced.
        pixels: the first frame, uint8 RGB [H, W, 3]; all have its size. It is not encoded yet: see `add`.
    """

    def __init__(self, path: Path, pixels: NDArray[np.uint8]) -> None:
        self.path = path
        self._size = pixels.shape
        options = _OPTIONS if path.suffix.lower() in (".mp4", ".mov") else {"flush_packets": "1"}
        # a name with a colon is not a protocol
        self._container = av.open(f"file:{path.absolute()}", "w", options=options)
        self._stream = self._container.add_stream("libx264", rate=Fraction(25))
        self._stream.height, self._stream.width = pixels.shape[:2]
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        self._stream.codec_context.thread_count = 1
        self._stream.options = _CODEC
        # key frames are asked for by time, below
        self._stream.gop_size = 1_000_000
        self._last_seconds: float | None = None
        self._ticks = 0
        self.num_frames = 0
        self._key_ticks: int | None = None

    def fits(self, pixels: NDArray[np.uint8]) -> bool:
        """Whether the next frame belongs into this file."""
        return pixels.shape == self._size and self._ticks < _FILE_SECONDS * _TICKS

    def add(self, pixels: NDArray[np.uint8], seconds: float) -> None:
        """Encodes a frame, uint8 RGB [H, W, 3], shown at `seconds` of the stream's clock."""
        if self._last_seconds is not None:
            distance = seconds - self._last_seconds
            if not 0 < distance <= _LONGEST_PAUSE_SECONDS:
                distance = _USUAL_SECONDS
            self._ticks += max(1, round(distance * _TICKS))
        self._last_seconds = seconds
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = self._ticks, Fraction(1, _TICKS)
        if self._key_ticks is None or self._ticks - self._key_ticks >= 2 * _TICKS:
            frame.pict_type, self._key_ticks = av.video.frame.PictureType.I, self._ticks
        self._container.mux(self._stream.encode(frame))
        self.num_frames += 1

    def close(self) -> None:
        """Writes what the encoder holds."""
        try:
            self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()
