"""A run is opened once: its processes, its folder and lock, and the checkpoint that it continues from."""

import platform
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kinescan.errors import CheckpointError, ConfigError
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.device import choose_device
from kinescan.runtime.distributed import Processes, open_processes
from kinescan.runtime.folder_lock import locked
from kinescan.runtime.output_folder import prepare_output
from kinescan.runtime.run_folder import RunFolder
from kinescan.training.checkpoint import find_checkpoint

SHARED_SECONDS = 30.0
"""How long a file that one machine writes may take to appear on another one."""


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
        ConfigError: the folder cannot be written, another process writes into it, processes on several machines do not
            share it, or it holds a run that is not to be resumed.
        CheckpointError: the checkpoint is damaged.
    """
    with open_processes(choose_device(device)) as processes:
        folder = RunFolder(prepare_output(processes.broadcast(str(output))))
        with locked(folder.path, processes):
            _require_shared(folder.path, processes)
            checkpoint = _checkpoint(folder, processes, resume=resume)
            yield OpenRun(folder=folder, processes=processes, resume=resume, checkpoint=checkpoint)


def _require_shared(folder: Path, processes: Processes) -> None:
    """Passes where every process sees what the main one writes: all of them read checkpoints there.

    Raises:
        ConfigError: in all of them, where one sees another folder of this name, as on a machine of its own.
    """
    if processes.count == 1:
        return
    token = processes.broadcast(f".shared-{uuid.uuid4().hex}")
    problem: ConfigError | None = None
    if processes.is_main:
        try:
            write_text(folder / token, "")
        except ConfigError as error:
            problem = error
    # The file is there when the others get past this.
    problem = processes.broadcast(problem)
    sees = problem is None and _appears(folder / token)
    blind = [who for who, found in processes.gather((_name(processes), sees)) if not found]
    if processes.is_main:
        (folder / token).unlink(missing_ok=True)
    if problem is not None:
        raise problem
    if blind:
        raise ConfigError(
            f"{folder} is another folder for {', '.join(blind)} than for the main process. Processes on several "
            "machines need an output folder on storage that all of them share: checkpoints are written by the main "
            "process and read by all."
        )


def _name(processes: Processes) -> str:
    return f"process {processes.index} on {platform.node()}"


def _appears(path: Path) -> bool:
    """Whether a file is there, after a while on storage that tells others late."""
    end = time.monotonic() + SHARED_SECONDS
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


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
