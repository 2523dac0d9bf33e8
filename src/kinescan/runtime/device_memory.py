"""What to say when the memory of a device is full."""

from collections.abc import Iterator
from contextlib import contextmanager

from kinescan.errors import OutOfMemoryError
from kinescan.runtime.torch_internals import exhausted_memory


@contextmanager
def memory_named(doing: str, ways_out: str) -> Iterator[None]:
    """Turns torch's errors of a full device into ours.

    Args:
        doing: what was under way, such as "a training step of 32 clips".
        ways_out: what to change, a sentence.

    Raises:
        OutOfMemoryError: the device's memory is full; the message has torch's own numbers of what was asked and free.

    Example:
        >>> import torch
        >>> try:
        ...     with memory_named("a step", "Lower loader.batch_size."):
        ...         raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        ... except OutOfMemoryError as error:
        ...     print(error)
        a step does not fit into memory: CUDA out of memory. Tried to allocate 2.00 GiB. Lower loader.batch_size.
    """
    try:
        yield
    except RuntimeError as error:
        said = exhausted_memory(error)
        if said is None:
            raise
        raise OutOfMemoryError(f"{doing} does not fit into memory: {said} {ways_out}") from error
