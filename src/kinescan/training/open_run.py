"""A run is opened once: its processes, its folder and lock, and the checkpoint that it continues from."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kinescan.errors import CheckpointError, ConfigError
from kinescan.runtime.device import choose_device
from kinescan.runtime.distributed import Processes, open_processes
from kinescan.runtime.folder_lock import locked
from kinescan.runtime.output_folder import prepare_output
from kinescan.runtime.run_folder import RunFolder
from kinescan.training.checkpoint import find_checkpoint


@dataclass(frozen=True, kw_only=True)
class OpenRun:
    """A run whose folder no other process writes into.

    Attributes:
        folder: of the run.
        processes: that train together.
        resume: whether it may continue from a checkpoint.
        checkpoint: the one that it continues from, whole; None where it starts anew.
    """

    folder: RunFolder
    processes: Processes
    resume: bool
    checkpoint: Path | None


@contextmanager
def open_run(output: str | Path, *, device: str, resume: bool) -> Iterator[OpenRun]:
    """Opens a run for the length of a block; of several processes, all call it, and the first one's output counts.

    Args:
        output: folder of the run, made if need be.
        device: "auto", "cpu", "cuda" or "mps".
        resume: whether it continues from its last checkpoint, if there is one.

    Raises:
        ConfigError: the folder cannot be written, another process writes into it, or it holds a run that is not to be
            resumed.
        CheckpointError: the checkpoint is damaged.
    """
    with open_processes(choose_device(device)) as processes:
        folder = RunFolder(prepare_output(processes.broadcast(str(output))))
        with locked(folder.path, processes):
            checkpoint = _checkpoint(folder, processes, resume=resume)
            yield OpenRun(folder=folder, processes=processes, resume=resume, checkpoint=checkpoint)


def _checkpoint(folder: RunFolder, processes: Processes, *, resume: bool) -> Path | None:
    """The checkpoint to resume from; the main process reads it all to compare its checksums, and all learn."""
    found: Path | None = None
    problem: CheckpointError | ConfigError | None = None
    if processes.is_main:
        try:
            found = find_checkpoint(folder.last)
            if found is not None and not resume:
                problem = ConfigError(
                    f"{folder.path} holds a run already. Continue it (--resume), or choose another output folder."
                )
        except CheckpointError as error:
            problem = error
    found, problem = processes.broadcast((found, problem))
    if problem is not None:
        raise problem
    return found
