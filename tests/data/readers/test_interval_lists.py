from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.mentions import mentions

from kinescan.config import build_run
from kinescan.data.interval_layouts import find_interval_layout, interval_held_out_name
from kinescan.data.interval_listing import read_intervals
from kinescan.data.intervals import IntervalTable
from kinescan.data.video import VideoReader, write_video
from kinescan.errors import ConfigError
from kinescan.runs.datasets import read_videos

FALL = [("a.mp4", "fall", 0.5, 1.25)]
HEADER = "path,start,end,label\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of 3 s (30 frames), one of them in a folder of its own, and one that cannot be read."""
    root = tmp_path_factory.mktemp("intervals")
    for name in ("a.mp4", "sub/b, c.mp4"):
        write_video(root / name, torch.zeros(30, 3, 16, 16, dtype=torch.uint8), fps=10)
    (root / "broken.mp4").write_bytes(b"no video")
    return root


@pytest.fixture
def read(folder: Path) -> Callable[..., IntervalTable]:
    def read(text: str | bytes, **options: object) -> IntervalTable:
        file = folder / "labels.csv"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_intervals(file, **options)  # type: ignore[arg-type]

    return read


def rows(table: IntervalTable) -> list[tuple[str, str, float, float]]:
    return [
        (video.video_id, item.label, round(item.start_seconds, 6), round(item.end_seconds, 6))
        for video in table.videos
        for item in video.intervals
    ]


@pytest.mark.parametrize(
    "text",
    [
        HEADER + "a.mp4,0.5,1.25,fall\n",
        "a.mp4,0.5,1.25,fall\n",
        "a.mp4,fall,0.5,1.25\n",
        "a.mp4\t0.5\t1.25\tfall\n",
        "a.mp4;0,5;1,25;fall\n",
        "a.mp4|0.5|1.25|fall\n",
        "a.mp4 0.5 1.25 fall\n",
        "a.mp4  fall  0.5  1.25\n",
        'a.mp4,"0,5","1,25",fall\n',
        "path;start;end;label\na.mp4;0,5;1,25;fall\n",
        "path\tstart\tend\tlabel\na.mp4\t0,5\t1,25\tfall\n",
        "\ufeff" + HEADER + "a.mp4,0.5,1.25,fall\r\n",
        (HEADER + "a.mp4,0.5,1.25,fall\n").encode("utf-16"),
        (HEADER + "a.mp4,0.5,1.25,fall\n").encode("utf-16-le"),
        b"\xfe\xff" + (HEADER + "a.mp4,0.5,1.25,fall\n").encode("utf-16-be"),
        "sep=;\npath;start;end;label\na.mp4;0.5;1.25;fall\n",
        "label,end,start,path\nfall,1.25,0.5,a.mp4\n",
        "video,label,start,end\na.mp4,fall,0.5,1.25\n",
        "Video;Start (s);Stop (s);Class\na.mp4;0.5;1.25;fall\n",
        "file,start_ms,end_ms,label\na.mp4,500,1250,fall\n",
        "file,Begin Time,End Time,event\na.mp4,0:00.5,00:00:01.250,fall\n",
        "file,onset,duration,label\na.mp4,0.5,0.75,fall\n",
        "# my labels\n# path,start,end,label\na.mp4,0.5,1.25,fall\n",
        "#path,start,end,label\n\n\na.mp4,0.5,1.25,fall\n\n",
        ",path,start,end,label\n0,a.mp4,0.5,1.25,fall\n",
        "path,start,end,label,score,annotator\na.mp4,0.5,1.25,fall,0.9,me\n",
        HEADER + "a.mp4,0.5,1.25,fall\na.mp4,0.5,1.25,fall\n",
        HEADER + "a.mp4 , 0.5 s , 1.25 s , fall \n",
        HEADER + "./a.mp4,0.5,1.25,fall\n",
        HEADER + "/home/ann/clips/a.mp4,0.5,1.25,fall\n",
        HEADER + "C:\\clips\\a.mp4,0.5,1.25,fall\n",
        HEADER + "a,0.5,1.25,fall\n",
        HEADER + "a.mp4,0.5,1.25,fall\na.mp4,1.25,2,background\na.mp4,2,3,\n",
    ],
)
def test_lists_of_many_programs_are_read(read: Callable[..., IntervalTable], text: str | bytes) -> None:
    table = read(text)
    assert (rows(table), table.classes, table.problems) == (FALL, ("fall",), ())


def test_a_row_without_label_says_that_nothing_happens(read: Callable[..., IntervalTable], folder: Path) -> None:
    for row in ('"sub/b, c.mp4",,,', '"sub/b, c.mp4"', '"sub/b, c.mp4",0,3,Background', '"sub/b, c.mp4",1,2,'):
        table = read(f"{HEADER}{row}\na.mp4,2,3,run\na.mp4,0,1,fall\n")
        assert rows(table) == [("a.mp4", "fall", 0.0, 1.0), ("a.mp4", "run", 2.0, 3.0)]
        assert [(video.video_id, video.line) for video in table.videos] == [("sub/b, c.mp4", 2), ("a.mp4", 3)]
        assert (table.classes, table.problems) == (("fall", "run"), ())
        assert table.videos[0].path == folder / "sub/b, c.mp4"


