"""Output that fits 80 columns, and that keeps its lines whole where nothing bounds them."""

import os
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.cells import cell_len

from kinescan.cli.terminal import Table, folded, line_limit, print_page, print_table, print_text
from kinescan.data.video import write_video
from kinescan.models.zoo import create_model
from kinescan.preprocessing import Preprocessing

LONG = "assembling " + "x" * 150 + " 日本語のラベル" * 12
LABELS = (LONG, "dark", "<b>\x1b[31m|\n", "")
SIZES = {"patch_size": 16, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 16, "embed_dim": 16, "image_size": 32}


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    made = create_model("vit_ti16", labels=LABELS, preprocessing=Preprocessing(size=32, num_frames=4), **SIZES)
    made.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    lines = ["path,label"]
    for index, label in enumerate((LONG, "dark")):
        pixels = torch.randint(0, 256, (8, 3, 32, 32), generator=generator, dtype=torch.uint8)
        path = tmp_path / "videos" / f"{'日本' * 20}_{'y' * 60}_{index}.mp4"
        write_video(path, pixels, fps=8)
        lines.append(f'{path},"{label}"')
    (tmp_path / "videos" / "broken.mp4").write_text("no video")
    lines.append(f"{tmp_path / 'videos' / 'broken.mp4'},dark")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "list.csv"


def _longest(text: str) -> int:
    return max(cell_len(line) for line in text.splitlines())


@pytest.mark.usefixtures("narrow")
def test_no_line_of_any_verb_is_longer_than_the_terminal(kinescan: Any, model: Path, data: Path) -> None:
    lines = [
        ("list",),
        ("profile", "vit_ti16", "pks4_vit_ti16", "ssp_videomamba_tiny", "--repeats", "0"),
        ("predict", data.parent / "videos", "--model", model),
        ("eval", model, "--data", data, "--views", "4x1x1", "--output", data.parent / "report"),
        ("eval", "--compare", data.parent / "report", data.parent / "report"),
        ("data", "check", data, "--workers", "0"),
    ]
    for line in lines:
        result = kinescan(*line)
        assert result.exit_code in (0, 1), result.stderr
        assert "\x1b" not in result.stdout
        assert 0 < _longest(result.stdout) <= 80, line


def test_redirected_output_keeps_names_whole(
    kinescan: Any, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert line_limit() is None
    result = kinescan("predict", data.parent / "videos", "--model", model, "--top", "4")
    assert f"{'y' * 60}_0.mp4  {LONG}" in result.stdout
    assert r"<b>\x1b[31m|\n" in result.stdout


@pytest.mark.parametrize("limit", [20, 33, 80])
@pytest.mark.parametrize("cells", [["a", "b" * 100, "c d e " * 20], ["日本" * 30, "x", ""], ["word " * 40] * 3])
def test_table_folds_without_losing_a_letter(limit: int, cells: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Table(("one", "two", "three"), [cell_len(cell) for cell in cells], limit=limit).print_row(cells)
    shown = capsys.readouterr().out
    assert _longest(shown) <= limit
    letters = [letter for cell in cells for letter in cell if letter != " "]
    for letter in set(letters):
        assert shown.count(letter) >= letters.count(letter)


@pytest.mark.usefixtures("narrow")
def test_tables_with_too_many_columns_are_printed_field_by_field(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([f"column {index}" for index in range(14)], [[f"value {index}" for index in range(14)]])
    shown = capsys.readouterr().out
    assert "column 13: value 13" in shown


def test_folded_lines_stand_behind_their_own_indentation() -> None:
    lines = folded("  - " + "word " * 10, 24)
    assert lines[0].startswith("  - word")
    assert all(line.startswith("    word") and len(line) <= 24 for line in lines[1:])
    assert folded("short", 24) == ["short"]
    assert folded("x" * 50, None) == ["x" * 50]


@pytest.mark.usefixtures("narrow")
def test_pages_and_text_from_strangers_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_text(["a \x1b[31m\u202e b"])
    print_page("| a | b |\n|---|---|\n| \\<script\\> | " + "y" * 200 + " |\n")
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "<script>" in shown
    assert _longest(shown) <= 80


@pytest.mark.parametrize(("columns", "limit"), [(0, None), (3, 20), (100, 100)])
def test_a_terminal_that_does_not_know_its_size_cuts_nothing(
    columns: int, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    keyboard, screen = os.openpty()
    termios.tcsetwinsize(screen, (24, columns))
    with os.fdopen(screen, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        found = line_limit()
        monkeypatch.undo()
    os.close(keyboard)
    assert found == limit
