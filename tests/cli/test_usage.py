"""A wrong command line is answered with what was meant."""

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("train own_videos_cpu --epochs 3", "--set optim.epochs=3"),
        ("train own_videos_cpu --lr=1e-3", "--set optim.lr=1e-3"),
        ("train own_videos_cpu --batch-size 8", "--set loader.batch_size=8"),
        ("train own_videos_cpu --data VIDEOS", "--set data.train=VIDEOS"),
        ("train own_videos_cpu optim.epochs=3", "--set optim.epochs=3"),
        ("train own_videos_cpu data.train=a --set optim.lr=1", "--set data.train=a"),
        ("train own_videos_cpu --outptu x", "--output?"),
        ("train own_video_cpu", "'own_videos_cpu'?"),
        ("train own_videos_cpu .", "--set data.train=."),
        ("train .", "--set data.train=."),
        ("train own_videos_cpu --set data.train=x --set train.device=gpu", "'cuda'?"),
        ("demo --epochs 3", "--set optim.epochs=3"),
        ("eval --model runs/a", "kinescan eval RUN"),
        ("eval runs/a .", "--data ."),
        ("eval runs/a --predictions r.json --data t.csv", "kinescan eval RESULTS.json"),
        ("eval runs/a --choose-thresholds", "--set thresholds=choose"),
        ("export --model runs/a x --to onnx", "kinescan export RUN FOLDER"),
        ("profile --model runs/a", "kinescan profile RUN"),
        ("predict a.mp4 --tpo 3", "--top?"),
        ("predict a.mp4 --quit", "--quiet?"),
        ("data make moton x", "motion"),
        ("data make motion x fps=3", "--set fps=3"),
        ("data make motion .", "--set overwrite=true"),
        ("evla x", "'eval'"),
        ("list recipe", "'recipes'?"),
        ("recipe own_videos", "'own_videos_cpu'?"),
        ("train own_videos_cpu --set data.train=x --set preprocessing.sampling=segment", "'segments'?"),
        ("train own_videos_cpu --set data.train=x --set train.device=cdua", "'cuda'?"),
        ("train own_videos_cpu --set epochs=3", "'optim.epochs'?"),
        ("train run", "--resume"),
    ],
)
def test_advice_is_what_was_meant(
    kinescan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, advice: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/recipe.toml").write_text("seed = 1\n")
    result = kinescan(*line.split())
    assert result.exit_code == 2
    assert advice in result.stderr


def test_a_known_option_is_not_advised_again(kinescan: Any) -> None:
    assert "Did you mean" not in kinescan("predict", "a.mp4", "--model").stderr


def test_recipes_are_found_by_name_anywhere(kinescan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = kinescan("recipe", "own_videos_cpu").stdout
    assert text.startswith("# Your own videos")
    assert "own_videos_cpu" in kinescan("list", "recipes").stdout
    Path("mine.toml").write_text(text)
    for name in ("own_videos_cpu", "recipes/own_videos_cpu.toml", "own_videos_cpu.toml", "mine.toml"):
        result = kinescan("train", name, "--dry-run")
        assert (result.exit_code, "data.train" in result.stderr) == (2, True), name
    # A file here goes before the one of that name in the package.
    Path("recipes").mkdir()
    Path("recipes/own_videos_cpu.toml").write_text("# mine\nseed = 7\n")
    assert kinescan("recipe", "recipes/own_videos_cpu.toml").stdout == "# mine\nseed = 7\n"


def test_resume_takes_the_folder_of_the_run(kinescan: Any, train_arguments: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = kinescan(*train_arguments, "--output", run, "--set", "optim.epochs=1")
    assert first.exit_code == 0, first.stderr
    again = kinescan("train", run, "--resume", "--json")
    assert again.exit_code == 0, again.stderr
    assert str(run) in again.stdout
