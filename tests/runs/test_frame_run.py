import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.events_data import write_events

from kinescan.config import RunConfig, build_run
from kinescan.errors import ConfigError, TrainingInterrupted, VideoError
from kinescan.events.rules import load_rules
from kinescan.models.zoo import from_pretrained
from kinescan.runs.train import TrainResult, plan, train
from kinescan.runtime.fingerprint import fingerprint_of
from kinescan.settings import to_plain
from kinescan.training.callbacks import Callback, Step

RECIPE: dict[str, Any] = {
    "model": {
        "name": "pks4_vit_ti16",
        "options": {
            "causal": True, "patch_size": 8, "width": 24, "depth": 2, "heads": 2, "mlp_dim": 48, "embed_dim": 24,
            "insert_after": 1, "kinematic_width": 8, "window": 3, "state_size": 4,
        },
    },
    "preprocessing": {"sampling": "rate", "frame_rate": 8.0, "num_frames": 6, "size": 16},
    "augment": {"rand_augment_operations": 0, "mix_rate": 0.0, "erase_rate": 0.0, "crop_scale": [0.8, 1.0]},
    "loader": {"batch_size": 2, "num_workers": 0},
    "optim": {"lr": 5e-3, "lr_batch_size": 2, "epochs": 2, "warmup_epochs": 0.2, "layer_decay": 1.0},
    "train": {"device": "cpu", "trackers": [], "log_every": 1, "checkpoint_minutes": 0.0},
}  # fmt: skip
VIT = "depth=1, width=24, heads=2, mlp_dim=48, embed_dim=24, patch_size=8"
FORMS = {"windows": False, "carried": True}


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("events")
    write_events(folder)
    write_events(folder / "test", names=("0.mp4", "2.mp4"))
    return folder


def _config(events: Path, *overrides: str) -> RunConfig:
    data = [f"data.train={events / 'events.csv'}", f"data.test={events / 'test' / 'events.csv'}"]
    return build_run(RECIPE, [*data, *overrides])


def _train(
    events: Path, output: Path, *overrides: str, callbacks: Sequence[Callback] = (), **options: Any
) -> TrainResult:
    return train(_config(events, *overrides), output=output, callbacks=callbacks, **options)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "last" / "model.safetensors")


