"""`kinescan data convert` on small exports of BORIS."""

from collections.abc import Callable
from typing import Any

import pytest

Rows = list[tuple[str, str, str, str]]
Convert = Callable[..., Rows]
FALL: Rows = [("a.mp4", "0.5", "1.25", "fall")]
NOTHING: Rows = [("b.mp4", "", "", "")]


def said(convert: Any) -> str:
    return " ".join(str(convert.said).split())  # long paths break the lines elsewhere


NEW = (
    "Observation id,Observation date,Description,Observation type,Source,Time offset (s),Coding duration,"
    "Media duration (s),FPS (frame/s),Subject,Observation duration by subject by observation,Behavior,"
    "Behavioral category,Modifier #1,Behavior type,Start (s),Stop (s),Duration (s),Media file name,Image index start,"
    "Image index stop,Image file path start,Image file path stop,Comment start,Comment stop\n"
)
OLD = (
    "Observation id\tObservation date\tDescription\tMedia file\tTotal length\tFPS\tSubject\tBehavior\t"
    "Behavioral category\tModifiers\tBehavior type\tStart (s)\tStop (s)\tDuration (s)\tComment start\tComment stop\n"
)


def new_row(start: str, stop: str, kind: str = "STATE", *, subject: str = "ann", media: str = "a.mp4") -> str:
    return (
        f'obs1,2026-01-01,"two, words",Media file(s),player #1:clips/{media},0.0,3.0,3.0,20.0,{subject},3.0,fall,'
        f"accident,left,{kind},{start},{stop},0.75,clips/{media},10,25,NA,NA,,\n"
    )


def old_row(start: str, stop: str, kind: str = "STATE") -> str:
    cells = ("obs1", "2026-01-01", "", "C:\\clips\\a.mp4", "3.0", "20.0", "ann", "fall", "", "left", kind, start, stop)
    return "\t".join((*cells, "0.75", "", "")) + "\n"


def test_boris_aggregated_events_are_read(convert: Convert) -> None:
    for row in (new_row("0.5", "1.25"), new_row("00:00:00.500", "00:00:01.250")):
        assert convert("x.csv", NEW + row) == FALL
    assert convert("x.tsv", (NEW + new_row("0.5", "1.25")).replace('"two, words"', "two").replace(",", "\t")) == FALL
    assert convert("x.tsv", OLD + old_row("0.5", "1.25")) == FALL
    assert convert("x.tsv", (OLD + old_row("0.5", "1.25")).replace(" (s)", "")) == FALL
    assert convert("x.tsv", (OLD + old_row("0.5", "1.25")).encode("utf-16")) == FALL
    fields = ("--label", "behavior,modifiers,subject")
    assert convert("x.csv", NEW + new_row("0.5", "1.25"), *fields) == [("a.mp4", "0.5", "1.25", "fall left ann")]
    both = NEW + new_row("0.5", "1.25") + new_row("2", "2.5", subject="bob")
    assert convert("x.csv", both, "--where", "subject=ann") == FALL


@pytest.mark.parametrize(
    ("offset", "start", "stop"),
    [("10.0", "10.5", "11.25"), ("-0.25", "0.25", "1.0"), ("00:00:10.000", "10.5", "11.25"), ("NA", "0.5", "1.25")],
)
def test_boris_times_are_less_the_offset_that_it_added(convert: Convert, offset: str, start: str, stop: str) -> None:
    assert convert("x.csv", NEW + new_row(start, stop).replace(",0.0,3.0,", f",{offset},3.0,")) == FALL
    above = f"Observation id\tobs1\n\nTime offset (s)\t{offset}\nMedia file(s)\nPlayer #1\tclips/a.mp4\n\n"
    header = "Time\tMedia file path\tTotal length\tFPS\tSubject\tBehavior\tBehavioral category\tComment\tStatus\n"
    rows = "".join(
        f"{time}\tclips/a.mp4\t3\t20\tann\tfall\t\t\t{status}\n" for time, status in ((start, "START"), (stop, "STOP"))
    )
    assert convert("x.tsv", above + header + rows) == FALL
    broken = NEW + new_row(start, stop).replace(",0.0,3.0,", ",ten,3.0,")
    assert convert("x.csv", broken, code=1) == []
    assert "'ten'" in said(convert)


