"""A run in a process of its own, for the tests that kill it: python killed_run.py FOLDER [PLACE NUMBER].

With a function, the process ends itself, as abruptly as by SIGKILL, when it comes there for the NUMBERth time.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from kinescan.runtime import atomic_write as atomic_module
from kinescan.training import OptimConfig, TrainConfig, fit
from kinescan.training import checkpoint as checkpoint_module

PLACES = ("torch.save", "_sync", "os.replace", "shutil.rmtree")
TRAIN = TrainConfig(
    device="cpu",
    trackers=(),
    log_every=1,
    accumulate_batches=2,
    keep_checkpoints=3,
    # After every step.
    checkpoint_minutes=1e-9,
)
OPTIM = OptimConfig(lr=0.05, lr_batch_size=8, epochs=5, warmup_epochs=1, layer_decay=1.0, ema_decay=0.9)


def _fixtures() -> Any:
    path = Path(__file__).with_name("conftest.py")
    spec = importlib.util.spec_from_file_location("training_fixtures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def mix(
    clips: torch.Tensor, labels: torch.Tensor, generator: torch.Generator, positions: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """A mixup."""
    fraction = float(torch.rand((), generator=generator))
    return clips.lerp(clips.flip(0), fraction), labels.lerp(labels.flip(0), fraction)


def score(model: torch.nn.Module) -> dict[str, float]:
    """Something in [0, 1] that depends on the weights, and goes up and down."""
    total = sum(float(parameter.detach().double().sum()) for parameter in model.parameters())
    return {"top1": abs(total * 1000) % 1.0}


def run(folder: Path) -> None:
    """Goes on with the run in `folder`, or begins it."""
    fixtures = _fixtures()
    set_seed(0)
    model = fixtures.TinyClassifier(fixtures.TinyConfig(dropout=0.3), labels=("minus", "plus"))
    clips = fixtures.NoiseClips(num_batches=7, batch_size=4)
    fit(model, clips, output=folder, train=TRAIN, optim=OPTIM, mix=mix, evaluate=score, seed=3, resume=True)


def _end_at(function: str, number: int) -> None:
    module_name, _, name = function.rpartition(".")
    home = checkpoint_module if module_name == "torch" else atomic_module
    owner: Any = getattr(home, module_name) if module_name else home
    original, calls = getattr(owner, name), []

    def counted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(function)
        if len(calls) == number:
            os._exit(9)
        return original(*arguments, **keywords)

    setattr(owner, name, counted)


if __name__ == "__main__":
    print(json.dumps("started"), flush=True)
    if len(sys.argv) > 2:
        _end_at(sys.argv[2], int(sys.argv[3]))
    run(Path(sys.argv[1]))
