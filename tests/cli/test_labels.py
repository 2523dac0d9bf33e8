"""Classes of any text are trained on, scored, drawn, saved and shown; none is read as markup, formula or control."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import torch
import yaml

from kinescan.data.video import write_video
from kinescan.models.zoo import from_pretrained

from .conftest import TINY

LABELS = (
    r"$\frac{x$",
    "<script>alert(1)</script><img src=x onerror=y>",
    "[x](javascript:alert(1)) ![y](http://z)",
    "| a | b | `c` **d**",
    "\x1b[31mred\x1b]0;title\x07",
    "abc\u202egnp.exe",
    "- # 1. ---",
    "日本語 🎉 العربية",
    "x" * 250,
    '\'; "quoted": {yaml: [1]} %s %d {0}',
)


def test_a_run_with_any_labels_reaches_its_end(kinescan: Any, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index, label in enumerate(LABELS):
        for copy in range(2):
            pixels = torch.randint(0, 256, (8, 3, 32, 32), generator=generator, dtype=torch.uint8)
            write_video(tmp_path / "videos" / f"{index}_{copy}.mp4", pixels, fps=8)
            rows.append((f"videos/{index}_{copy}.mp4", label))
    with (tmp_path / "list.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    (tmp_path / "recipe.toml").write_text('model = "pks4_vit_ti16"\n')
    run = tmp_path / "run"
    settings = [*TINY, "optim.epochs=1", f"data.train={tmp_path / 'list.csv'}"]
    flags = [word for setting in settings for word in ("--set", setting)]
    lines = [
        ["train", tmp_path / "recipe.toml", *flags, "--output", run],
        ["eval", run],
        ["predict", tmp_path / "videos" / "0_0.mp4", "--model", run, "--top", "10", "--explain", tmp_path / "pictures"],
        ["stream", tmp_path / "videos" / "0_0.mp4", "--model", run, "--top", "10"],
        ["data", "check", tmp_path / "list.csv", "--workers", "0"],
        ["eval", "--compare", run, run],
    ]
    for line in lines:
        result = kinescan(*line)
        assert result.exit_code == 0, (line[0], result.stderr[-500:])
        assert not set(result.stdout + result.stderr) & {"\x1b", "\x07", "\u202e"}, line[0]
    labels = from_pretrained(run).labels
    assert labels is not None
    assert set(labels) == set(LABELS)
    _check_pages(run, tmp_path)
    assert (run / "confusion.png").stat().st_size > 0
    assert len(list((tmp_path / "pictures").iterdir())) == 1


def _check_pages(run: Path, tmp_path: Path) -> None:
    report = json.loads((run / "report.json").read_bytes())
    assert {entry["label"] for entry in report["classes"]} == set(LABELS)
    predictions = (run / "predictions.jsonl").read_bytes().decode().split("\n")
    assert {json.loads(line)["label"] for line in predictions if line} == set(LABELS)
    from_pretrained(run).save_pretrained(tmp_path / "saved", run=run)
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    for page in (card, *(file.read_text(encoding="utf-8") for file in run.rglob("*.md"))):
        assert "\x1b" not in page
        assert "<script>" not in page.replace("\\<script\\>", "")
        assert "[x](javascript" not in page
        assert "| a | b |" not in page
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "kinescan"
    assert "FOLDER" not in body


def test_names_of_bytes_that_are_no_text_are_saved_and_shown(kinescan: Any, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    write_video(tmp_path / "a.mp4", torch.zeros(8, 3, 32, 32, dtype=torch.uint8), fps=8)
    try:
        os.link(tmp_path / "a.mp4", tmp_path / name)
    except OSError:
        return  # a file system that holds text alone
    found = kinescan("data", "check", tmp_path, "--workers", "0", "--json")
    assert found.exit_code in (0, 1, 2)
    assert not isinstance(found.exception, UnicodeError)
