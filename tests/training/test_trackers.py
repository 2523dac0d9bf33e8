from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kinescan.training.accelerator import TrainConfig, open_accelerator
from kinescan.training.trackers import FOLDER


class _Told(GeneralTracker):
    """Stands for a tracker that is not installed here."""

    name = "told"
    requires_logging_directory = False
    told: list[tuple[str, Any]]

    def __init__(self, project: str, **options: Any) -> None:
        super().__init__()
        _Told.told = [("project", project), ("options", options)]

    @property
    def tracker(self) -> None:
        return None

    def start(self) -> None:
        """Nothing to open."""

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        _Told.told.append(("config", values))

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        """Nothing to write."""


def test_trackers_get_project_name_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", _Told)
    monkeypatch.setattr("kinescan.training.trackers.get_available_trackers", lambda: ["wandb", "tensorboard"])
    settings = {"optim": {"lr": 0.5, "betas": [0.9, 0.98]}, "seed": 3}
    train = TrainConfig(device="cpu", trackers=("wandb", "tensorboard"))
    with open_accelerator(train, tmp_path / "my_run", settings) as accelerator:
        accelerator.log({"evaluation/loss": 0.25}, step=1)
    flat = {"optim.lr": 0.5, "optim.betas": "[0.9, 0.98]", "seed": 3}
    assert _Told.told == [("project", "kinescan"), ("options", {"name": "my_run"}), ("config", flat)]
    events = EventAccumulator(str(tmp_path / "my_run" / FOLDER))
    events.Reload()
    assert events.Scalars("evaluation/loss")[0].value == 0.25
    named = TrainConfig(device="cpu", trackers=("wandb",), tracker_project="videos", tracker_run="first")
    with open_accelerator(named, tmp_path / "my_run", settings):
        pass
    assert _Told.told[:2] == [("project", "videos"), ("options", {"name": "first"})]
