import json
from pathlib import Path

import pytest
import torch
from tests.mentions import mentions
from typer.testing import CliRunner

from kinescan.cli.main import build_app
from kinescan.data.interval_plot import plot_lengths
from kinescan.data.interval_summary import ClassLengths, bin_edges, draw, histogram
from kinescan.data.video import write_video
from kinescan.runs.check import check


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Labels of two videos of 3 s, some of them wrong."""
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, torch.randint(0, 256, (30, 3, 16, 16), dtype=torch.uint8), fps=10)
    rows = ["a.mp4,0.5,1.25,fall,ann", "a.mp4,1.5,1.75,run,ann", "a.mp4,2,2.75,fall,ann", "b.mp4,,,,bob"]
    (tmp_path / "test.csv").write_text("path,start,end,label,person\nb.mp4,0,1,rum,ann\n")
    file = tmp_path / "labels.csv"
    file.write_text("\n".join(["path,start,end,label,person", *rows]) + "\n")
    return file


def test_labels_are_counted_and_drawn(labels: Path, tmp_path: Path) -> None:
    found = check(labels, num_workers=0, output=tmp_path / "out", overrides=["data.group=column person"])
    assert found.is_sound()
    text = (tmp_path / "out/check.txt").read_text(encoding="utf-8")
    assert mentions(text, "train: 2 of 2 videos", "2 groups", "3 intervals of 2 classes", "in 1 videos")
    assert mentions(text, "fall", "2", "1", "0.75 s", "0.75 s", "0.75 s", "25.0 %", "\u2588")
    assert mentions(text, "run", "1", "1", "0.25 s", "0.25 s", "0.25 s", "4.2 %", "\u2588")
    content = json.loads((tmp_path / "out/check.json").read_text())["intervals"]["train"]
    assert content["classes"][0] == {
        "label": "fall",
        "intervals": 2,
        "videos": 1,
        "shortest_seconds": 0.75,
        "median_seconds": 0.75,
        "longest_seconds": 0.75,
        "all_seconds": 1.5,
    }
    assert (content["videos_in_which_nothing_happens"], content["wrong_rows"]) == (1, [])
    assert (tmp_path / "out/train_lengths.png").read_bytes().startswith(b"\x89PNG")


def test_all_wrong_rows_unknown_classes_and_shared_groups_are_listed(labels: Path) -> None:
    wrong = [f"a.mp4,{number},1,run,ann" for number in range(2, 17)]
    labels.write_text(labels.read_text() + "\n".join(wrong) + "\n")
    found = check(labels, num_workers=0, test=labels.parent / "test.csv", overrides=["data.group=column person"])
    assert not found.is_sound()
    assert [row["line"] for row in found.to_json()["intervals"]["train"]["wrong_rows"]] == list(range(6, 21))
    text = found.to_text()
    assert all(f"line {number}: " in text for number in range(6, 21))
    assert mentions(text, "of test (1)", "line 2: ", "'rum'", "'run'")
    assert mentions(text, "(1)", "ann")
    assert mentions(text, "classes of test", "fall", "run")
    assert found.to_json()["train_and_test"][0][0]["id"] == "b.mp4"


def test_videos_beside_the_listed_ones_are_named(labels: Path) -> None:
    (labels.parent / "c.mp4").write_bytes((labels.parent / "a.mp4").read_bytes())
    found = check(labels, num_workers=0, decode=False)
    assert found.unlisted == (str(labels.parent / "c.mp4"),)
    assert (found.is_sound(), mentions(found.to_text(), "without labels", "(1)", "c.mp4")) == (True, True)


def test_bins_hold_every_length() -> None:
    for lengths in ([1.0], [0.5, 0.5], [0.0, 2.0], [0.04, 0.08, 3600.0]):
        counts = histogram(lengths, bin_edges(lengths))
        assert sum(counts) == len(lengths)
        assert counts[-1] or len(set(lengths)) == 1
    assert draw([]) == ""
    assert draw([1, 0, 8]) == "\u2581 \u2588"


def test_many_and_no_classes_are_drawn(tmp_path: Path) -> None:
    many = [ClassLengths(label=f"${number}$", num_videos=1, seconds=(0.0, number + 1.0)) for number in range(70)]
    for classes in (many, [], many[:1]):
        plot_lengths(classes, tmp_path / "a.png")
        assert (tmp_path / "a.png").stat().st_size > 1000
        (tmp_path / "a.png").unlink()


def test_the_command_exits_with_1_where_rows_are_wrong(labels: Path) -> None:
    arguments = ["data", "check", str(labels), "--quick", "--workers", "0"]
    assert CliRunner().invoke(build_app(), arguments).exit_code == 0
    labels.write_text(labels.read_text() + "a.mp4,2,2.5,run,ann\n")
    result = CliRunner().invoke(build_app(), arguments)
    assert (result.exit_code, "line 6: a.mp4: " in result.stdout) == (1, True)
    assert CliRunner().invoke(build_app(), [*arguments, "--set", "data.overlaps=true"]).exit_code == 0
