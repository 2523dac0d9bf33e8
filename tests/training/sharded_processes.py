"""One of two processes that divide a model, for test_sharding.py: prints what it met, as JSON.

Run with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set: python sharded_processes.py FOLDER.
"""

import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

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


class Losses(Callback):
    """The losses and gradient norms of the steps."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []

    def on_step(self, step: Any) -> None:
        self.steps.append((step.loss, step.gradient_norm))


def make_model() -> VideoClassifier:
    """A PKS4 with batch norms in its kinematic encoder."""
    torch.manual_seed(0)
    sizes = {"image_size": 32, "width": 16, "depth": 3, "heads": 2, "mlp_dim": 16, "embed_dim": 16, "insert_after": 2}
    return create_model(
        "pks4_vit_ti16",
        labels=("a", "b", "c"),
        preprocessing={"num_frames": 4},
        kinematic_width=8,
        window=3,
        activation_checkpointing=True,
        **sizes,
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


def main(folder: Path) -> None:
    """Every case, one after the other."""
    with open_processes(torch.device("cpu")) as processes:

        def signalled(epoch: int, number: int) -> None:
            if (processes.index, epoch, number) == (1, 1, 1):
                signal.raise_signal(signal.SIGTERM)

        met = {
            "full": run(folder / "full", processes),
            "frozen": run(folder / "frozen", processes, train=replace(TRAIN, **FROZEN)),
            "half": run(folder / "half", processes, train=replace(TRAIN, mixed_precision="bf16")),
            "half plain": run(
                folder / "half plain", processes, train=replace(TRAIN, mixed_precision="bf16", sharding="none")
            ),
            "left": run(folder / "left", processes, disturb=signalled),
            "taken up": run(folder / "from one", processes, resume=True),
        }
    print(json.dumps(met))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
