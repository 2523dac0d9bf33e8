import datetime
import gc
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, distributed

from kinescan.errors import ConfigError
from kinescan.runtime.accelerate_internals import forget_processes
from kinescan.runtime.error_text import first_line
from kinescan.runtime.launch import missing_variables, world_size
from kinescan.runtime.torch_internals import tree_map

PATIENCE = datetime.timedelta(hours=2)
"""How long a process waits for the others, such as while one of them writes a checkpoint or reads slow videos."""
_SETTLING_SECONDS = 0.5


class Processes:
    """The processes that train together, and what they tell each other; alone, each gets back what it gave.

    Every method is to be called by all of them, in the same order.

    Args:
        index: of this process, from 0.
        count: how many there are.
        device: where exchanged tensors live.

    Example:
        >>> alone = Processes()
        >>> alone.is_main, alone.sum([1.0, 2.0]), alone.gather("a")
        (True, [1.0, 2.0], ['a'])
    """

    def __init__(self, index: int = 0, count: int = 1, device: torch.device | str = "cpu") -> None:
        self.index, self.count, self.device = index, count, torch.device(device)

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.index == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each number, summed over the processes."""
        if self.count == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(sums)
        result: list[float] = sums.tolist()
        return result

    def sum_tensor(self, values: Tensor) -> Tensor:
        """A tensor on the device, summed over the processes in place; nothing waits for its value."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def stack(self, values: Sequence[int]) -> Tensor:
        """[processes, n] int64: the n numbers of each process."""
        own = torch.tensor(values, dtype=torch.int64, device=self.device)
        if self.count == 1:
            return own[None]
        gathered = [torch.empty_like(own) for _ in range(self.count)]
        distributed.all_gather(gathered, own)
        return torch.stack(gathered).cpu()

    def gather(self, value: Any) -> list[Any]:
        """The value of each process, in their order; anything that can be pickled, for what is small.

        Rows of numbers go by `gather_rows`. A tensor that is a part of a larger one is sent without the rest.
        """
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, tree_map(_on_its_own, value))
        return values

    def gather_rows(self, rows: Tensor) -> Tensor:
        """The rows of all processes, those of the first process first.

        Args:
            rows: [n, ...], n may differ between processes; the rest and the dtype may not.

        Returns:
            [sum of n, ...] on the CPU, in every process.
        """
        if self.count == 1:
            return rows.cpu()
        counts = self.stack([len(rows)])[:, 0].tolist()
        own = torch.zeros(max(counts), *rows.shape[1:], dtype=rows.dtype, device=self.device)
        own[: len(rows)] = rows
        every = [torch.empty_like(own) for _ in range(self.count)]
        distributed.all_gather(every, own)
        return torch.cat([part[:count].cpu() for part, count in zip(every, counts, strict=True)])

    def broadcast(self, value: Any) -> Any:
        """The main process's value; those of the others are not used."""
        if self.count == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0, device=self.device)
        return values[0]


def joined_processes() -> Processes:
    """Those that torch.distributed has joined with this one; otherwise this one alone."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return Processes()
    on_gpu = distributed.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    return Processes(distributed.get_rank(), distributed.get_world_size(), device)


def _on_its_own(value: Any) -> Any:
    """A tensor without the larger one that it is a part of, which pickling would take along."""
    if isinstance(value, Tensor) and value.untyped_storage().nbytes() > value.numel() * value.element_size():
        return value.clone()
    return value


@contextmanager
def open_processes(device: torch.device) -> Iterator[Processes]:
    """The processes that torchrun or `accelerate launch` started together with this one; else this one alone.

    Where they know each other already, they are taken as they are and left so.

    Args:
        device: kind of device that they train on; with CUDA, each process gets one of its own.

    Raises:
        ConfigError: there are several, on a device that they cannot use together, or the launcher did not say where
            they meet, or they cannot meet there.
    """
    if world_size() == 1 and not distributed.is_initialized():
        yield Processes(device=device)
        return
    known = distributed.is_initialized()
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"several processes train on cpu or cuda, not on {device.type}. Set train.device, or start one."
        )
    missing = [] if known else missing_variables()
    if missing:
        raise ConfigError(
            f"WORLD_SIZE={world_size()} says that several processes train together, and {', '.join(missing)} are not "
            "set, so that they cannot find each other. Start them with torchrun or accelerate launch, or unset "
            "WORLD_SIZE."
        )
    try:
        state = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
    except distributed.DistNetworkError as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ConfigError(
            f"the processes cannot meet at {where} (MASTER_ADDR, MASTER_PORT): {first_line(error)} Choose a port "
            "that is free, and an address that every machine can reach."
        ) from error
    try:
        yield Processes(state.process_index, state.num_processes, state.device)
    finally:
        if not known:
            forget_processes()
            # Threads of the group let go of the last tensors in their own time, and need Python's lock for it, which
            # destroying the group holds while it waits for them: seen once, as a process that never ended.
            time.sleep(_SETTLING_SECONDS)
            distributed.destroy_process_group()
            # A finished run leaves cycles that hold the group, and with it threads that let go of tensors in their own
            # time: if Python ends meanwhile, it is aborted. Freed, the group waits for its threads.
            gc.collect()
