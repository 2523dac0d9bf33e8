from fractions import Fraction

import pytest

from kinescan.data.video.pictures import is_hidden
from kinescan.data.video.table import FrameTable, PacketTable, lay_out_frames, plan_runs


def packets(pts: list[int | None], key: list[int], *, dts: list[int | None] | None = None) -> PacketTable:
    count = len(pts)
    return PacketTable(
        pts=pts,
        dts=dts or list(range(count)),
        durations=[1] * count,
        positions=[100 * index for index in range(count)],
        sizes=[50] * count,
        key=[index in key for index in range(count)],
        shown=[True] * count,
        is_b=[False] * count,
        time_base=Fraction(1, 10),
        frame_seconds=0.1,
        reorder_depth=2,
    )


def lay_out(table: PacketTable, *, codec: str = "h264", format_name: str = "mov", has_times: bool = True) -> FrameTable:
    return lay_out_frames(table, codec=codec, format_name=format_name, has_times=has_times)


def test_frames_are_ordered_by_their_times() -> None:
    table = lay_out(packets([0, 3, 1, 2], [0]))
    assert table.identities == [0, 2, 3, 1]
    assert table.pts_seconds.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert not table.by_rank


def test_leading_frames_start_at_the_key_packet_before() -> None:
    """Packets 4 and 5 follow the key packet 3 in the file but are shown before it (an open group of pictures)."""
    table = lay_out(packets([0, 1, 2, 5, 3, 4, 6], [0, 3]))
    assert [table.start(index) for index in range(7)] == [0, 0, 0, 0, 0, 3, 3]


@pytest.mark.parametrize("pts", [[0, None, 2], [0, 1, 1]])
def test_missing_or_doubled_times_make_frames_count_by_rank(pts: list[int | None]) -> None:
    table = lay_out(packets(pts, [0]))
    assert table.by_rank
    assert table.identities == [0, 1, 2]
    assert table.pts_seconds.tolist() == pytest.approx([0.0, 0.1, 0.2])


def test_guessed_times_of_avi_are_not_trusted() -> None:
    reordered = packets([1, 3, 2, 4], [0], dts=[0, 1, 2, 3])
    assert lay_out(reordered, format_name="avi").by_rank
    assert not lay_out(packets([0, 1, 2], [0]), format_name="avi").by_rank


def test_runs_decode_nothing_twice_and_skip_what_is_not_needed() -> None:
    table = lay_out(packets(list(range(30)), [0, 10, 20]))
    assert plan_runs(table, [1, 5, 25]) == [(0, {1, 5}), (20, {25})]
    assert plan_runs(table, [9, 10]) == [(0, {9}), (10, {10})]
    # a frame of an open group needs the run before it: the key packet in between is passed on the way
    leading = lay_out(packets([0, 1, 2, 5, 3, 4, 6], [0, 3]))
    assert plan_runs(leading, [4, 5]) == [(0, {5, 3})]


@pytest.mark.parametrize(
    ("codec", "data", "hidden"),
    [
        ("vp8", b"\x10\x00", False),
        ("vp8", b"\x00\x00", True),
        ("vp9", b"\x82\x00", False),
        ("vp9", b"\x80\x00", True),
        ("vp9", b"\x88\x00", False),
        ("vp9", b"\x80\xc1", False),
        ("vp9", b"\xb1\x00", False),
        ("vp9", b"\xb0\x00", True),
        ("h264", b"\x00\x00", False),
    ],
)
def test_alternate_reference_packets_are_hidden(codec: str, data: bytes, hidden: bool) -> None:
    assert is_hidden(codec, data) is hidden
