"""What the kernels of the selective scan share: a step, how splits of time lie, and the sizes of a program.

Legend as in `triton.py`.
"""

import triton
import triton.language as tl
from torch import Tensor

LOG2E = 1.4426950408889634
MAX_BLOCK = 128
"""Channels of a program: four warps."""
STATE_SIZE_OF_A_THREAD = 32
"""Where states have more positions, a channel is shared by threads, and a program has fewer channels."""


@triton.jit
def softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + e**x) without overflow."""
    small = tl.exp(-tl.abs(x))
    one_more = 1.0 + small
    # log(1 + small) without the error of the rounded sum
    is_lost = one_more == 1.0
    quotient = small / tl.where(is_lost, 1.0, one_more - 1.0)
    return tl.maximum(x, 0.0) + tl.where(is_lost, small, tl.log(one_more) * quotient)


@triton.jit
def sigmoid(x):  # type: ignore[no-untyped-def]
    """1 / (1 + e**-x)."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def read(pointer, offsets, mask):  # type: ignore[no-untyped-def]
    """In float32; zeros where it is masked."""
    return tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def write(pointer, offsets, value, mask):  # type: ignore[no-untyped-def]
    """In the pointer's dtype."""
    tl.store(pointer + offsets, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def step_size(delta_ptr, offsets, mask, bias, SOFTPLUS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The step size before and after softplus; one that is masked is 0, which neither decays nor writes."""
    raw = read(delta_ptr, offsets, mask)
    if bias is not None:
        raw += bias
    step = raw
    if SOFTPLUS:
        step = softplus(raw)
    return raw, tl.where(mask, step, 0.0)


@triton.jit
def advance(h, rates, u, step, into):  # type: ignore[no-untyped-def]
    """The state after a step."""
    return tl.exp2(step[None, :] * rates) * h + (step * u)[None, :] * into[:, None]


@triton.jit
def read_or_none(pointer, offsets, mask):  # type: ignore[no-untyped-def]
    """As `read`; None where there is nothing to read."""
    value = None
    if pointer is not None:
        value = read(pointer, offsets, mask)
    return value


@triton.jit
def when(split, num_splits, split_steps, num_steps):  # type: ignore[no-untyped-def]
    """The track of a split of time, its first step, and how many it has."""
    first = (split % num_splits) * split_steps
    return split // num_splits, first, tl.minimum(split_steps, num_steps - first).to(tl.int32)


def launch_sizes(num_channels: int, state_size: int) -> dict[str, int]:
    """Constants and number of warps of `_scan` for this many channels and positions of a state."""
    wide_state = triton.next_power_of_2(state_size)
    fewer = max(1, wide_state // STATE_SIZE_OF_A_THREAD)
    most = MAX_BLOCK // min(fewer, 4)
    block = min(most, max(32, triton.next_power_of_2(num_channels)))
    return {
        "STATE_SIZE": state_size,
        "WIDE_STATE": wide_state,
        "BLOCK": block,
        "num_warps": min(4, max(1, block * min(fewer, 4) // 32)),
    }


def rates_of(A: Tensor) -> Tensor:
    """A log2(e), [S, D]."""
    return (A.float() * LOG2E).t().contiguous()


def flat(tensor: Tensor | None) -> Tensor | None:
    """The same tensor [...] contiguous in memory; None stays None."""
    return None if tensor is None else tensor.contiguous()


def dense(tensor: Tensor | None) -> Tensor | None:
    """[R, T, X] as it is where the last axis has no gaps, else a copy."""
    return tensor if tensor is None or tensor.stride(2) == 1 else tensor.contiguous()


def strides_of(rows: list[Tensor | None]) -> list[int]:
    """Strides of the first two axes of tensors [R, T, X], one tensor after the other; 0, 0 for None."""
    return [stride for x in rows for stride in ((0, 0) if x is None else x.stride()[:2])]
