from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import av
import av.error
import torch

from kinescan.data.video.pictures import Field, PictureReader, is_hidden
from kinescan.data.video.timeline import TimedPacket, Timeline, read_timeline

# Codecs whose frames that nothing refers to can be left undecoded without touching the others.
SKIPPABLE_CODECS = frozenset({"h264", "mpeg4", "mpeg2video", "mpeg1video"})
# A packet of this size in MPEG-4 says "nothing new": filler after a packet that packs two frames.
_MPEG4_FILLER_BYTES = 8
# Codecs whose decoder's buffers carry something over from one key frame to the next.
_CARRIES_OVER = frozenset({"dirac"})
# What a packet may bring along that the decoder keeps: lost when decoding starts behind it.
_LASTING = ("palette", "new_extradata", "param_change")


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
        shown: the packet gives a frame to look at (not discarded by an edit list, hidden, cut, or the second field of
            a frame).
        is_b: the packet's frame may be shown before one that is decoded earlier.
        clean: a key packet from which on nothing refers to what comes before it, as far as the codec tells.
        second_fields: packets that complete the frame of the packet before them.
        marked: packets that the container marks as damaged; they are not shown.
        lasting: packets that bring along what the decoder keeps for those behind: a palette, a new header.
        num_empty: packets without content: "nothing new" in AVI.
        encrypted: packets are encrypted, and the key is not at hand.
        num_pictures: that all packets hold, by their start codes; only for MPEG-4, where two may share a packet.
        time_base: seconds in a tick.
        frame_seconds: distance of two frames by the header's average rate; 0 where it has none.
        reorder_depth: how many frames the decoder holds back to put them in order.
    """

    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    positions: list[int | None] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    key: list[bool] = field(default_factory=list)
    shown: list[bool] = field(default_factory=list)
    is_b: list[bool] = field(default_factory=list)
    clean: list[bool] = field(default_factory=list)
    second_fields: set[int] = field(default_factory=set)
    marked: list[int] = field(default_factory=list)
    lasting: list[int] = field(default_factory=list)
    num_pictures: list[int] = field(default_factory=list)
    num_empty: int = 0
    encrypted: bool = False
    time_base: Fraction = Fraction(1)
    frame_seconds: float = 0.0
    reorder_depth: int = 0

    def __repr__(self) -> str:
        return f"PacketTable({len(self.pts)} packets, {sum(self.key)} key, {sum(self.shown)} shown)"

    def with_shown(self, ordinals: Iterable[int], shown: bool) -> "PacketTable":
        """The table with these packets shown, or not."""
        changed = set(ordinals)
        return replace(self, shown=[shown if i in changed else value for i, value in enumerate(self.shown)])


@dataclass(frozen=True)
class FrameTable:
    """Which packet carries the frame shown at each index, and when.

    Attributes:
        identities: of every frame in the order of display: the ordinal of its packet or, with `by_rank`, its rank in
            the decoder's output.
        pts_seconds: [N], float64: when each frame is shown, by the file's own clock; where that clock starts anew, as
            in recordings that were joined, times continue from there.
        starts: for every packet of the file, the packet at which decoding has to start for it.
        last_seconds: how long the last frame is shown.
        by_rank: the file's times do not tell which packet is shown when; frames are counted as the decoder gives them.
        num_restarts: how often the file's clock starts anew.
        from_first: decoding always has to start at the first packet: it, or a later one, brings along what the decoder
            keeps for all behind it.
    """

    identities: list[int]
    pts_seconds: torch.Tensor
    starts: list[int]
    last_seconds: float
    by_rank: bool
    num_restarts: int = 0
    from_first: bool = False

    def __repr__(self) -> str:
        return f"FrameTable({len(self.identities)} frames, by_rank={self.by_rank})"

    def start(self, index: int) -> int:
        """The packet at which to start for the frame at this index; counting has to start at the first."""
        return 0 if self.by_rank or self.from_first else self.starts[self.identities[index]]

    def keep(self, identities: Iterable[int]) -> "FrameTable":
        """The table of only those frames that are named."""
        kept = set(identities)
        indices = [index for index, identity in enumerate(self.identities) if identity in kept]
        return replace(
            self, identities=[self.identities[index] for index in indices], pts_seconds=self.pts_seconds[indices]
        )


def read_packets(packets: Iterable[av.Packet], stream: av.VideoStream) -> PacketTable:
    """The table of a stream's packets; a demuxing error in the middle ends it there."""
    rate = stream.average_rate or stream.guessed_rate
    context = stream.codec_context
    codec, reorder_depth = context.codec.canonical_name, context.reorder_depth
    table = PacketTable(
        time_base=stream.time_base, frame_seconds=float(1 / rate) if rate else 0.0, reorder_depth=reorder_depth
    )
    pictures, first_field = PictureReader(codec, context.extradata), None
    num_empty, encrypted = 0, False
    try:
        for packet in packets:
            # the decoder takes an empty packet for the end of the stream
            if packet.size == 0:
                num_empty += packet.pos is not None and packet.pos >= 0
                continue
            data, ordinal = memoryview(packet), len(table.pts)
            # some writers call "nothing new" a key where the picture before it was one
            is_key = packet.is_keyframe and not (codec == "mpeg4" and packet.size <= _MPEG4_FILLER_BYTES)
            second_field, first_field = _second_field(first_field, pictures.lone_field(data))
            table.pts.append(packet.pts)
            table.dts.append(packet.dts)
            table.durations.append(packet.duration or 0)
            table.positions.append(packet.pos)
            table.sizes.append(packet.size)
            table.key.append(is_key)
            hidden = packet.is_discard or packet.is_corrupt or second_field or is_hidden(codec, data)
            table.shown.append(not hidden)
            table.is_b.append(reorder_depth > 0 and pictures.is_b(data))
            table.clean.append(is_key and pictures.starts_clean(data))
            if second_field:
                table.second_fields.add(ordinal)
                table.durations[ordinal - 1] += 0 if packet.pts == table.pts[ordinal - 1] else table.durations[ordinal]
            if packet.is_corrupt:
                table.marked.append(ordinal)
            if any(True for _ in packet.iter_sidedata()):
                if any(map(packet.has_sidedata, _LASTING)):
                    table.lasting.append(ordinal)
                encrypted = encrypted or packet.has_sidedata("encryption_info")
            if codec == "mpeg4":
                table.num_pictures.append(pictures.num_pictures(data))
    except av.error.FFmpegError:
        pass
    return replace(table, num_empty=num_empty, encrypted=encrypted)