def test_boris_points_and_open_states(convert: Convert) -> None:
    text = NEW + new_row("0.5", "0.5", "POINT") + new_row("1", "", "POINT") + new_row("2", "", "STATE")
    assert convert("x.csv", text, code=1) == []
    assert "line 4: a STATE" in said(convert)
    assert "--point" in said(convert)
    assert convert("x.csv", NEW + new_row("0.5", "0.5", "POINT"), "--point", "0.75") == FALL


def test_boris_files_on_one_clock_are_told_apart(convert: Convert) -> None:
    row = (
        new_row("3.5", "4.25")
        .replace("player #1:clips/a.mp4", "player #1:b.mp4;a.mp4")
        .replace("3.0,20.0", "3.0;3.0,20;20")
    )
    assert convert("x.csv", NEW + row) == FALL
    row = row.replace(",3.0;3.0,", ",,")
    assert convert("x.csv", NEW + row, code=1) == []
    assert "a.mp4 follows" in said(convert)


ONE_CLOCK = (
    (("2.25", "4.0"), [("a.mp4", "2.25", "3", "fall"), ("b.mp4", "0", "1", "fall")]),
    (("2.25", "3.004"), [("a.mp4", "2.25", "3", "fall")]),
    (("2.25", "9.5"), [("a.mp4", "2.25", "3", "fall"), ("b.mp4", "0", "6.5", "fall")]),
)
"""Two files of 3 s on one clock: when an event starts and stops, and what of it is in which file."""


@pytest.mark.parametrize(("times", "expected"), ONE_CLOCK)
def test_boris_events_over_two_files_are_divided(convert: Convert, times: tuple[str, str], expected: Rows) -> None:
    row = new_row(*times).replace("clips/a.mp4,0.0", "a.mp4;b.mp4,0.0").replace("3.0,20.0", "3.0;3.0,20;20")
    late = float(times[1]) > 6  # beyond the end of both: the list is written, and it is told
    assert convert("x.csv", NEW + row, code=int(late)) == expected
    header = NEW.replace("Start (s),Stop (s),Duration (s)", "Time")
    rows = "".join(
        row.replace(f"STATE,{times[0]},{times[1]},0.75,clips/a.mp4", f"{kind},{time},clips/{media}")
        for kind, time, media in (("START", times[0], "a.mp4"), ("STOP", times[1], "b.mp4"))
    )
    # a row of b.mp4 says that it was watched
    assert convert("y.csv", header + rows, code=int(late)) == expected + (NOTHING if len(expected) == 1 else [])


def test_boris_tabular_events_are_paired(convert: Convert) -> None:
    above = "Observation id\tobs1\n\nMedia file(s)\nPlayer #1\tclips/a.mp4\n\n"
    header = "Time\tMedia file path\tTotal length\tFPS\tSubject\tBehavior\tBehavioral category\tComment\tStatus\n"
    rows = [("0.5", "fall", "START"), ("0.7", "blink", "POINT"), ("1.25", "fall", "STOP"), ("2", "run", "START")]
    body = "".join(f"{time}\tclips/a.mp4\t3\t20\tann\t{what}\t\t\t{status}\n" for time, what, status in rows)
    assert convert("x.tsv", above + header + body, code=1) == FALL
    assert "line 10: 'run'" in said(convert)


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (OLD + old_row("0.5", "1.25"), ("--label", "behaviour"), "'behavior'"),
        (OLD + old_row("0.5", "1.25"), ("--where", "subject"), "--where takes FIELD=VALUE"),
        (OLD + old_row("0.5", "1.25"), ("--format", "bors"), "'boris'"),
        (OLD + old_row("0.5", "1.25"), ("--format", "cvat"), "XML"),
        (OLD + old_row("0.5", "1.25").replace("a.mp4", "lost.mp4"), (), "'C:\\\\clips\\\\lost.mp4'"),
    ],
)
def test_what_boris_rows_do_not_hold_is_refused(
    convert: Convert, content: str, flags: tuple[str, ...], message: str
) -> None:
    assert message in str(convert("x.tsv", content, *flags, code=2)).replace("\\\\\\\\", "\\\\")
