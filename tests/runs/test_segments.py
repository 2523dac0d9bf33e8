import csv
import json
from pathlib import Path

import pytest
from tests.bright_model import bright_model, write_blinking

from kinescan.errors import ConfigError
from kinescan.events.told import FIELDS
from kinescan.models.pks4 import PKS4
from kinescan.runs.events import plan_events
from kinescan.runs.segments import check_output, find_events


@pytest.fixture(scope="module")
def model() -> PKS4:
    return bright_model()


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_events_are_written_and_an_earlier_output_is_replaced(model: PKS4, tmp_path: Path, name: str) -> None:
    files = [write_blinking(tmp_path / "a.mp4", 10, 12, 10), write_blinking(tmp_path / "b.mp4", 5, 6, 5)]
    output = tmp_path / name
    for _ in range(2):
        check_output(output)
        found = find_events(model, tmp_path, files, plan_events([]), output=output)
    text = output.read_text()
    if name == "a.json":
        assert json.loads(text) == [video.to_plain() for video in found]
        return
    if name == "a.csv":
        records = list(csv.DictReader(text.splitlines()))
        assert tuple(records[0]) == FIELDS
    else:
        records = [json.loads(line) for line in text.splitlines()]
    assert [record["source"] for record in records] == [str(file) for file in files]
    assert [record["kind"] for record in records] == ["end", "end"]


@pytest.mark.parametrize("name", ["a.txt", "a", "missing/a.csv", "taken.csv", "taken.jsonl"])
def test_outputs_that_cannot_be_are_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    for taken in ("taken.csv", "taken.jsonl"):
        (tmp_path / taken).write_text("mine\n")
    with pytest.raises(ConfigError, match=name.split("/")[0]):
        check_output(tmp_path / name)
    assert (tmp_path / "taken.csv").read_text() == "mine\n"


def test_each_event_is_drawn_as_it_begins(model: PKS4, tmp_path: Path) -> None:
    files = [write_blinking(tmp_path / "a.mp4", 10, 12, 10, 4, 4), write_blinking(tmp_path / "b.mp4", 9)]
    (tmp_path / "c.mp4").write_bytes(b"none")
    found = find_events(
        model, tmp_path, [*files, tmp_path / "c.mp4"], plan_events([]), explain_folder=tmp_path / "seen" / "here"
    )
    assert [len(video.events) for video in found] == [2, 0, 0]
    drawn = sorted((tmp_path / "seen" / "here").iterdir())
    assert [path.name for path in drawn] == ["0000_000_a.png", "0000_001_a.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in drawn)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        find_events(model, tmp_path, files, plan_events([]), explain_folder=tmp_path / "file")