def lay_out_frames(packets: PacketTable, *, codec: str, format_name: str, has_times: bool) -> FrameTable:
    """Orders the shown packets by their times; or counts them, where their times say nothing about the order.

    Args:
        packets: of one stream.
        codec: FFmpeg's name of it.
        format_name: FFmpeg's name of the container.
        has_times: whether the container stores times at all (raw streams do not).
    """
    shown = [ordinal for ordinal, is_shown in enumerate(packets.shown) if is_shown]
    timeline = _timeline(packets, shown, codec, format_name) if has_times else None
    if timeline is None:
        return FrameTable(
            list(range(len(shown))),
            _times_by_rank(packets, shown),
            _starts(packets, None),
            packets.frame_seconds,
            by_rank=True,
        )
    ticks_of = {ordinal: tick for ordinal in shown if (tick := timeline.ticks[ordinal]) is not None}
    identities = sorted(shown, key=ticks_of.__getitem__)
    seconds = torch.tensor([float(ticks_of[i] * packets.time_base) for i in identities], dtype=torch.float64)
    last = float(packets.durations[identities[-1]] * packets.time_base) if shown else 0.0
    return FrameTable(
        identities,
        seconds,
        _starts(packets, timeline.ticks),
        last or packets.frame_seconds,
        by_rank=False,
        num_restarts=len(timeline.restarts),
        from_first=bool(packets.lasting) or codec in _CARRIES_OVER,
    )


