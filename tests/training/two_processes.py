"""One of two processes that train together, for test_processes.py: prints what it met, as JSON.

Run with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set: python two_processes.py FOLDER.
"""

import importlib.util
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kinescan.errors import KinescanError
from kinescan.models.saving.base_identity import digest
from kinescan.runtime.distributed import Processes, open_processes
from kinescan.training import OptimConfig, TrainConfig, checkpoint, fit

TRAIN = TrainConfig(device="cpu", trackers=(), accumulate_batches=2, log_every=1)
OPTIM = OptimConfig(lr=0.05, lr_batch_size=8, epochs=2, layer_decay=1.0)


def _fixtures() -> Any:
    spec = importlib.util.spec_from_file_location("training_fixtures", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Shared:
    """A process's half of every batch of other clips."""

    def __init__(self, whole: Any, index: int, disturb: Callable[[int, int], None], count: int = 2) -> None:
        self.whole, self.index, self.disturb = whole, index, disturb
        # With one process, its part is the whole.
        self.num_classes, self.num_batches, self.batch_size = 2, whole.num_batches, whole.batch_size // count
        self.path = whole.path

    def batches(self, epoch: int, first_batch: int) -> Any:
        own = slice(self.index * self.batch_size, (self.index + 1) * self.batch_size)
        for number, batch in enumerate(self.whole.batches(epoch, first_batch), start=first_batch):
            self.disturb(epoch, number)
            yield type(batch)(batch.clips[own], batch.labels[own], batch.item_indices[own], batch.unreadable)


def run(
    folder: Path,
    processes: Processes,
    *,
    disturb: Any = None,
    nan: bool = False,
    resume: bool = False,
    dropout: float = 0.2,
) -> str:
    """A run of two epochs; the hash of its weights, or the error that ended it."""
    fixtures = _fixtures()
    torch.manual_seed(0)
    model = fixtures.TinyClassifier(fixtures.TinyConfig(dropout=dropout))
    whole = fixtures.NoiseClips(num_batches=5)
    if nan:
        whole.broken[1, 3] = torch.zeros(8, 2, 3, 4, 4)
        whole.broken[1, 3][6] = torch.nan
    clips = Shared(whole, processes.index, disturb or (lambda *_: None), processes.count)
    try:
        fit(model, clips, output=folder, train=TRAIN, optim=OPTIM, seed=1, resume=resume)
    except KinescanError as error:
        return f"{type(error).__name__}: {error}"
    return digest(model.state_dict())


def _full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def _communicating_threads() -> list[str]:
    """Names of threads that still talk to other processes; Linux knows them."""
    tasks = Path("/proc/self/task")
    names = [(task / "comm").read_text() for task in tasks.iterdir()] if tasks.is_dir() else []
    return [name for name in names if "gloo" in name or "tcpstore" in name]


def main(folder: Path) -> None:
    """Every case, one after the other."""
    with open_processes(torch.device("cpu")) as processes:

        def signalled(epoch: int, number: int) -> None:
            if (processes.index, epoch, number) == (1, 1, 1):
                signal.raise_signal(signal.SIGTERM)

        met = {
            "whole": run(folder / "whole", processes),
            "nan": run(folder / "nan", processes, nan=True),
            "signal": run(folder / "signal", processes, disturb=signalled),
            "resumed": run(folder / "signal", processes, resume=True),
            "plain": run(folder / "plain", processes, dropout=0.0),
            "left": run(folder / "to one", processes, disturb=signalled, dropout=0.0),
            "taken up": run(folder / "from one", processes, resume=True, dropout=0.0),
        }
        if processes.is_main:
            checkpoint._sha256 = _full
        met["full"] = run(folder / "full", processes)
    met["threads left"] = _communicating_threads()
    print(json.dumps(met))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
