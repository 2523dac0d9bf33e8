import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.mentions import mentions

from kinescan.config import build_run
from kinescan.data.video import write_video
from kinescan.runs.cross_validate import CrossValidation, Fold
from kinescan.runs.train import HeldOutScores, train

GROUP = r"data.group=\d+_(\w)\."


@pytest.fixture(scope="module")
def persons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of six files each, of three persons: dark and bright noise, 32x32."""
    folder = tmp_path_factory.mktemp("persons")
    generator = torch.Generator().manual_seed(0)
    for label, low in (("bright", 156), ("dark", 0)):
        for index in range(6):
            pixels = torch.randint(low, low + 100, (8, 3, 32, 32), generator=generator, dtype=torch.uint8)
            write_video(folder / label / f"{index}_{'abc'[index % 3]}.mp4", pixels, fps=8)
    return folder


@pytest.fixture
def arguments(persons: Path, tmp_path: Path, tiny: list[str]) -> list[str]:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text('model = "pks4_vit_ti16"\n', encoding="utf-8")
    settings = [*tiny, f"data.train={persons}", GROUP, "optim.epochs=1"]
    return [str(recipe), *(word for setting in settings for word in ("--set", setting))]


def test_folds_of_persons_are_trained_resumed_and_summed_up(
    kinescan: Any, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path / "all")
    planned = json.loads(kinescan("cross-validate", *arguments, "--folds", "3", "--dry-run", "--json").stdout)
    assert sorted(fold["groups"] for fold in planned["folds"]) == [["a"], ["b"], ["c"]]
    assert not Path(output).exists()

    calls: list[tuple[int, bool]] = []

    def interrupted(config: Any, **options: Any) -> Any:
        calls.append((config.data.fold, options["resume"]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(config, **options)

    monkeypatch.setattr("kinescan.runs.cross_validate.train", interrupted)
    result = kinescan("cross-validate", *arguments, "--folds", "3", "--output", output)
    assert result.exit_code == 1
    assert kinescan("cross-validate", *arguments, "--folds", "3", "--output", output).exit_code == 2
    result = kinescan("cross-validate", output, "--resume", "--json")
    assert result.exit_code == 0, result.stderr
    assert calls == [(1, False), (2, False), (2, False), (3, False)]
    found = json.loads(result.stdout)
    assert found["finished"]
    scores = [fold["scores"]["top1"] for fold in found["folds"]]
    assert found["scores"]["top1"]["mean"] == pytest.approx(sum(scores) / 3)
    assert json.loads((tmp_path / "all/cross_validation.json").read_text()) == found
    for fold in found["folds"]:
        videos = json.loads((tmp_path / f"all/fold-{fold['number']}/videos.json").read_text())
        assert {video["group"] for video in videos["held_out"]} == set(fold["groups"])
        assert not {video["group"] for video in videos["train"]} & set(fold["groups"])
    table = (tmp_path / "all/cross_validation.md").read_text()
    assert mentions(
        table, "| fold | videos | held-out groups | top1 |", "| 1 | 4 |", "| mean |", "| standard deviation |"
    )
    # a run of a fold is a run like any other
    assert kinescan("eval", str(tmp_path / "all/fold-2"), "--json").exit_code == 0


def test_a_resumption_with_other_settings_or_videos_is_refused(
    kinescan: Any, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(config: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("kinescan.runs.cross_validate.train", stopped)
    output = ["--output", str(tmp_path / "all")]
    assert kinescan("cross-validate", *arguments, "--folds", "3", *output).exit_code == 1
    for flags, named in ((["--folds", "2"], "data.folds"), (["--folds", "3", "--set", "optim.lr=0.5"], "optim.lr")):
        result = kinescan("cross-validate", *arguments, *flags, *output, "--resume")
        assert (result.exit_code, named in result.stderr) == (2, True)
    record = tmp_path / "all/cross_validation.json"
    record.write_text(record.read_text().replace('"num_training": 8', '"num_training": 7'))
    result = kinescan("cross-validate", *arguments, "--folds", "3", *output, "--resume")
    assert (result.exit_code, "other videos" in result.stderr) == (2, True)
    record.write_text("{}")
    result = kinescan("cross-validate", *arguments, "--folds", "3", *output, "--resume")
    assert (result.exit_code, "cross_validation.json" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--folds", "4"], "at least 4 groups"),
        (["--folds", "1"], "got 1"),
        (["--set", "data.test=x"], "data.test"),
        (["--set", r"data.group=(\d\d)_"], "bright/0_a.mp4"),
    ],
)
def test_what_cannot_be_divided_is_refused(kinescan: Any, arguments: list[str], flags: list[str], named: str) -> None:
    result = kinescan("cross-validate", *arguments, *flags)
    assert (result.exit_code, named in result.stderr) == (2, True), result.stderr


def test_the_best_checkpoint_is_chosen_on_validation_videos_alone(
    kinescan: Any, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []
    evaluate = HeldOutScores.evaluate

    def noted(self: HeldOutScores, *rest: Any) -> Any:
        found = evaluate(self, *rest)
        seen.append({item.group for item in found.items})
        return found

    monkeypatch.setattr(HeldOutScores, "evaluate", noted)
    output = tmp_path / "run"
    flags = ["--set", "data.validation_ratio=0.4", "--set", "optim.epochs=2", "--output", str(output)]
    assert kinescan("train", *arguments, *flags).exit_code == 0
    videos = json.loads((output / "videos.json").read_text())
    train, validation, test = (
        {video["group"] for video in videos[part]} for part in ("train", "validation", "held_out")
    )
    assert [len(train), len(validation), len(test), len(train | validation | test)] == [1, 1, 1, 3]
    assert seen == [validation, validation, test]
    assert "chose" not in (output / "report.md").read_text()
    assert json.loads(kinescan("eval", str(output), "--json").stdout)["num_videos"] == 4
    again = kinescan("train", str(output), "--resume", "--set", "data.validation_ratio=0")
    assert (again.exit_code, "data.validation_ratio" in again.stderr) == (2, True)


def test_a_score_that_a_fold_lacks_is_averaged_over_the_others(tmp_path: Path) -> None:
    def fold(number: int, **scores: float) -> Fold:
        return Fold(number=number, output=tmp_path, num_training=1, num_validation=1, num_held_out=1, scores=scores)

    config = build_run({"data": {"train": "a|b", "validation_ratio": 0.2}})
    folds = (fold(1, top1=0.5, delay_seconds=2.0), fold(2, top1=1.0), fold(3))
    found = CrossValidation(output=tmp_path, recipe=config, folds=folds)
    summary = found.summary()
    assert (found.finished, summary["top1"]["mean"], summary["top1"]["folds"]) == (False, 0.75, 2)
    assert summary["top1"]["standard_deviation"] == pytest.approx(0.5**1.5)
    assert (summary["delay_seconds"]["mean"], summary["delay_seconds"]["folds"]) == (2.0, 1)
    table = found.to_markdown()
    assert mentions(table, "3 folds of a\\|b", "| 1 | 1 | 50.0 % | 2 |", "| 2 | 1 | 100.0 % |  |", "| 75.0 % | 2 |")