class StopAt(Callback):
    """Asks the run to stop after a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, step: Step) -> None:
        if step.step == self._step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("form", FORMS)
def test_a_run_on_intervals_learns_to_answer_every_frame(events: Path, tmp_path: Path, form: str) -> None:
    carry = f"train.carry_state={str(FORMS[form]).lower()}"
    result = _train(events, tmp_path / "run", carry, "optim.epochs=12", "train.eval_every=12", "data.kept_frames=1")
    model = from_pretrained(tmp_path / "run")
    assert model.labels == ("background", "blue", "red")
    assert model.answers_frames
    assert model.timing is not None
    assert model.timing.median_seconds == 0.125
    scores = result.to_json()
    assert scores["frame_map"] > 0.8
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert "4 training videos" in report["rules_from"]
    rules = load_rules(tmp_path / "run" / "checkpoints" / "best", classes=model.labels, weights=fingerprint_of(model))
    assert to_plain(rules) == report["rules"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all("balanced_accuracy" in line for line in lines if line["kind"] in ("step", "epoch"))
    assert lines[-1]["frame_map"] == pytest.approx(result.fit.best_score)


@pytest.mark.parametrize("form", FORMS)
def test_a_run_stopped_within_an_epoch_goes_on_bit_for_bit(events: Path, tmp_path: Path, form: str) -> None:
    overrides = (f"train.carry_state={str(FORMS[form]).lower()}", "augment.flip_rate=0.5", "optim.ema_decay=0.9")
    _train(events, tmp_path / "whole", *overrides)
    with pytest.raises(TrainingInterrupted):
        _train(events, tmp_path / "stopped", *overrides, callbacks=[StopAt(3)])
    _train(events, tmp_path / "stopped", *overrides, "loader.num_workers=1", resume=True)
    whole, stopped = _weights(tmp_path / "whole"), _weights(tmp_path / "stopped")
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_a_video_that_comes_back_changes_the_windows_and_is_refused(events: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_events(folder)
    content = (folder / "1.mp4").read_bytes()
    (folder / "1.mp4").write_bytes(content[: len(content) // 3])
    data = (f"data.train={folder / 'events.csv'}",)
    with pytest.raises(TrainingInterrupted):
        _train(events, tmp_path / "run", *data, callbacks=[StopAt(2)])
    (folder / "1.mp4").write_bytes(content)
    with pytest.raises(ConfigError, match="training_windows"):
        _train(events, tmp_path / "run", *data, resume=True)


def test_a_broken_video_is_left_out_and_listed(events: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_events(folder)
    content = (folder / "0.mp4").read_bytes()
    (folder / "0.mp4").write_bytes(content[: len(content) // 3])
    for form in FORMS.values():
        result = _train(
            events,
            tmp_path / f"run{form}",
            f"data.train={folder / 'events.csv'}",
            f"train.carry_state={str(form).lower()}",
            "optim.epochs=1",
        )
        assert [Path(path).name for path in result.fit.unreadable] == ["0.mp4"]


def test_overlapping_classes_are_trained_with_a_sigmoid_each(events: Path, tmp_path: Path) -> None:
    _train(events, tmp_path / "run", "data.overlaps=true", "optim.epochs=1")
    model = from_pretrained(tmp_path / "run")
    assert model.labels == ("blue", "red")
    assert model.overlapping


def test_the_plain_vit_answers_every_frame_by_itself(events: Path, tmp_path: Path) -> None:
    _train(events, tmp_path / "run", "model.name=vit_ti16", f"model.options={{{VIT}}}", "optim.epochs=1")
    assert from_pretrained(tmp_path / "run").answers_frames


def test_a_plan_counts_windows(events: Path) -> None:
    config, planned = plan(_config(events))
    assert config.model.options["output"] == "frames"
    assert planned.steps_per_epoch == 10


@pytest.mark.parametrize("form", FORMS)
def test_an_epoch_has_as_many_windows_as_it_is_told_in_both_forms(events: Path, tmp_path: Path, form: str) -> None:
    told = (f"train.carry_state={str(FORMS[form]).lower()}", "data.windows_per_epoch=12")
    assert plan(_config(events, *told))[1].steps_per_epoch == 6
    _train(events, tmp_path / "whole", *told)
    with pytest.raises(TrainingInterrupted):
        _train(events, tmp_path / "stopped", *told, callbacks=[StopAt(4)])
    _train(events, tmp_path / "stopped", *told, resume=True)
    whole, stopped = _weights(tmp_path / "whole"), _weights(tmp_path / "stopped")
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("augment.mix_rate=1.0", "augment.mix_rate = 0"),
        ("model.options.output=clip", "model.options.output"),
        ("model.options.overlapping=true", "model.options.overlapping"),
        ("model.name=videomamba_tiny", "videomamba_tiny"),
        ('preprocessing={sampling="segments"}', "frame_rate"),
    ],
)
def test_settings_that_contradict_intervals_are_refused(
    events: Path, tmp_path: Path, override: str, named: str
) -> None:
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        _train(events, tmp_path / "run", override)


def test_a_model_that_looks_ahead_carries_no_state(events: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="causal"):
        _train(events, tmp_path / "run", "train.carry_state=true", "model.options.causal=false")


def test_held_out_videos_without_an_event_are_refused(events: Path, tmp_path: Path) -> None:
    (events / "quiet.csv").write_text("path,start,end,label\ntest/2.mp4,,,\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="interval"):
        _train(events, tmp_path / "run", f"data.test={events / 'quiet.csv'}")


def test_a_held_out_video_that_is_gone_ends_the_run(events: Path, tmp_path: Path) -> None:
    test = write_events(tmp_path / "test", names=("0.mp4", "3.mp4"))

    class Lose(Callback):
        def on_step(self, step: Step) -> None:
            (tmp_path / "test" / "3.mp4").unlink(missing_ok=True)

    with pytest.raises(VideoError, match=r"3\.mp4"):
        _train(events, tmp_path / "run", f"data.test={test}", callbacks=[Lose()])