def lay_out_decoded(packets: PacketTable, order: list[int]) -> FrameTable:
    """The table of a stream that was decoded once, since its packets do not tell how many frames they give.

    Args:
        packets: of the stream.
        order: the packet of each frame, in the order in which the decoder gave them.
    """
    indices: list[int | None] = [None] * len(packets.pts)
    for index, ordinal in enumerate(order):
        indices[ordinal] = index
    starts = _starts(packets, indices)
    return FrameTable(
        order,
        _times_by_rank(packets, order),
        starts,
        packets.frame_seconds,
        by_rank=False,
        # the second picture of a packet is decoded with the next: started in between, the two never meet
        from_first=bool(packets.lasting) or max(packets.num_pictures, default=1) > 1,
    )


def counts_frames(packets: PacketTable) -> bool:
    """Whether there are as many frames as packets to show: MPEG-4 may say in a packet that there is no new frame."""
    fillers = sum(size <= _MPEG4_FILLER_BYTES for size in packets.sizes)
    return not packets.num_pictures or not fillers or sum(packets.num_pictures) - fillers == sum(packets.shown)


def _second_field(first: Field | None, lone: Field | None) -> tuple[bool, Field | None]:
    """Whether a packet completes the frame of the one before it, and the field that waits for its other one."""
    if lone is None or first is None:
        return False, lone
    completes = lone.frame_number == first.frame_number and lone.bottom != first.bottom
    return completes, None if completes else lone


def _timeline(packets: PacketTable, shown: list[int], codec: str, format_name: str) -> Timeline | None:
    timed = [
        TimedPacket(
            ordinal=ordinal,
            pts=pts,
            dts=packets.dts[ordinal],
            duration=packets.durations[ordinal],
            key=packets.key[ordinal],
            is_b=packets.is_b[ordinal],
        )
        for ordinal in shown
        if (pts := packets.pts[ordinal]) is not None
    ]
    if len(timed) < len(shown):
        return None
    if format_name == "avi" and any(packet.pts != packet.dts for packet in timed):
        # AVI stores no presentation times: with reordered frames FFmpeg guesses them
        return None
    if codec == "mpeg4" and any(packets.sizes[ordinal] <= _MPEG4_FILLER_BYTES for ordinal in shown):
        return None
    return read_timeline(
        timed, packets.pts, codec=codec, time_base=packets.time_base, reorder_depth=packets.reorder_depth
    )


def _times_by_rank(packets: PacketTable, shown: list[int]) -> torch.Tensor:
    """[N], float64, seconds: the stream's times in order, or the frame rate's where they are missing or doubled."""
    for times in (packets.pts, packets.dts):
        ticks = {tick for ordinal in shown if (tick := times[ordinal]) is not None}
        if shown and len(ticks) == len(shown):
            return torch.tensor([float(tick * packets.time_base) for tick in sorted(ticks)], dtype=torch.float64)
    return torch.arange(len(shown), dtype=torch.float64) * (packets.frame_seconds or 0.04)


def _starts(packets: PacketTable, ticks: list[int | None] | None) -> list[int]:
    """For each packet the last key packet that comes before it in the file and, where `ticks` tell, on the screen.

    A frame that follows a key packet in the file but is shown before it may refer to frames before that key packet.
    """
    starts: list[int] = []
    keys = [0]
    for ordinal, key in enumerate(packets.key):
        if key and ordinal:
            keys.append(ordinal)
        start, tick = keys[-1], None if ticks is None else ticks[ordinal]
        if ticks is not None and tick is not None:
            times = ((candidate, ticks[candidate]) for candidate in reversed(keys))
            start = next((candidate for candidate, first in times if first is not None and first <= tick), 0)
        starts.append(start)
    return starts


def plan_runs(table: FrameTable, indices: Sequence[int]) -> list[tuple[int, set[int]]]:
    """Where to start decoding, and for which frames: no packet is decoded twice, none between the runs at all.

    Args:
        table: of the video.
        indices: of the wanted frames, increasing.

    Returns:
        (ordinal of the first packet, identities of the wanted frames) of each run, in the order of the file.
    """
    runs: list[tuple[int, set[int]]] = []
    last_needed = -1
    for index in indices:
        start, identity = table.start(index), table.identities[index]
        if runs and (start <= last_needed or start == runs[-1][0]):
            runs[-1][1].add(identity)
        else:
            runs.append((start, {identity}))
        last_needed = max(last_needed, identity)
    return runs
