"""One of two processes that divide a model, for test_sharding.py: prints what it met, as JSON.

Run with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set: python sharded_processes.py FOLDER [CASE ...].
"""

import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinescan.data.loader import Batch
from kinescan.errors import KinescanError
from kinescan.models.classifier import VideoClassifier
from kinescan.models.saving.base_identity import digest
from kinescan.models.zoo import create_model
from kinescan.runtime.distributed import Processes, open_processes
from kinescan.training import Callback, OptimConfig, TrainConfig, fit

TRAIN = TrainConfig(device="cpu", trackers=(), sharding="full", accumulate_batches=2, trainable=("*",), log_every=1)
OPTIM = OptimConfig(lr=1e-2, lr_batch_size=8, epochs=2, warmup_epochs=0, ema_decay=0.9, eps=1e-4, clip_norm=0.5)
FROZEN = {"trainable": ("head.*", "scanner.*", "kinematic.*", "vit.transformer.resblocks.2.*", "class_token_routes.*")}


class Noise:
    """A process's part of batches of noise; the same clips, however many processes share them."""

    num_batches, num_classes, total = 3, 3, 4

    def __init__(self, processes: Processes, disturb: Callable[[int, int], None] | None = None) -> None:
        self.index, self.batch_size = processes.index, self.total // processes.count
        self._disturb = disturb

    def path(self, item_index: int) -> str:
        return f"noise {item_index}"

    def batches(self, epoch: int, first_batch: int) -> Iterator[Batch]:
        for number in range(first_batch, self.num_batches):
            if self._disturb is not None:
                self._disturb(epoch, number)
            generator = torch.Generator().manual_seed(100 * epoch + number)
            clips = torch.randn(self.total, 4, 3, 32, 32, generator=generator)
            labels = torch.randint(0, 3, (self.total,), generator=generator)
            own = slice(self.index * self.batch_size, (self.index + 1) * self.batch_size)
            yield Batch(clips[own], labels[own], list(range(self.total))[own], [])


class Windows(Noise):
    """Windows of four videos that go on from batch to batch, with a label for each frame."""

    def batches(self, epoch: int, first_batch: int) -> Iterator[Batch]:
        for number, batch in enumerate(super().batches(epoch, first_batch), first_batch):
            generator = torch.Generator().manual_seed(1000 * epoch + number)
            labels = torch.randint(0, 3, (self.total, 4), generator=generator)
            own = slice(self.index * self.batch_size, (self.index + 1) * self.batch_size)
            # The second video ends in the middle.
            starts = [number == 0 or (row, number) == (1, 2) for row in range(self.total)]
            yield replace(batch, labels=labels[own], starts=starts[own])


def frame_task(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of frames, and the share of right ones of each window."""
    loss = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), labels.flatten())
    return loss, (outputs.argmax(2) == labels).float().mean(1)


class Losses(Callback):
    """The losses and gradient norms of the steps."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []

    def on_step(self, step: Any) -> None:
        self.steps.append((step.loss, step.gradient_norm))


def make_model(labels: tuple[str, ...] = ("a", "b", "c"), **options: Any) -> VideoClassifier:
    """A PKS4 with batch norms in its kinematic encoder."""
    torch.manual_seed(0)
    sizes = {"image_size": 32, "width": 16, "depth": 3, "heads": 2, "mlp_dim": 16, "embed_dim": 16, "insert_after": 2}
    return create_model(
        "pks4_vit_ti16",
        labels=labels,
        preprocessing={"num_frames": 4},
        kinematic_width=8,
        window=3,
        activation_checkpointing=True,
        **sizes,
        **options,
    )


def scores(model: VideoClassifier) -> Mapping[str, float]:
    """What the model, whole and in evaluation mode, says of one clip."""
    with torch.no_grad():
        said = model(torch.ones(1, 4, 3, 32, 32)).softmax(1)[0]
    return {"top1": float(said[0])}


def run(
    folder: Path,
    processes: Processes,
    *,
    train: TrainConfig = TRAIN,
    disturb: Callable[[int, int], None] | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """A run of two epochs: its losses, the hash of its weights, the error that ended it."""
    model, losses = make_model(), Losses()
    error = ""
    try:
        fit(
            *(model, Noise(processes, disturb)),
            output=folder,
            train=train,
            optim=OPTIM,
            evaluate=scores,
            seed=1,
            resume=resume,
            callbacks=[losses],
        )
    except KinescanError as met:
        error = f"{type(met).__name__}: {met}"
    return {"steps": losses.steps, "weights": digest(model.state_dict()), "error": error}


def run_carried(folder: Path, processes: Processes) -> dict[str, Any]:
    """An epoch of a causal model whose state continues from window to window: its losses."""
    model, losses = make_model(("background", "b", "c"), causal=True, output="frames"), Losses()
    train = replace(TRAIN, carry_state=True, accumulate_batches=1)
    windows, optim = Windows(processes), replace(OPTIM, epochs=1)
    fit(model, windows, output=folder, train=train, optim=optim, task=frame_task, seed=1, callbacks=[losses])
    return {"steps": losses.steps, "weights": digest(model.state_dict())}


def main(folder: Path, *chosen: str) -> None:
    """Every case, or those that are named, one after the other."""
    with open_processes(torch.device("cpu")) as processes:

        def signalled(epoch: int, number: int) -> None:
            if (processes.index, epoch, number) == (1, 1, 1):
                signal.raise_signal(signal.SIGTERM)

        half = replace(TRAIN, mixed_precision="bf16")
        cases: dict[str, Callable[[], dict[str, Any]]] = {
            "full": lambda: run(folder / "full", processes),
            "frozen": lambda: run(folder / "frozen", processes, train=replace(TRAIN, **FROZEN)),
            "half": lambda: run(folder / "half", processes, train=half),
            "half plain": lambda: run(folder / "half plain", processes, train=replace(half, sharding="none")),
            "left": lambda: run(folder / "left", processes, disturb=signalled),
            "taken up": lambda: run(folder / "from one", processes, resume=True),
            "carried": lambda: run_carried(folder / "carried", processes),
        }
        met = {name: case() for name, case in cases.items() if not chosen or name in chosen}
    print(json.dumps(met))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
