"""What a run tells those who watch it, and that they change nothing by watching."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kinescan.errors import CheckpointError, ConfigError
from kinescan.training import Callback, OptimConfig, TrainConfig, fit
from kinescan.training.callbacks import Callbacks, End, Epoch, Evaluation, Start, Step

TRAIN = TrainConfig(device="cpu", log_every=1, accumulate_batches=2, trackers=())
OPTIM = OptimConfig(lr=0.05, lr_batch_size=8, epochs=2, warmup_epochs=1, layer_decay=1.0, ema_decay=0.9)
END = End(step=0, unreadable={}, error=None)


class Watcher(Callback):
    """Keeps all that it is told, and the weights that it sees at evaluations."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.scored: list[dict[str, torch.Tensor]] = []

    def on_start(self, start: Start) -> None:
        self.model = start.model
        self.told.append(start)

    def on_step(self, step: Step) -> None:
        self.told.append(step)

    def on_epoch(self, epoch: Epoch) -> None:
        self.told.append(epoch)

    def on_evaluation(self, evaluation: Evaluation) -> None:
        self.scored.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
        self.told.append(evaluation)

    def on_end(self, end: End) -> None:
        self.told.append(end)

    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.told]


def test_callbacks_are_told_of_start_steps_epochs_evaluations_and_end(
    tiny_model: Any, noise_clips: Any, tmp_path: Path
) -> None:
    seen, watcher = [], Watcher()

    def evaluate(model: Any) -> dict[str, float]:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"top1": 0.5}

    fit(
        tiny_model,
        noise_clips(num_batches=3),
        output=tmp_path,
        train=TRAIN,
        optim=OPTIM,
        evaluate=evaluate,
        callbacks=[watcher],
    )
    epoch = ["Step", "Step", "Epoch", "Evaluation"]
    assert watcher.kinds() == ["Start", *epoch, *epoch, "End"]
    assert (watcher.told[0].epoch, watcher.told[0].step, watcher.told[0].num_epochs) == (0, 0, 2)
    steps = [event for event in watcher.told if isinstance(event, Step)]
    assert [(step.step, step.batches_done, step.num_clips) for step in steps] == [
        *((1, 2, 16), (2, 3, 8)),
        *((3, 2, 16), (4, 3, 8)),
    ]
    # at an evaluation, the model holds the EMA that was scored
    for scored, weights in zip(watcher.scored, seen, strict=True):
        assert all(torch.equal(scored[name], weights[name]) for name in weights)
    # the log says the same, since it is a callback, too
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if line["kind"] == "step"] == [step.loss for step in steps]
    assert watcher.told[-1] == End(step=4, unreadable={}, error=None)


def test_a_resumed_run_starts_where_it_was_left(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    class Ends(Callback):
        def on_evaluation(self, evaluation: Evaluation) -> None:
            raise KeyError

    def run(*callbacks: Callback) -> None:
        fit(
            tiny_model,
            noise_clips(num_batches=2),
            output=tmp_path,
            train=TRAIN,
            optim=OPTIM,
            evaluate=lambda _: {"top1": 0.5},
            resume=True,
            callbacks=callbacks,
        )

    watcher = Watcher()
    with pytest.raises(KeyError):
        run(watcher, Ends())
    assert isinstance(watcher.told[-1].error, KeyError)
    resumed = Watcher()
    run(resumed)
    assert (resumed.told[0].epoch, resumed.told[0].step) == (0, 1)
    # the epoch was saved before its evaluation, which comes first now
    assert resumed.kinds() == ["Start", "Evaluation", "Step", "Epoch", "Evaluation", "End"]


def test_a_refused_resumption_starts_nothing_and_changes_no_file(
    tiny_model: Any, noise_clips: Any, tmp_path: Path
) -> None:
    fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM, settings={"a": 1})
    kept = tmp_path / "unreadable.json"
    kept.write_text("[]", encoding="utf-8")
    watcher = Watcher()
    with pytest.raises(ConfigError, match="a was 1, is 2"):
        fit(
            tiny_model,
            noise_clips(),
            output=tmp_path,
            train=TRAIN,
            optim=OPTIM,
            settings={"a": 2},
            resume=True,
            callbacks=[watcher],
        )
    assert watcher.told == []
    assert kept.read_text(encoding="utf-8") == "[]"


def test_each_that_started_is_told_of_the_end_though_one_fails() -> None:
    class Fails(Watcher):
        def on_end(self, end: End) -> None:
            raise CheckpointError("full")

    class Refuses(Watcher):
        def on_start(self, start: Start) -> None:
            raise ConfigError("no")

    first, failing, refusing, last = Watcher(), Fails(), Refuses(), Watcher()
    several = Callbacks([first, failing, refusing, last])
    model: Any = None
    start = Start(model=model, num_epochs=1, batches_per_epoch=1, epoch=0, step=0, is_main=True)
    with pytest.raises(ConfigError):
        several.on_start(start)
    with pytest.raises(CheckpointError):
        several.on_end(END)
    assert first.kinds() == ["Start", "End"]
    assert refusing.told == last.told == []
