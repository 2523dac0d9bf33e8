"""Chunks on their way to the model's device, one ahead of the one that attention works on."""

import functools
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kinescan.errors import CheckpointError
from kinescan.runtime.atomic_write import atomic_write
from kinescan.runtime.error_text import first_line

Parts = tuple[Tensor, ...]


class ChunkFolder:
    """A folder for chunks, removed together with this object; in the system's folder for temporary files (TMPDIR).

    A forked process reads what was there, removes nothing of it, and writes into a folder of its own.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="kinescan-cache-"))
        self._count, self._process = 0, os.getpid()
        self._gone = weakref.finalize(self, _remove, self.path, self._process)

    def hold(self, parts: Parts) -> "ChunkOnDisk":
        """Writes a chunk that never changes again.

        Raises:
            CheckpointError: it cannot be written.
        """
        if os.getpid() != self._process:
            self._begin()
        self._count += 1
        return ChunkOnDisk(self, self.path / f"chunk-{self._count}.bin", parts)


class ChunkOnDisk:
    """Keys and values of one chunk in a file of their own, which goes with this object.

    Attributes:
        mean_key: [Hkv, D] float32, in memory, by which a question finds the chunk.
    """

    def __init__(self, folder: ChunkFolder, path: Path, parts: Parts) -> None:
        self.mean_key = parts[0].float().mean(2)[0]
        self._folder, self._path = folder, path
        self._kinds = [(tuple(part.shape), part.dtype) for part in parts]
        with atomic_write(path, error=CheckpointError, sync=False) as aside, aside.open("wb") as file:
            for part in parts:
                file.write(part.contiguous().cpu().view(torch.uint8).numpy().data)
        self._gone = weakref.finalize(self, _remove, path, os.getpid())

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in self._kinds)

    def read(self) -> Parts:
        """The chunk, in the CPU's memory.

        Raises:
            CheckpointError: the file is gone or cut.
        """
        parts = tuple(torch.empty(shape, dtype=dtype) for shape, dtype in self._kinds)
        try:
            with self._path.open("rb") as file:
                sizes = [file.readinto(part.view(torch.uint8).numpy().data.cast("B")) for part in parts]
        except OSError as error:
            raise CheckpointError(
                f"a part of the full KV cache cannot be read again ({first_line(error)}). Leave {self._path.parent} "
                "alone while the stream is open, or use storage memory."
            ) from None
        if sum(sizes) != self.num_bytes:
            raise CheckpointError(
                f"{self._path} was cut while the stream was open. Leave its folder alone, or use storage memory."
            )
        return parts


def _remove(path: Path, process: int) -> None:
    """A file or a folder with all in it, in the process that made it: a forked one ends without the other's chunks."""
    if os.getpid() != process:
        return
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class Fetcher(Protocol):
    """Brings chunks to the model's device."""

    def start(self, chunk: Any) -> Any:
        """Begins to bring a chunk; it does not wait."""

    def finish(self, coming: Any) -> Parts:
        """The chunk, once it is there."""


class DiskFetcher:
    """Reads chunks of a disk in another thread, beside what the CPU computes.

    Args:
        device: of the model.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self, chunk: "ChunkOnDisk | Parts") -> Callable[[], Parts]:
        """Begins to read; a chunk that is in memory is there."""
        if not isinstance(chunk, ChunkOnDisk):
            return lambda: chunk
        read: Future[Parts] = _reader(os.getpid()).submit(chunk.read)
        return read.result

    def finish(self, coming: Callable[[], Parts]) -> Parts:
        """The chunk, on the model's device."""
        return tuple(part.to(self._device) for part in coming())


@functools.cache
def _reader(process: int) -> ThreadPoolExecutor:
    """One thread for all streams of a process: a disk reads one file after the other anyway.

    Args:
        process: which one; a forked process has no threads of the one before.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="kinescan-cache")


class GpuFetcher:
    """Copies chunks of pinned memory to a GPU on a stream of their own, beside its computing.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)

    def start(self, chunk: Parts) -> tuple[Parts, torch.cuda.Event]:
        """Begins to copy."""
        with torch.cuda.stream(self._side):
            parts = tuple(part.to(self._device, non_blocking=True) for part in chunk)
            there = torch.cuda.Event()
            there.record(self._side)
        return parts, there

    def finish(self, coming: tuple[Parts, torch.cuda.Event]) -> Parts:
        """The chunk; what is computed from now on waits for it, the CPU does not."""
        parts, there = coming
        now = torch.cuda.current_stream(self._device)
        now.wait_event(there)
        for part in parts:
            # its memory is not given to another copy before this stream is done with it
            part.record_stream(now)
        return parts


def fetcher_of(storage: str, device: torch.device) -> Fetcher | None:
    """What brings chunks of this storage; None where they are beside the model."""
    if storage == "disk":
        return DiskFetcher(device)
    if storage == "offload" and device.type == "cuda":
        return GpuFetcher(device)
    return None