@pytest.mark.parametrize(("end", "hinted"), [(4, False), (28, True), (99, False), (2900, True)])
def test_an_interval_that_is_a_little_too_long_is_not_taken_for_one_in_frames(
    read: Callable[..., IntervalTable], end: int, hinted: bool
) -> None:
    """The video has 30 frames in 3 s."""
    [problem] = read(f"{HEADER}a.mp4,2,{end},run\n").problems
    assert ("divide them by" in problem.reason) == hinted


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("a.mp4,2,1,run", r"end \(1.*before.*2\)"),
        ("a.mp4,2,2,run", "both 2"),
        ("a.mp4,-1,1,run", r"start \(-1\) lies before 0"),
        ("a.mp4,2,5,run", r"2.*5.*beyond.*3 s\)"),
        ("a.mp4,20,28,run", "30 frames.*frame.*10"),
        ("a.mp4,2000,2900,run", "milliseconds"),
        ("lost.mp4,1,2,run", "lost.mp4 is not there.*data.root"),
        ("http://me:secret@host/a.mp4,1,2,run", r"\*\*\*@host/a.mp4"),
        ("a.mp4,nan,2,run", "'nan'.*finite"),
        ("a.mp4,1,inf,run", "'inf'.*finite"),
        ("a.mp4,soon,2,run", "'soon'"),
        ("a.mp4,1:75,2:10,run", "59"),
        ("a.mp4,,2,run", "start"),
        ("a.mp4,1,,run", "end"),
        ("a.mp4,,,run", "'run'"),
        ("a.mp4,,,", r"a.mp4.*line 2\)"),
        (",1,2,run", "path"),
        ("a.mp4,0.7,2,run", "'run'.*0.7.*2.*'fall'.*0.5.*1.25.*2.*data.overlaps"),
        ("a.mp4,0.5,2,fall", "overlaps 'fall'"),
        ("a.mp4,1,5,2,0,run", "decimal sign"),
        ("a.mp4,1,2," + "x" * 1500, "1,500 letters"),
        ("y" * 5000 + ",1,2,run", "5,000 letters"),
    ],
)
def test_a_wrong_row_is_named_with_its_line_and_the_others_are_read(
    read: Callable[..., IntervalTable], row: str, named: str
) -> None:
    table = read(f"{HEADER}a.mp4,0.5,1.25,fall\n\n{row}\n")
    assert rows(table) == FALL
    [problem] = table.problems
    assert problem.line == 4
    with pytest.raises(ConfigError, match=rf"labels.csv: 1 row is wrong.*line 4: .*{named}"):
        table.require_sound("labels.csv")


def test_all_wrong_rows_are_logged_by_line(
    read: Callable[..., IntervalTable], caplog: pytest.LogCaptureFixture
) -> None:
    wrong = [f"a.mp4,{number},1,run" for number in range(2, 9)]
    table = read(HEADER + "\n".join(["a.mp4,0.5,1.25,fall", "lost.mp4,0,1,run", "lost.mp4,1,2,run", *wrong]))
    assert [problem.line for problem in table.problems] == list(range(3, 12))
    with pytest.raises(ConfigError, match=r"9 rows are wrong.*line 3.*line 5.*6 more"):
        table.require_sound("x.csv")
    assert all(f"x.csv, line {number}: " in caplog.text for number in range(3, 12))


def test_overlaps_are_allowed_on_demand_and_rounding_is_no_overlap(read: Callable[..., IntervalTable]) -> None:
    text = HEADER + "a.mp4,0.5,1.25,fall\na.mp4,0.7,2,run\na.mp4,0.5,1.25,fall\n"
    assert rows(read(text, overlaps=True)) == [*FALL, ("a.mp4", "run", 0.7, 2.0)]
    table = read(HEADER + "a.mp4,0.5,1.255,fall\na.mp4,1.25,2,run\n")
    assert (rows(table), table.problems) == ([*FALL, ("a.mp4", "run", 1.25, 2.0)], ())
    assert rows(read(HEADER + "a.mp4,2.5,3.2,fall\n")) == [("a.mp4", "fall", 2.5, 3.0)]


def test_a_video_that_cannot_be_read_stays_for_the_training_to_say(read: Callable[..., IntervalTable]) -> None:
    table = read(HEADER + "broken.mp4,5,90,fall\n")
    assert (rows(table), table.problems) == ([("broken.mp4", "fall", 5.0, 90.0)], ())


def test_times_are_counted_from_the_first_frame_wherever_the_files_clock_starts(
    read: Callable[..., IntervalTable], folder: Path
) -> None:
    write_video(folder / "late.ts", torch.zeros(30, 3, 16, 16, dtype=torch.uint8), fps=10)
    with VideoReader(folder / "late.ts") as video:
        assert float(video.pts_seconds[0]) > 0.05
    table = read(HEADER + "late.ts,0,1.25,fall\nlate.ts,1.5,3,run\nlate.ts,3.5,4,run\n")
    expected = [("fall", 0.0, 1.25), ("run", 1.5, 3.0)]
    assert rows(table) == [("late.ts", label, round(start, 6), round(end, 6)) for label, start, end in expected]
    assert [problem.line for problem in table.problems] == [4]


