"""Predictions are printed as they come, and what is done stays when the rest never comes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.mentions import mentions

from kinescan.data.video import write_video
from kinescan.inference.predictor import predict
from kinescan.models.zoo import create_model
from kinescan.preprocessing import Preprocessing

SIZES = {"patch_size": 16, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 16, "embed_dim": 16, "image_size": 32}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    made = create_model("vit_ti16", labels=("a", "b"), preprocessing=Preprocessing(size=32, num_frames=4), **SIZES)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four hundred names of one file, in a folder of a class each."""
    folder = tmp_path_factory.mktemp("many")
    write_video(folder / "0.mp4", torch.zeros(8, 3, 32, 32, dtype=torch.uint8), fps=8)
    for label in "ab":
        (folder / "videos" / label).mkdir(parents=True)
        for index in range(200):
            os.link(folder / "0.mp4", folder / "videos" / label / f"{index:03}.mp4")
    return folder / "videos"


def test_predictions_are_told_as_they_are_made(model: Path, many: Path) -> None:
    files = sorted((many / "a").iterdir())[:3]
    seen: list[str] = []

    def stop_at_the_second(prediction: Any) -> None:
        seen.append(prediction.path)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(model, files, on_prediction=stop_at_the_second)
    assert seen == [str(file) for file in files[:2]]


def _stopped(
    arguments: list[str | Path], tmp_path: Path, ready: Callable[[str], bool], number: int = signal.SIGINT
) -> tuple[int, str, str]:
    """Exit code and output of a command that gets a signal as soon as `ready` says so of what it has printed."""
    program = [sys.executable, "-c", "from kinescan.cli.main import main; main()", *map(str, arguments)]
    printed = tmp_path / "printed"
    with (
        printed.open("w") as file,
        subprocess.Popen(program, stdout=file, stderr=subprocess.PIPE, text=True) as running,
    ):
        while running.poll() is None and not ready(printed.read_text()):
            time.sleep(0.02)
        running.send_signal(number)
        _, said = running.communicate(timeout=120)
    return running.returncode, printed.read_text(), said


def test_predict_keeps_what_is_done_when_it_is_stopped(model: Path, many: Path, tmp_path: Path) -> None:
    line: list[str | Path] = ["predict", many, "--model", model, "--json"]
    code, printed, said = _stopped(line, tmp_path, lambda text: text.count("\n") > 3, signal.SIGTERM)
    assert code == 1
    found = json.loads(printed)
    assert 2 <= len(found) < 400
    assert set(found[0]["labels"]) == {"a", "b"}
    assert "stopped" in said


def test_eval_keeps_finished_predictions_when_it_is_stopped(model: Path, many: Path, tmp_path: Path) -> None:
    output = tmp_path / "report"
    unfinished = output / "predictions.unfinished.jsonl"

    code, printed, said = _stopped(
        ["eval", model, "--data", many, "--output", output],
        tmp_path,
        lambda _: unfinished.is_file() and unfinished.stat().st_size > 1000,
    )
    assert (code, printed) == (1, "")
    assert f"their predictions: {unfinished}" in said
    lines = [json.loads(line) for line in unfinished.read_text(encoding="utf-8").splitlines()]
    assert 1 <= len(lines) < 400
    assert mentions(said, str(len(lines)), "400")
    assert not (output / "report.json").exists()


def test_eval_that_ends_leaves_the_report_alone(kinescan: Any, model: Path, many: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for label in "ab":
        (data / label).mkdir(parents=True)
        os.link(many / label / "000.mp4", data / label / "0.mp4")
    result = kinescan("eval", model, "--data", data, "--output", tmp_path / "report")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "report" / "report.json").is_file()
    assert not (tmp_path / "report" / "predictions.unfinished.jsonl").exists()


@pytest.mark.parametrize("as_json", [False, True])
def test_results_are_not_lost_to_a_full_disk(
    kinescan: Any, model: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    def full(path: Path, text: str, **_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    flags = ["--json"] if as_json else []
    checked = kinescan("data", "check", videos, "--workers", "0", "--quick", "--output", tmp_path / "check", *flags)
    assert checked.exit_code == 2
    assert "check.json" in checked.stderr
    assert "12" in checked.stdout
    data = tmp_path / "list.csv"
    with data.open("w") as file:
        file.write(f"{videos / 'dark' / '0.mp4'},a\n{videos / 'dark' / '1.mp4'},b\n")
    scored = kinescan("eval", model, "--data", data, "--output", tmp_path / "report", *flags)
    assert scored.exit_code == 2
    assert "written" in scored.stderr
    assert "| videos scored | 2 |" in scored.stderr


def test_the_reason_of_an_unreadable_file_stands_on_its_own_line(
    kinescan: Any, model: Path, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = kinescan("predict", str(many / "a/000.mp4"), "gone.mp4", "--model", str(model))
    assert "gone.mp4" in result.stdout


def test_views_are_chosen_by_a_setting_and_by_the_option_of_before(kinescan: Any, model: Path, many: Path) -> None:
    arguments = ("predict", str(many / "a/000.mp4"), "--model", str(model), "--json")
    wrong = [kinescan(*arguments, *how) for how in (("--set", "evaluation.views=2x0x1"), ("--views", "2x0x1"))]
    assert [result.exit_code for result in wrong] == [2, 2]
    assert all("2x0x1" in result.stderr for result in wrong)
    assert kinescan(*arguments, "--views", "2x1x1").exit_code == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("line", [("list", "models"), ("recipe", "own_videos_cpu")])
def test_output_that_cannot_be_written_is_an_error_without_a_traceback(line: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "kinescan", *line], stdout=full, stderr=subprocess.PIPE, text=True, timeout=100
        )
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "written" in result.stderr
