import hashlib
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import av.error
import torch
from av.video.reformatter import VideoReformatter

from kinescan.data.video.decoder import Decoder, Undecodable, only_video_errors
from kinescan.data.video.limits import Limits
from kinescan.data.video.picture import some_rows, square_size, to_rgb, turn
from kinescan.data.video.structure import missing_bytes, next_file
from kinescan.data.video.table import plan_runs
from kinescan.errors import ConfigError, CutVideoError, ShapeError, VideoError
from kinescan.shapes import Pixels

# Frames that a file may give out of the order of their times before it counts as damaged.
_MAX_FRAMES_AHEAD = 64
_CUT = "The file is cut or damaged; fetch it again"
_CUT_ADVICE = (
    f"{_CUT}, or use what is there: --allow-short on the command line, data.allow_short = true in a recipe, "
    "allow_short=True in Python."
)

# Files whose notes were logged, so that none is logged in every epoch.
_said: set[tuple[Path, str]] = set()
_MAX_SAID = 10_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NextFile:
    """Another file behind a file's end.

    Attributes:
        position: the byte at which it begins.
        is_read: its frames follow those of the first, as FFmpeg reads them.
    """

    position: int
    is_read: bool


@dataclass(frozen=True)
class Frames:
    """Decoded frames.

    Attributes:
        pixels: [T, 3, H, W], uint8, RGB; channels-last in memory.
        pts_seconds: [T], float64: when each frame is shown, by the file's own clock.
    """

    pixels: Pixels
    pts_seconds: torch.Tensor

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[1] != 3 or self.pixels.shape[:1] != self.pts_seconds.shape:
            raise ShapeError(
                f"pixels must be [T, 3, H, W] with one time each, got {list(self.pixels.shape)} and "
                f"{list(self.pts_seconds.shape)} times."
            )

    def __repr__(self) -> str:
        return f"Frames(pixels={list(self.pixels.shape)}, pts_seconds={list(self.pts_seconds.shape)})"