def test_videos_of_which_all_rows_are_wrong_are_not_called_empty(read: Callable[..., IntervalTable]) -> None:
    table = read(HEADER + 'a.mp4,2,1,fall\n"sub/b, c.mp4",7,8,fall\n')
    assert (table.videos, [problem.line for problem in table.problems]) == ([], [2, 3])


def test_classes_are_held_against_those_of_training(read: Callable[..., IntervalTable]) -> None:
    table = read(HEADER + "a.mp4,0.5,1.25,fall\na.mp4,2,3,rum\n", classes=["fall", "run"])
    assert table.classes == ("fall", "run")
    [problem] = table.problems
    assert mentions(problem.reason, "'rum'", "2", "'run'?")


def test_groups_come_from_a_column_or_a_pattern(read: Callable[..., IntervalTable]) -> None:
    text = 'path,start,end,label,Person\na.mp4,0.5,1.25,fall,ann\na.mp4,2,3,run,ann\n"sub/b, c.mp4",,,,bob\n'
    assert [video.group for video in read(text, group="column person").videos] == ["ann", "bob"]
    assert [video.group for video in read(text, group=r"(\w)\.mp4").videos] == ["a", "c"]
    with pytest.raises(ConfigError, match=r"line 1.*'Place'.*Columns"):
        read(text, group="column Place")
    with pytest.raises(ConfigError, match=r"'a.mp4'"):
        read(text, group=r"P(\d+)")
    [problem] = read(text.replace("run,ann", "run,eve"), group="column person").problems
    assert (problem.line, "'eve'" in problem.reason and "'ann'" in problem.reason) == (3, True)
    [problem] = read(text.replace("run,ann", "run,"), group="column person").problems
    assert (problem.line, "group" in problem.reason) == (3, True)


def test_a_column_of_parts_divides_a_list(read: Callable[..., IntervalTable], folder: Path) -> None:
    text = 'path,start,end,label,subset\na.mp4,0.5,1.25,fall,training\n"sub/b, c.mp4",1,2,fall,validation\n'
    assert [video.video_id for video in read(text).videos] == ["a.mp4"]
    assert [video.video_id for video in read(text, part="test").videos] == ["sub/b, c.mp4"]
    assert interval_held_out_name(folder / "labels.csv") == "validation"
    with pytest.raises(ConfigError, match="parts"):
        read(text.replace("training", "validation"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,start_frame,end_frame,label\na.mp4,5,12,fall\n", "line 1: .*'start_frame'.*kinescan data convert"),
        ("path,start,end\na.mp4,0.5,1\n", "line 1: .*none of labels"),
        ("path,start,start,end,label\na.mp4,0,0,1,fall\n", "line 1.*'start'"),
        (HEADER, "lists"),
        ("path,start,end,label,set\na.mp4,1,2,fall,train\na.mp4,2,3,fall,left\na.mp4,2,3,x,val\n", "'left'"),
    ],
)
def test_lists_that_cannot_be_understood_are_refused(
    read: Callable[..., IntervalTable], text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"labels.csv.*{message}"):
        read(text)


@pytest.mark.parametrize("name", ["a.json", "a.eaf", "a.xml", "a.zip"])
def test_exports_of_tools_are_told_where_to_go(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("[1]")
    with pytest.raises(ConfigError, match=f"{name}.*kinescan data convert {name} labels.csv"):
        read_videos(build_run({"data": {"train": str(tmp_path / name)}}))


def test_lists_of_clips_stay_what_they_are(folder: Path) -> None:
    file = folder / "clips.csv"
    for text in ("a.mp4,fall\n", "path,label\na.mp4,fall\n", "a.mp4 fall\n", "path,label,start\na.mp4,x,1\n"):
        file.write_text(text)
        assert find_interval_layout(file) is None
    assert find_interval_layout(folder / "a.mp4") is None
    assert find_interval_layout(folder) is None
    (folder / "clips.csv").write_text(HEADER + "a.mp4,0,1,fall\n")
    assert find_interval_layout(file) == "intervals"
    assert find_interval_layout(file, "list") is None


def test_a_folder_with_lists_of_its_parts_is_read(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "train.csv").write_text(HEADER + "a.mp4,0.5,1.25,fall\n")
    (tmp_path / "test.csv").write_text(HEADER + '"sub/b, c.mp4",0,1,fall\n')
    assert find_interval_layout(tmp_path, root=folder) == "intervals"
    assert interval_held_out_name(tmp_path, root=folder) == "test"
    assert rows(read_intervals(tmp_path, root=folder)) == FALL
    assert rows(read_intervals(tmp_path, root=folder, part="test")) == [("sub/b, c.mp4", "fall", 0.0, 1.0)]
