"""Room for the batches that worker processes hand over: they lie in shared memory, which containers keep small."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from kinescan.errors import ConfigError
from kinescan.runtime.launch import local_world_size
from kinescan.runtime.quantities import byte_size

SHARED_MEMORY = Path("/dev/shm")
"""Where Linux keeps it; other systems have no such limit."""


LOWERED = ("loader.batch_size", "loader.num_workers", "loader.prefetch_batches")
"""Settings that batches take less with."""


def check_shared_memory(batch_bytes: int, num_batches: int, *, lowered: Sequence[str] = LOWERED) -> None:
    """Passes where the batches that workers prepare ahead fit into shared memory.

    Args:
        batch_bytes: of one batch.
        num_batches: that lie there at once, of this process.
        lowered: settings to name, any of which takes less when it is lower.

    Raises:
        ConfigError: they do not; says how much is needed and how to get it.

    Example:
        >>> check_shared_memory(1024, 2)
    """
    if not SHARED_MEMORY.is_dir():
        return
    # The processes of one machine share it.
    needed, free = batch_bytes * num_batches * local_world_size(), shutil.disk_usage(SHARED_MEMORY).free
    if needed <= free:
        return
    gib, processes = -(-needed // 2**30) + 1, local_world_size()
    raise ConfigError(
        f"the worker processes need {byte_size(needed)} of shared memory for {num_batches} batches of "
        f"{byte_size(batch_bytes)} in each of {processes} processes, and {SHARED_MEMORY} has {byte_size(free)} left. "
        f"Start the container with --shm-size={gib}g (Kubernetes: an emptyDir with medium: Memory at /dev/shm), "
        f"lower {', '.join(lowered[:-1])} or {lowered[-1]}, or set loader.num_workers = 0."
    )
