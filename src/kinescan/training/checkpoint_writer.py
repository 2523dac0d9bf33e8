"""Checkpoints are written by a thread, from copies that the training does not change."""

import queue
import threading
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor

from kinescan.runtime.torch_internals import tree_map
from kinescan.training.sharding import whole


class CheckpointWriter:
    """Runs jobs one after the other in a thread of its own; after one that fails, no other one runs.

    The thread ends with the process: what it has not finished then, a later reader takes for unfinished.

    Example:
        >>> writer, done = CheckpointWriter(), []
        >>> writer.submit(lambda: done.append("first"))
        >>> writer.submit(lambda: done.append("second"))
        >>> writer.wait()
        >>> done, writer.problem
        (['first', 'second'], None)
    """

    def __init__(self) -> None:
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._problem: Exception | None = None
        self._thread: threading.Thread | None = None

    @property
    def problem(self) -> Exception | None:
        """What the first job that failed raised; None so far."""
        return self._problem

    def submit(self, job: Callable[[], None]) -> None:
        """Puts a job behind those that wait."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def wait(self) -> None:
        """Returns when no job is left; `problem` says whether all were done."""
        self._jobs.join()

    def close(self) -> None:
        """Does what waits, and ends the thread."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                if job is None:
                    return
                if self._problem is None:
                    job()
            except Exception as error:  # the run raises it, in its own thread
                self._problem = error
            finally:
                # Of what was written, nothing is kept alive by a thread that waits.
                job = None
                self._jobs.task_done()


class HostCopy:
    """Copies of tensors in the memory of the CPU, which each `take` fills anew; of a GPU's tensors, page-locked.

    Example:
        >>> weights = {"weight": torch.zeros(1)}
        >>> copy = HostCopy().take(weights)
        >>> _ = weights["weight"].add_(1)
        >>> copy
        {'weight': tensor([0.])}
    """

    def __init__(self) -> None:
        self._held: dict[int, Tensor] = {}

    def take(self, values: Any, *, kept: bool = True) -> Any:
        """The same nested dicts, lists and tuples with copies of their tensors.

        Args:
            values: of tensors that processes divide, all of them take the same values together.
            kept: False takes part in the gathering and copies nothing.

        Returns:
            `values` with the copies, which hold until the next call; without `kept`, with None for each tensor.
        """
        numbers, devices = count(), set()

        def copy(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            full = whole(value.detach())
            if not kept:
                return None
            devices.add(full.device.type)
            return self._buffer(next(numbers), full).copy_(full, non_blocking=True)

        copies = tree_map(copy, values)
        if "cuda" in devices:
            torch.cuda.synchronize()
        return copies

    def _buffer(self, number: int, like: Tensor) -> Tensor:
        held = self._held.get(number)
        if held is None or held.shape != like.shape or held.dtype != like.dtype:
            held = torch.empty(like.shape, dtype=like.dtype, pin_memory=like.device.type == "cuda")
            self._held[number] = held
        return held
