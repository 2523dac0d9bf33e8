import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

# MPEG's clocks have 33 bits: FFmpeg takes one that starts anew, far below, for one that ran over, and adds this.
_MPEG_TICK = Fraction(1, 90_000)
_WRAP_TICKS = 2**33
_LEAST_LEAP_TICKS = 60 * 90_000
# H.264 need not say by how much it reorders; FFmpeg then guesses it from the first frames.
_LEAST_REORDERING = 2
# Codecs whose B frames are always shown before one that was decoded earlier.
B_COMES_BEFORE = frozenset({"mpeg4", "mpeg1video", "mpeg2video"})


@dataclass(frozen=True)
class Timeline:
    """Times of packets that tell in which order their frames are shown.

    Attributes:
        ticks: one for each packet of the stream, increasing in the order of display; where the file's own clock starts
            anew, they continue from there. None for packets without a time, which are not shown.
        restarts: packets at which the file's clock starts anew.
    """

    ticks: list[int | None]
    restarts: list[int]

    def __repr__(self) -> str:
        return f"Timeline({len(self.ticks)} packets, {len(self.restarts)} restarts)"


@dataclass(frozen=True)
class TimedPacket:
    """What is known of a packet's position in time.

    Attributes:
        ordinal: its index in the file.
        pts: when it is shown, in ticks.
        dts: when it is decoded; None where the container does not say it.
        duration: in ticks; 0 where unknown.
        key: decoding can start here.
        is_b: its frame may be shown before one that is decoded earlier.
    """

    ordinal: int
    pts: int
    dts: int | None
    duration: int
    key: bool
    is_b: bool


def read_timeline(
    packets: Sequence[TimedPacket],
    pts: Sequence[int | None],
    *,
    codec: str,
    time_base: Fraction,
    reorder_depth: int,
) -> Timeline | None:
    """The clock of a stream, or None where its times cannot be those at which frames are shown.

    Times are trusted where they say of the order what the codec can do: no frame is overtaken by more than
    `reorder_depth` others, a key frame is shown after all that came before it in the file, and a stream that reorders
    has times out of order. A time that falls back otherwise starts a new clock, as in recordings that were joined.

    Args:
        packets: those that are shown, in the order of the file.
        pts: of all packets of the stream, in ticks.
        codec: FFmpeg's name.
        time_base: seconds in a tick.
        reorder_depth: how many frames the decoder holds back to put them in order; 0 where it never does.
    """
    parts = _split_at_restarts(packets, reorder_depth, runs_over=time_base == _MPEG_TICK)
    if not all(_is_believable(part, codec, reorder_depth) for part in parts):
        return None
    offsets = {0: 0}
    end: int | None = None
    for part in parts:
        if end is not None:
            offsets[part[0].ordinal] = end - min(packet.pts for packet in part)
        last = max(part, key=lambda packet: packet.pts)
        end = last.pts + offsets.get(part[0].ordinal, 0) + max(1, last.duration or _usual_step(part))
    ticks: list[int | None] = []
    offset = 0
    for ordinal, time in enumerate(pts):
        offset = offsets.get(ordinal, offset)
        ticks.append(None if time is None else time + offset)
    return Timeline(ticks, [part[0].ordinal for part in parts[1:]])


def _split_at_restarts(
    packets: Sequence[TimedPacket], reorder_depth: int, *, runs_over: bool
) -> list[list[TimedPacket]]:
    parts: list[list[TimedPacket]] = []
    highest, last_dts = 0, None
    for packet in packets:
        falls_back = bool(parts) and (
            (packet.dts is not None and last_dts is not None and packet.dts < last_dts and packet.pts <= highest)
            or (packet.pts < highest and (packet.key or not reorder_depth))
            or (packet.pts == highest and packet.key and reorder_depth > 0)
            or (runs_over and highest < _WRAP_TICKS <= packet.pts and packet.pts - highest > _LEAST_LEAP_TICKS)
        )
        if falls_back or not parts:
            parts.append([])
            highest = packet.pts
        parts[-1].append(packet)
        highest, last_dts = max(highest, packet.pts), packet.dts
    return parts


def _is_believable(part: Sequence[TimedPacket], codec: str, reorder_depth: int) -> bool:
    deepest = max(reorder_depth, _LEAST_REORDERING) if reorder_depth and codec == "h264" else reorder_depth
    before: list[int] = []
    overtaken = False
    for packet in part:
        index = bisect.bisect_left(before, packet.pts)
        depth = len(before) - index
        if depth > deepest or (depth and before[index] == packet.pts):
            return False
        if codec in B_COMES_BEFORE and packet.is_b and not depth:
            return False
        overtaken = overtaken or depth > 0
        before.insert(index, packet.pts)
    return overtaken or not reorder_depth or not any(packet.is_b for packet in part)


def _usual_step(part: Sequence[TimedPacket]) -> int:
    """The median distance of two frames."""
    times = sorted(packet.pts for packet in part)
    steps = sorted(later - earlier for earlier, later in itertools.pairwise(times))
    return steps[len(steps) // 2] if steps else 0
