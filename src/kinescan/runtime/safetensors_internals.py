"""What this package reads off the errors of safetensors, which give neither a type for it nor a number.

A release of safetensors may change it without notice. `tests/runtime/test_safetensors_internals.py` says which feature
of kinescan breaks then; the range of versions that was tried is in pyproject.toml.
"""

from collections.abc import Iterable

from safetensors import SafetensorError

__all__ = ["refused_by_system"]


def refused_by_system(error: BaseException, numbers: Iterable[int]) -> bool:
    """Whether safetensors says that the system refused to read or write a file.

    Args:
        error: what safetensors raised.
        numbers: of `errno`, the refusals that count.
    """
    return isinstance(error, SafetensorError) and any(f"os error {number})" in str(error) for number in numbers)
