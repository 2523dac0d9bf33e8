from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction

import av
import av.error
import torch

# Codecs whose frames that nothing refers to can be left undecoded without touching the others.
SKIPPABLE_CODECS = frozenset({"h264", "mpeg4", "mpeg2video", "mpeg1video"})
# A packet of this size in MPEG-4 says "nothing new": filler after a packet that packs two frames.
_MPEG4_FILLER_BYTES = 8


@dataclass(frozen=True)
class PacketTable:
    """What one pass over the packets of a stream shows, in the order of the file; no frame is decoded.

    Attributes:
        pts: presentation times in ticks.
        dts: decoding times in ticks.
        durations: in ticks; 0 where unknown.
        positions: byte offsets in the file.
        sizes: in bytes.
        key: decoding can start here.
        shown: the packet gives a frame to look at (not discarded by an edit list, hidden, or cut).
        time_base: seconds in a tick.
        frame_seconds: distance of two frames by the header's average rate; 0 where it has none.
    """

    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    positions: list[int | None] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    key: list[bool] = field(default_factory=list)
    shown: list[bool] = field(default_factory=list)
    time_base: Fraction = Fraction(1)
    frame_seconds: float = 0.0

    def __repr__(self) -> str:
        return f"PacketTable({len(self.pts)} packets, {sum(self.key)} key, {sum(self.shown)} shown)"


@dataclass(frozen=True)
class FrameTable:
    """Which packet carries the frame shown at each place, and when.

    Attributes:
        identities: of every frame in the order of display: the ordinal of its packet or, with `by_rank`, its rank in
            the decoder's output.
        pts_seconds: [N], float64: when each frame is shown, by the file's own clock.
        starts: for every packet of the file, the packet at which decoding has to start for it.
        last_seconds: how long the last frame is shown.
        by_rank: the file's times do not tell which packet is shown when; frames are counted as the decoder gives them.
    """

    identities: list[int]
    pts_seconds: torch.Tensor
    starts: list[int]
    last_seconds: float
    by_rank: bool

    def __repr__(self) -> str:
        return f"FrameTable({len(self.identities)} frames, by_rank={self.by_rank})"

    def start(self, place: int) -> int:
        """The packet at which to start for the frame at this place; counting has to start at the first."""
        return 0 if self.by_rank else self.starts[self.identities[place]]

    def keep(self, identities: Iterable[int]) -> "FrameTable":
        """The table of only those frames that are named."""
        kept = set(identities)
        places = [place for place, identity in enumerate(self.identities) if identity in kept]
        return replace(
            self, identities=[self.identities[place] for place in places], pts_seconds=self.pts_seconds[places]
        )

    def without_first(self, num_frames: int) -> "FrameTable":
        """The table of a stream whose decoder does not give the first frames; only where frames are counted."""
        rest = len(self.identities) - num_frames
        return replace(self, identities=self.identities[:rest], pts_seconds=self.pts_seconds[num_frames:])


def read_packets(packets: Iterable[av.Packet], stream: av.VideoStream) -> PacketTable:
    """The table of a stream's packets; a demuxing error in the middle ends it there."""
    rate = stream.average_rate or stream.guessed_rate
    table = PacketTable(time_base=stream.time_base, frame_seconds=float(1 / rate) if rate else 0.0)
    codec = stream.codec_context.codec.canonical_name
    try:
        for packet in packets:
            # the decoder takes an empty packet for the end of the stream
            if packet.size == 0:
                continue
            table.pts.append(packet.pts)
            table.dts.append(packet.dts)
            table.durations.append(packet.duration or 0)
            table.positions.append(packet.pos)
            table.sizes.append(packet.size)
            table.key.append(packet.is_keyframe)
            table.shown.append(not (packet.is_discard or packet.is_corrupt or is_hidden(codec, packet)))
    except av.error.FFmpegError:
        pass
    return table


def is_hidden(codec: str, packet: bytes | av.Packet) -> bool:
    """Whether a VP8 or VP9 packet only holds a picture for others to refer to ("alternate reference")."""
    data = memoryview(packet)
    if codec == "vp8":
        return not data[0] & 0x10
    if codec == "vp9":
        # a superframe (marked by its last byte) holds the hidden picture and the shown one
        if data[-1] & 0xE0 == 0xC0:
            return False
        # bits from the top: marker 2, profile 2, [reserved 1 in profile 3], show existing, frame type, show frame
        shift = 2 if data[0] & 0x30 == 0x30 else 3
        return not (data[0] >> shift | data[0] >> (shift - 2)) & 1
    return False


def lay_out_frames(packets: PacketTable, *, codec: str, format_name: str, has_times: bool) -> FrameTable:
    """Orders the shown packets by their times; or counts them, where their times say nothing about the order.

    Args:
        packets: of one stream.
        codec: FFmpeg's name of it.
        format_name: FFmpeg's name of the container.
        has_times: whether the container stores times at all (raw streams do not).
    """
    shown = [ordinal for ordinal, is_shown in enumerate(packets.shown) if is_shown]
    by_rank = not has_times or _times_mislead(packets, shown, codec, format_name)
    if by_rank:
        identities = list(range(len(shown)))
        ticks = _ticks_by_rank(packets, shown)
    else:
        ticks_of = {ordinal: tick for ordinal in shown if (tick := packets.pts[ordinal]) is not None}
        identities = sorted(shown, key=ticks_of.__getitem__)
        ticks = [ticks_of[ordinal] for ordinal in identities]
    seconds = torch.tensor([float(tick * packets.time_base) for tick in ticks], dtype=torch.float64)
    if by_rank and not ticks:
        seconds = torch.arange(len(shown), dtype=torch.float64) * (packets.frame_seconds or 0.04)
    last = float(packets.durations[identities[-1]] * packets.time_base) if shown and not by_rank else 0.0
    starts = _starts(packets, by_time=not by_rank)
    return FrameTable(identities, seconds, starts, last or packets.frame_seconds, by_rank)


def _times_mislead(packets: PacketTable, shown: list[int], codec: str, format_name: str) -> bool:
    pts = [packets.pts[ordinal] for ordinal in shown]
    if None in pts or len(set(pts)) < len(pts):
        return True
    if format_name == "avi" and any(packets.pts[ordinal] != packets.dts[ordinal] for ordinal in shown):
        # AVI stores no presentation times: with reordered frames FFmpeg guesses them
        return True
    return codec == "mpeg4" and any(packets.sizes[ordinal] <= _MPEG4_FILLER_BYTES for ordinal in shown)


def _ticks_by_rank(packets: PacketTable, shown: list[int]) -> list[int]:
    for times in (packets.pts, packets.dts):
        ticks = {tick for ordinal in shown if (tick := times[ordinal]) is not None}
        if len(ticks) == len(shown):
            return sorted(ticks)
    return []


def _starts(packets: PacketTable, *, by_time: bool) -> list[int]:
    """For each packet the last key packet that comes before it in the file and, `by_time`, also on the screen.

    A frame that follows a key packet in the file but is shown before it may refer to frames before that key packet.
    """
    starts: list[int] = []
    keys = [0]
    for ordinal, (tick, key) in enumerate(zip(packets.pts, packets.key, strict=True)):
        if key and ordinal:
            keys.append(ordinal)
        start = keys[-1]
        if by_time and tick is not None:
            ticks = ((candidate, packets.pts[candidate]) for candidate in reversed(keys))
            start = next((candidate for candidate, first in ticks if first is not None and first <= tick), 0)
        starts.append(start)
    return starts
