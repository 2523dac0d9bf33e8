import csv
import json
import os
from pathlib import Path

import pytest
from tests.events.conftest import MakeTold

from kinescan.errors import ConfigError
from kinescan.events import sinks
from kinescan.events.sinks import CsvFile, JsonLines
from kinescan.events.told import FIELDS


def _ids(path: Path) -> list[str]:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [row["id"] for row in csv.DictReader(file)]
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


KINDS = [(JsonLines, "a.jsonl"), (CsvFile, "a.csv")]


def test_json_lines_hold_the_records(tmp_path: Path, make_told: MakeTold) -> None:
    sink = JsonLines(tmp_path / "a.jsonl")
    for told in (make_told(1), make_told(1, "end", sequence=2)):
        sink.deliver(told)
    first, second = (json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines())
    assert first == make_told(1).to_plain()
    assert (first["end_seconds"], second["end_seconds"], second["kind"]) == (None, 1.5, "end")


def test_csv_holds_a_header_and_a_line_a_record(tmp_path: Path, make_told: MakeTold) -> None:
    CsvFile(tmp_path / "a.csv").deliver(make_told(1))
    CsvFile(tmp_path / "a.csv").deliver(make_told(2, "end"))
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 3
    with (tmp_path / "a.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert tuple(first) == FIELDS
    assert (first["label"], first["end_seconds"], second["end_seconds"]) == ("fall, down stairs", "", "2.5")


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_a_file_is_continued_and_knows_its_position(
    tmp_path: Path, make_told: MakeTold, kind: type[JsonLines], name: str
) -> None:
    sink = kind(tmp_path / name)
    assert sink.position("s") == 0
    for told in (make_told(1), make_told(2), make_told(1, stream="t", sequence=7)):
        sink.deliver(told)
    again = kind(tmp_path / name)
    assert (again.position("s"), again.position("t"), again.position("u")) == (2, 7, 0)
    again.deliver(make_told(3))
    assert _ids(tmp_path / name) == ["s-1", "s-2", "t-1", "s-3"]


@pytest.mark.parametrize(("kind", "name"), KINDS)
@pytest.mark.parametrize("num_cut", [1, 5, 40])
def test_a_line_that_a_kill_has_cut_is_taken_away(
    tmp_path: Path, make_told: MakeTold, kind: type[JsonLines], name: str, num_cut: int
) -> None:
    sink = kind(tmp_path / name)
    sink.deliver(make_told(1))
    sink.deliver(make_told(2))
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-num_cut])
    again = kind(tmp_path / name)
    assert again.position("s") == 1
    again.deliver(make_told(2))
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_a_file_that_was_moved_away_begins_anew(
    tmp_path: Path, make_told: MakeTold, kind: type[JsonLines], name: str
) -> None:
    sink = kind(tmp_path / name)
    sink.deliver(make_told(1))
    (tmp_path / name).rename(tmp_path / f"old{name}")
    sink.deliver(make_told(2))
    assert _ids(tmp_path / name) == ["s-2"]


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_a_disk_that_is_full_leaves_no_half_line(
    tmp_path: Path, make_told: MakeTold, kind: type[JsonLines], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = kind(tmp_path / name)
    sink.deliver(make_told(1))
    content, write = (tmp_path / name).read_bytes(), os.write
    written: list[int] = []

    def full(handle: int, data: bytes) -> int:
        if written:
            raise OSError(28, "No space left on device")
        written.append(write(handle, data[:9]))
        return 9

    monkeypatch.setattr(sinks.os, "write", full)
    with pytest.raises(OSError, match="No space"):
        sink.deliver(make_told(2))
    monkeypatch.undo()
    assert (tmp_path / name).read_bytes() == content
    sink.deliver(make_told(2))
    assert _ids(tmp_path / name) == ["s-1", "s-2"]


@pytest.mark.parametrize(("kind", "name"), KINDS)
@pytest.mark.parametrize("text", ["my notes\n", "my notes", '{"a": 1}\n', "path,start,end,label\na.mp4,1,2,fall\n"])
def test_files_of_somebody_else_are_left_alone(tmp_path: Path, kind: type[JsonLines], name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=name):
        kind(tmp_path / name)
    assert (tmp_path / name).read_text() == text


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_what_can_be_no_file_is_refused(tmp_path: Path, kind: type[JsonLines], name: str) -> None:
    with pytest.raises(ConfigError, match="not a folder"):
        kind(tmp_path / "none" / name)
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="a folder"):
        kind(tmp_path / name)
    os.mkfifo(tmp_path / f"pipe{name}")
    with pytest.raises(ConfigError, match="a named pipe"):
        kind(tmp_path / f"pipe{name}")
