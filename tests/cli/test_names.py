"""Names of files and classes that are bytes in no encoding, or that would steer a terminal, from `data check` on."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.mentions import mentions

from .conftest import TINY

NAMES = ("10:30:00.mp4", "bytes\udce9\udcff.mp4", "\x1b[31mred.mp4", "line\nbreak.mp4", "%03d.mp4", "-n.mp4")


@pytest.fixture
def odd(videos: Path, tmp_path: Path) -> Path:
    """Two classes with a byte that is no UTF-8 and an escape in their names, and files of odd names in each."""
    folder = tmp_path / "odd"
    for name, label in (("bright", "br\udcffight"), ("dark", "\x1b[31mdark")):
        try:
            (folder / label).mkdir(parents=True)
            for number, file in enumerate(NAMES):
                shutil.copy(videos / name / f"{number}.mp4", folder / label / file)
            (folder / label / "bro\udcffken\x1b[2J.mp4").write_bytes(b"no video")
            # nobody writes into it
            os.mkfifo(folder / label / "pipe.mp4")
        except OSError:
            pytest.skip("this file system does not take the names")
    return folder


def bad(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*/*") if path.name.startswith(("bro", "pipe"))]


def is_clean(text: str) -> bool:
    """No character that steers a terminal, and none that UTF-8 does not have."""
    text.encode()
    return all(character.isprintable() or character == "\n" for character in text)


def test_check_says_odd_names_and_writes_valid_json(kinescan: Any, odd: Path, tmp_path: Path) -> None:
    found = kinescan("data", "check", odd, "--workers", "0", "--quick", "--json", "--output", tmp_path / "report")
    assert found.exit_code == 1, found.exception
    said = json.loads(found.stdout)
    assert is_clean(found.stdout)
    assert sorted(video["path"] for video in said["unreadable"]) == sorted(map(str, bad(odd)))
    assert json.loads((tmp_path / "report/check.json").read_text(encoding="utf-8")) == said
    text = kinescan("data", "check", odd, "--workers", "0", "--quick").stdout
    assert is_clean(text)
    assert r"bro\xffken\x1b[2J.mp4" in text
    assert (tmp_path / "report/check.txt").read_text(encoding="utf-8") == text


def test_training_evaluation_and_prediction_with_odd_names(kinescan: Any, odd: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text('model = "pks4_vit_ti16"\n', encoding="utf-8")
    run, settings = tmp_path / "run", [word for setting in TINY for word in ("--set", setting)]
    for extra in ([], ["--resume"]):
        done = kinescan("train", recipe, *settings, "--set", f"data.train={odd}", "--output", run, *extra)
        assert done.exit_code == 0, (done.stderr, done.exception)
        assert is_clean(done.stderr)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines
    listed = json.loads((run / "unreadable.json").read_text(encoding="utf-8"))
    assert {row["path"] for row in listed} <= set(map(str, bad(odd)))
    scored = kinescan("eval", run, "--data", odd, "--output", tmp_path / "scores", "--json")
    assert scored.exit_code == 0, (scored.stderr, scored.exception)
    json.loads(scored.stdout)
    rows = (tmp_path / "scores/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert {Path(json.loads(row)["path"]).name for row in rows} == set(NAMES)
    assert is_clean((tmp_path / "scores/report.md").read_text(encoding="utf-8"))
    said = kinescan("predict", odd, "--model", run, "--json")
    predictions = json.loads(said.stdout)
    assert len(predictions) == 2 * len(NAMES) + 4
    assert sum(bool(prediction["error"]) for prediction in predictions) == 4
    table = kinescan("predict", odd, "--model", run)
    assert table.exit_code == 0
    assert is_clean(table.stdout)
    assert is_clean(table.stderr)
    assert r"line\nbreak.mp4" in table.stdout


def test_the_data_sets_own_folder_may_have_such_a_name(kinescan: Any, odd: Path, tmp_path: Path) -> None:
    named = odd.rename(tmp_path / "odd\udcff")
    for arguments in ([named], [tmp_path / "link", "--test", named]):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(named)
        found = kinescan("data", "check", *arguments, "--workers", "0", "--quick", "--json")
        assert len(json.loads(found.stdout)["unreadable"]) >= 4
    recipe = tmp_path / "tiny.toml"
    recipe.write_text('model = "pks4_vit_ti16"\n', encoding="utf-8")
    refused = kinescan("train", recipe, "--set", f"data.train={named}", "--dry-run")
    assert refused.exit_code == 2
    assert mentions(refused.stderr, "data.train", "UTF-8")
    assert is_clean(refused.stderr)