class VideoReader:
    """Exact frames of a video file by index or time, upright.

    Opening reads the packets once, without decoding, and keeps what it finds for the next time (docs/data.md, "Tables
    of frames"): this gives the number of frames, their times and the positions
    where decoding can start. `read` then decodes each stretch that it needs once, by one thread (worker processes are
    the way to use more cores), and converts only the frames asked for to RGB. What comes out is bit for bit what
    decoding the whole file in order would give, also with variable frame rates, reordered frames and edit lists.

    Args:
        path: a video file.
        stream_index: which of the file's streams; by default the video stream that FFmpeg finds best.
        allow_short: accept a cut or damaged file: it is decoded once in full when opened, and the frames that come
            out of that, without those marked as damaged, are the video.
        limits: on the time that opening and each read may take, and on the size of frames.
        square_pixels: stretch frames whose pixels are not square (anamorphic video of DV, DVD and camcorders) as a
            player does; without it, frames come as they are stored.

    Raises:
        VideoError: the file is missing, empty or holds no video.
        CutVideoError: it is cut or damaged; `read` and iteration raise it where they meet frames that cannot be
            decoded, and name how many can.
        ConfigError: stream_index is not the number of a video stream.

    Example:
        >>> import tempfile
        >>> from kinescan.data.video import write_video
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_video(f"{folder}/a.mp4", torch.zeros(20, 3, 24, 32, dtype=torch.uint8), fps=10)
        ...     with VideoReader(f"{folder}/a.mp4") as video:
        ...         print(video.num_frames, video.fps, video.read([0, 5, 5]))
        20 10.0 Frames(pixels=[3, 3, 24, 32], pts_seconds=[3])
    """

    def __init__(
        self,
        path: str | Path,
        *,
        stream_index: int | None = None,
        allow_short: bool = False,
        limits: Limits | None = None,
        square_pixels: bool = False,
    ) -> None:
        self.path = Path(path)
        self._square_pixels = square_pixels
        self._allow_short = allow_short
        self._decoder = Decoder(path, stream_index=stream_index, limits=limits)
        self._reformatter = VideoReformatter()
        try:
            if allow_short:
                self._keep_what_decodes()
            elif not self._decoder.is_kept:
                self._refuse_cut()
                self._decoder.keep_tables()
            if not self._decoder.frames.identities:
                raise VideoError(path, "holds no video frames.")
        except VideoError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self.num_frames

    def __repr__(self) -> str:
        return f"VideoReader({str(self.path)!r}, {self.num_frames} frames, {self.duration_seconds:.2f} s, {self.codec})"

    @property
    def table_is_kept(self) -> bool:
        """Whether the table of packets and frames lies on the disk for the next time (see `FrameTableCache`)."""
        return self._decoder.is_kept

    @property
    def num_frames(self) -> int:
        """Frames that the packets of the file hold, whatever its header says."""
        return len(self._decoder.frames.identities)

    @property
    def pts_seconds(self) -> torch.Tensor:
        """[num_frames], float64, increasing: when each frame is shown, by the file's own clock."""
        return self._decoder.frames.pts_seconds

    @property
    def duration_seconds(self) -> float:
        """From the first frame's start to the last frame's end."""
        table = self._decoder.frames
        return float(table.pts_seconds[-1] - table.pts_seconds[0]) + table.last_seconds

    @property
    def fps(self) -> float:
        """Frames per second on average; 0 where the file has one frame and no duration."""
        seconds = self.duration_seconds
        return round(self.num_frames / seconds, 6) if seconds > 0 else 0.0

    @property
    def codec(self) -> str:
        """FFmpeg's name of the codec, as in "h264"."""
        return self._decoder.codec

    @property
    def height(self) -> int:
        """Rows of a frame, after rotation."""
        return self._geometry[0]

    @property
    def width(self) -> int:
        """Columns of a frame, after rotation."""
        return self._geometry[1]

    @property
    def rotation_degrees(self) -> int:
        """By how much stored frames are turned to stand upright, counter-clockwise: 0, 90, 180 or 270."""
        return self._geometry[2]

    @property
    def pixel_aspect(self) -> Fraction:
        """Width of a stored pixel over its height; 1 where the file does not say it."""
        return self._decoder.stream.sample_aspect_ratio or Fraction(1)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is unusual about the file, in words: its clock starts anew, or its first frames do not decode."""
        notes = []
        restarts, lost = self._decoder.frames.num_restarts, self._decoder.num_lost_at_start
        if restarts:
            notes.append(
                f"its clock starts anew {restarts} time(s), as in recordings that were joined; frames are in the "
                "file's order, and their times continue from there"
            )
        if lost:
            notes.append(
                f"{lost} frames at its start refer to frames before it, as in a cut out of a longer recording; they "
                "cannot be decoded and are left out"
            )
        return tuple(notes)

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        self._decoder.close()

    def read(self, indices: Sequence[int] | torch.Tensor) -> Frames:
        """The frames at these indices.

        Args:
            indices: [T], each in [0, num_frames); any order, repeats allowed.

        Returns:
            T frames in the order asked for.

        Raises:
            ConfigError: there is no index, or one out of range.
            VideoError: a frame cannot be decoded.
        """
        wanted_indices = [int(index) for index in indices]
        if not wanted_indices or min(wanted_indices) < 0 or max(wanted_indices) >= self.num_frames:
            raise ConfigError(f"{self.path}: indices must lie in [0, {self.num_frames}), got {wanted_indices}.")
        self._decoder.clock.restart()
        self._say_notes()
        slots: dict[int, list[int]] = {}
        for slot, index in enumerate(wanted_indices):
            slots.setdefault(self._decoder.frames.identities[index], []).append(slot)
        pixels = torch.empty(0, dtype=torch.uint8)
        for identity, frame in self._decode_wanted(sorted(set(wanted_indices))):
            image = self._to_rgb(frame)
            if not pixels.numel():
                with only_video_errors(self.path):
                    pixels = torch.empty(len(wanted_indices), *image.shape, dtype=torch.uint8)
            for slot in slots[identity]:
                pixels[slot] = image
        return Frames(pixels.permute(0, 3, 1, 2), self.pts_seconds[wanted_indices])

    def read_at(self, seconds: float | Sequence[float]) -> Frames:
        """The frames that a player shows at these times: for each the last one that has begun.

        Args:
            seconds: by the file's own clock (as in `pts_seconds`), from the first frame's start to the last one's end.

        Returns:
            One frame for each time: pixels uint8 [n, 3, H, W].

        Raises:
            ConfigError: a time before the first frame or after the last.
            VideoError: a frame cannot be decoded.
        """
        times = torch.as_tensor(seconds, dtype=torch.float64).reshape(-1)
        first, end = float(self.pts_seconds[0]), float(self.pts_seconds[-1]) + self._decoder.frames.last_seconds
        # times that were printed with six digits still find their own frame
        slack = 1e-6
        if not times.numel() or float(times.min()) < first - slack or float(times.max()) > end + slack:
            raise ConfigError(f"{self.path}: times must lie in [{first:.6g}, {end:.6g}] s, got {times.tolist()}.")
        found = torch.searchsorted(self.pts_seconds, times + slack, right=True) - 1
        return self.read(found.clamp(min=0))

    def __iter__(self) -> Iterator[tuple[Pixels, float]]:
        """Frame after frame ([3, H, W], uint8) with its time in seconds; never more than a few in memory."""
        return self.in_order(range(self.num_frames))

    def in_order(self, indices: Sequence[int]) -> Iterator[tuple[Pixels, float]]:
        """The frames at these indices ([3, H, W], uint8), each with its time in seconds; only a few are in memory.

        Args:
            indices: each in [0, num_frames), not decreasing; repeats are allowed. What lies between is not converted.
        """
        self._say_notes()
        times, table = self.pts_seconds.tolist(), self._decoder.frames
        index_of = {table.identities[index]: index for index in indices}
        whole = len(index_of) == self.num_frames
        start = table.start(indices[0])
        ahead: dict[int, torch.Tensor] = {}
        left, newest = deque(indices), -1
        # a decoder of its own: reading in between does not disturb it
        decoder = self._decoder.again()
        try:
            wanted = None if whole else set(index_of)
            for identity, frame in decoder.decode(start, wanted=wanted, strict=not self._allow_short):
                if identity in index_of:
                    ahead[index_of[identity]] = self._to_rgb(frame)
                while left and left[0] in ahead:
                    index = left.popleft()
                    if newest not in (-1, index):
                        del ahead[newest]
                    newest = index
                    with decoder.clock.paused():
                        yield ahead[index].permute(2, 0, 1), times[index]
                if len(ahead) > _MAX_FRAMES_AHEAD:
                    break
        except Undecodable:
            raise self._explain() from None
        finally:
            decoder.close()
        if left:
            raise self._explain()

    def check(self) -> None:
        """Decodes everything once.

        Raises:
            VideoError: not every frame can be decoded; the message says how many can.
        """
        for _ in self:
            pass

    def fingerprint(self) -> str:
        """A digest of the pictures: the same for the same coded video, in whatever container and under any name.

        Decodes everything once; every eighth row of each frame's first plane counts.

        Raises:
            CutVideoError: not every frame can be decoded; the message says how many can.
        """
        wanted = set(self._decoder.frames.identities)
        digest = hashlib.blake2b(digest_size=16)
        # a decoder of its own, as for iteration
        decoder = self._decoder.again()
        try:
            for identity, frame in decoder.decode(0, strict=not self._allow_short):
                if identity in wanted:
                    wanted.discard(identity)
                    digest.update(f"{frame.width}x{frame.height} {frame.format.name}".encode())
                    with only_video_errors(self.path):
                        digest.update(some_rows(frame))
        except Undecodable:
            raise self._explain() from None
        finally:
            decoder.close()
        if wanted:
            raise self._explain()
        return digest.hexdigest()

    def missing_frames(self) -> int:
        """How many packets fewer than its header says the file's index has; 0 where the header does not say it."""
        return max(0, self._decoder.num_promised_frames - self._decoder.num_indexed_frames)

    def next_file(self) -> NextFile | None:
        """Another file that begins behind this one's end, as where two were written into one."""
        position = next_file(self.path)
        if position is None:
            return None
        offsets = self._decoder.packets.positions
        return NextFile(position, is_read=any(offset is not None and offset >= position for offset in offsets))

    def missing_seconds(self) -> float:
        """How much earlier the last stream ends than the header says; 0 where the format's header does not say it."""
        decoder = self._decoder
        promised = decoder.promised_seconds
        if not decoder.stores_duration or promised <= self.duration_seconds:
            return 0.0
        end = decoder.end_of_all_streams_seconds()
        # Matroska's duration may count from 0, also where the first frame comes later
        counts_from_zero = decoder.start_seconds > 0 and "matroska" in decoder.format_name
        return max(0.0, promised - (end if counts_from_zero else end - decoder.start_seconds))

    @cached_property
    def _geometry(self) -> tuple[int, int, int]:
        """Height, width and rotation of the first frame."""
        frame = self._first_frame
        stored_width, stored_height = self._shown_size(frame)
        height, width = turn(torch.empty(stored_height, stored_width, 3, dtype=torch.uint8), frame).shape[:2]
        return height, width, round(frame.rotation) % 360

    @cached_property
    def _first_frame(self) -> av.VideoFrame:
        decoder = self._decoder.again()
        identity = decoder.frames.identities[0]
        try:
            for wanted in ({identity}, None):
                with suppress(Undecodable):
                    for found, frame in decoder.decode(0, wanted=wanted, strict=not self._allow_short):
                        if found == identity:
                            return frame
        finally:
            decoder.close()
        raise self._explain()

    def _decode_wanted(self, indices: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Each wanted frame once: first from the nearest starts; where that fails, from the file's start."""
        table = self._decoder.frames
        missing = {table.identities[index] for index in indices}
        try:
            for start, wanted in plan_runs(table, indices):
                for identity, frame in self._decoder.decode(start, wanted=wanted):
                    missing.discard(identity)
                    yield identity, frame
        except Undecodable:
            # whether a decoder gives a frame may depend on what comes behind it: now it gets everything
            try:
                for identity, frame in self._decoder.decode(0, strict=not self._allow_short, anew=True):
                    if identity in missing:
                        missing.discard(identity)
                        yield identity, frame
                    if not missing:
                        return
            except Undecodable:
                pass
            raise self._explain() from None

    def _to_rgb(self, frame: av.VideoFrame) -> torch.Tensor:
        """Upright [H, W, 3] pixels, as large as the first frame's."""
        first = frame if (frame.width, frame.height) == self._decoder.header_size else self._first_frame
        return to_rgb(self.path, frame, self._reformatter, self._shown_size(first))

    def _shown_size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Stored (width, height) that frames are scaled to."""
        if not self._square_pixels:
            return frame.width, frame.height
        width, height = square_size((frame.width, frame.height), self.pixel_aspect)
        self._decoder.limits.check_size(self.path, width, height)
        return width, height

    def _say_notes(self) -> None:
        """Once for each file."""
        for note in self.notes:
            if (self.path, note) not in _said and len(_said) < _MAX_SAID:
                _said.add((self.path, note))
                logger.warning("%s: %s", self.path, note)

    def _keep_what_decodes(self) -> None:
        table = self._decoder.frames
        decodable = [identity for identity, _ in self._decoder.decode(0, strict=False)]
        if table.identities and not decodable:
            raise self._explain()
        self._decoder.frames = table.keep(decodable)

    def _refuse_cut(self) -> None:
        """A file that ends before its own structure does, and whose frames end before its header says, is cut."""
        num_missing = missing_bytes(self.path)
        if num_missing == 0:
            return
        table = self._decoder.frames
        num_frames = len(table.identities)
        promised = self._decoder.num_promised_frames
        if not promised and num_frames:
            # of other formats, FFmpeg makes the duration up from what is there
            seconds = self._decoder.promised_seconds if self._decoder.stores_duration else 0.0
            short = seconds - self._decoder.end_of_all_streams_seconds()
            if seconds and short < 0.75 * table.last_seconds:
                return
            promised = num_frames + max(1, round(short / (table.last_seconds or 0.04))) if seconds else 0
        if promised and promised <= num_frames:
            return
        frames = f"{num_frames} of {promised}" if promised else f"{num_frames}"
        raise CutVideoError(
            self.path,
            f"{frames} frames can be decoded (the index ends at {self._index_end:.2f} s, {num_missing} bytes are "
            f"missing). {_CUT_ADVICE}",
        )

    def _explain(self) -> CutVideoError:
        """Counts what can be decoded."""
        decoder = self._decoder.again()
        try:
            index_of = {identity: index for index, identity in enumerate(decoder.frames.identities)}
            given = [index_of[identity] for identity, _ in decoder.decode(0, strict=False) if identity in index_of]
        finally:
            decoder.close()
        hint = f" Frames of more than {decoder.limits.max_pixels:,} pixels (data.max_pixels) are not decoded."
        hint = hint if decoder.refused_a_size else ""
        if not given:
            return CutVideoError(
                self.path,
                f"none of its {self.num_frames} frames can be decoded: what describes them is missing, or they are "
                f"damaged. Fetch the file again.{hint}",
            )
        last = f"the last at {float(self.pts_seconds[max(given)]):.2f} s of "
        advice = (f"{_CUT}." if self._allow_short else _CUT_ADVICE) + hint
        return CutVideoError(
            self.path,
            f"{len(given)} of {self.num_frames} frames can be decoded ({last}{self._index_end:.2f} s). {advice}",
        )

    @property
    def _index_end(self) -> float:
        table = self._decoder.frames
        return float(table.pts_seconds[-1]) + table.last_seconds if table.identities else 0.0
