"""A linear recurrence over time with input-dependent decay, write and read: the heart of a Mamba-1 block."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from kinescan.errors import ConfigError, ShapeError
from kinescan.ops.backend import Obstacle, choose_backend, triton_obstacle, without_autocast
from kinescan.ops.selective_scan import blockwise, numba, reference
from kinescan.ops.selective_scan.operator import Gradients, ScanInputs, register_scan
from kinescan.runtime.backend_names import Backend
from kinescan.shapes import State, TrackMatrix, Tracks

__all__ = ["selective_scan", "selective_scan_step"]

Row = Float[Tensor, "R D"]
Vector = Float[Tensor, "R S"]

OBSTACLES: Mapping[Backend, Obstacle] = {
    "numba": numba.obstacle,
    "triton": triton_obstacle,
    "blockwise": lambda u: None,
    "reference": lambda u: None,
}
"""What keeps each backend from a long scan, in order of preference."""
OBSTACLES_OF_SHORT: Mapping[Backend, Obstacle] = {
    name: OBSTACLES[name] for name in ("numba", "triton", "reference", "blockwise")
}
"""The same for scans of a few steps."""


def selective_scan(
    u: Tracks,
    delta: Tracks,
    A: Float[Tensor, "D S"],
    B: TrackMatrix,
    C: TrackMatrix,
    D: Float[Tensor, " D"] | None = None,
    z: Tracks | None = None,
    delta_bias: Float[Tensor, " D"] | None = None,
    delta_softplus: bool = True,
    state: State | None = None,
    backend: Backend | None = None,
    out: tuple[Tracks, State] | None = None,
) -> tuple[Tracks, State]:
    """Mamba's selective state-space scan along time, for each channel of each track (sequence) by itself.

        Delta_t = softplus(delta_t + delta_bias)            or delta_t + delta_bias without `delta_softplus`
        h_t     = exp(Delta_t A) h_{t-1} + Delta_t B_t u_t  h_0 = state
        y_t     = (C_t h_t + D u_t) silu(z_t)               the parts with D and z only where they are given

    Gradients reach every tensor, the state that comes in and through the one that goes out. Only the inputs are kept
    for them (numba and triton): states are computed again in the backward pass. Feeding a sequence in chunks, with the
    state carried over, gives what feeding it whole gives.

    Everything is computed in float32, or in float64 where u is float64, and autocast changes nothing about it: A, D,
    the bias and the state may stay float32 beside the bfloat16 tokens that autocast makes.

    Args:
        u: [R, T, D], inputs.
        delta: [R, T, D], step sizes, before bias and softplus.
        A: [D, S], decay rates; negative, or the state grows.
        B: [R, T, S], input matrix: how strongly u is written into each entry of the state.
        C: [R, T, S], output matrix: how strongly each entry of the state is read.
        D: [D], weights of the skip connection from u to y.
        z: [R, T, D], output gate.
        delta_bias: [D], added to delta.
        delta_softplus: make step sizes positive by softplus.
        state: [R, D, S], the state to continue from; zeros by default.
        backend: "numba" (CPU), "triton" (CUDA), "blockwise" (chunks of time side by side, for long sequences on any
            device) or "reference"; by default the fastest that runs on this device and dtype.
        out: y and the last state to write to, of the shapes and dtypes of what is returned, without gaps; no
            gradients. The last state may be `state` itself, which is then overwritten. Worth it in a loop: a system
            hands out fresh memory, which large results need at every call, about as fast as "numba" fills it. Other
            backends, and results that are not float32, are computed as without it, and copied.

    Returns:
        y [R, T, D] in the dtype of u, and the last state [R, D, S] in float32 (float64 for float64); `out`, if given.

    Raises:
        ConfigError: `out` is given where gradients are to be taken.
        ShapeError: a tensor has a shape, dtype or device that does not go with those of u and A, or T is 0; what `out`
            holds shares memory with an input.
        BackendError: the backend asked for cannot run here; the message says why and which can.

    Source: Mamba (Gu and Dao, 2024), eq. 1-2 and Algorithm 2; PKS4 (arXiv 2604.26461), eq. 19-25.
    Differs: channels last, a state in and out. The write is Delta B, as in the published code (eq. 4 has another form).

    Example:
        >>> u, delta, A = torch.ones(1, 3, 2), torch.full((1, 3, 2), 0.5), torch.zeros(2, 4)
        >>> B = C = torch.ones(1, 3, 4)
        >>> y, state = selective_scan(u, delta, A, B, C, delta_softplus=False)  # no decay: a running sum
        >>> y.shape, state.shape, y[0, :, 0].tolist()
        (torch.Size([1, 3, 2]), torch.Size([1, 2, 4]), [2.0, 4.0, 6.0])
    """
    _check(u, A, {"delta": delta, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias, "state": state})
    if out is not None:
        _check_out(out, u.shape, u, A, (delta, B, C, D, z, delta_bias, state))
    long = u.shape[1] >= blockwise.LONG
    chosen = choose_backend("selective_scan", backend, OBSTACLES if long else OBSTACLES_OF_SHORT, u)
    if out is not None and chosen == "numba" and u.dtype == torch.float32:
        numba.scan_into(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state, *out)
        return out
    found = _scan(chosen, u, delta, A, B, C, D, z, delta_bias, delta_softplus, state)
    if out is None:
        return found
    for written, result in zip(out, found, strict=True):
        written.copy_(result)
    return out


def _scan(
    chosen: Backend,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if chosen in ("numba", "triton"):
        scan = numba.scan if chosen == "numba" else _triton_scan
        return scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state)
    wide = torch.float64 if u.dtype == torch.float64 else torch.float32
    D, z, delta_bias, state = (None if x is None else x.to(wide) for x in (D, z, delta_bias, state))
    u_wide, delta, A, B, C = (x.to(wide) for x in (u, delta, A, B, C))
    form = blockwise.scan if chosen == "blockwise" else reference.scan
    with without_autocast(u):
        y, last_state = form(u_wide, delta, A, B, C, D, z, delta_bias, delta_softplus, state)
    return y.to(u.dtype), last_state


def selective_scan_step(
    u: Row,
    delta: Row,
    A: Float[Tensor, "D S"],
    B: Vector,
    C: Vector,
    D: Float[Tensor, " D"] | None = None,
    z: Row | None = None,
    delta_bias: Float[Tensor, " D"] | None = None,
    delta_softplus: bool = True,
    state: State | None = None,
    backend: Backend | None = None,
    out: tuple[Row, State] | None = None,
) -> tuple[Row, State]:
    """`selective_scan` of a single step, without the axis of time: constant time and memory, whatever came before.

    Args:
        u: [R, D].
        delta: [R, D].
        A: [D, S].
        B: [R, S].
        C: [R, S].
        D: [D].
        z: [R, D].
        delta_bias: [D].
        delta_softplus: as for `selective_scan`.
        state: [R, D, S], from the step before; zeros by default. It is not changed, unless `out` says so.
        backend: as for `selective_scan`.
        out: y [R, D] and the next state to write to, as for `selective_scan`; with (y, state) a stream needs no new
            memory.

    Returns:
        y [R, D] and the next state [R, D, S]: those of `selective_scan` with T = 1, gradients included; or `out`.

    Raises:
        ConfigError: as for `selective_scan`.
        ShapeError: u, delta, B, C or z is not of rank 2; else as for `selective_scan`.
        BackendError: as for `selective_scan`.

    Source: Mamba (Gu and Dao, 2024), eq. 2a-2b.

    Example:
        >>> row, A, vector = torch.ones(196, 64), -torch.ones(64, 16), torch.ones(196, 16)
        >>> y, state = selective_scan_step(row, row, A, vector, vector)
        >>> y, state = selective_scan_step(row, row, A, vector, vector, state=state)
        >>> y.shape, state.shape
        (torch.Size([196, 64]), torch.Size([196, 64, 16]))
    """
    for name, tensor in {"u": u, "delta": delta, "B": B, "C": C, "z": z}.items():
        if tensor is not None and tensor.ndim != 2:
            raise ShapeError(
                f"{name} of a single step must have 2 axes, tracks and channels or positions of the state, "
                f"got {list(tensor.shape)}. For several steps call selective_scan."
            )
    gate = None if z is None else z[:, None]
    if out is not None:
        _check_out(out, (u.shape[0], A.shape[0]), u, A, (delta, B, C, D, z, delta_bias, state))
    tracks_out = None if out is None else (out[0][:, None], out[1])
    y, state = selective_scan(
        u[:, None], delta[:, None], A, B[:, None], C[:, None], D, gate, delta_bias, delta_softplus, state, backend,
        tracks_out,
    )  # fmt: skip
    return (y[:, 0], state) if out is None else out


def _scan_with_triton(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    # triton is optional, and decides between compiler and interpreter when its kernels are imported
    from kinescan.ops.selective_scan import triton

    return triton.scan(inputs)


def _scan_backward_with_triton(grad_y: Tensor, grad_state: Tensor | None, inputs: ScanInputs) -> Gradients:
    from kinescan.ops.selective_scan import triton

    return triton.scan_backward(grad_y, grad_state, inputs)


_triton_scan = register_scan("selective_scan_triton", _scan_with_triton, _scan_backward_with_triton)


def _check(u: Tensor, A: Tensor, others: Mapping[str, Tensor | None]) -> None:
    if u.ndim != 3 or 0 in u.shape:
        raise ShapeError(f"u must be [R, T, D] with no empty axis, got {list(u.shape)}. A single step is T = 1.")
    num_tracks, num_steps, num_channels = u.shape
    if A.ndim != 2 or A.shape[0] != num_channels or A.shape[1] == 0:
        raise ShapeError(f"A must be [D, S] with D = {num_channels}, as in u, got {list(A.shape)}.")
    letters = {"R": num_tracks, "T": num_steps, "D": num_channels, "S": A.shape[1]}
    for name, tensor in {"u": u, "A": A, **others}.items():
        if tensor is None:
            continue
        if tensor.device != u.device:
            raise ShapeError(f"{name} is on {tensor.device} but u is on {u.device}. Move all tensors to one device.")
        if not tensor.is_floating_point() or (tensor.dtype == torch.float64 and u.dtype != torch.float64):
            raise ShapeError(
                f"{name} is {_plain(tensor.dtype)} beside u in {_plain(u.dtype)}. Give floating tensors, "
                "float64 only where u is float64, too."
            )
        if name in _AXES:
            expected = [letters[axis] for axis in _AXES[name]]
            if list(tensor.shape) != expected:
                axes = ", ".join(_AXES[name])
                raise ShapeError(
                    f"{name} must be [{axes}] = {expected} to go with u {list(u.shape)} and A {list(A.shape)}, "
                    f"got {list(tensor.shape)}."
                )


def _check_out(out: object, y_shape: tuple[int, ...], u: Tensor, A: Tensor, others: tuple[Tensor | None, ...]) -> None:
    if not isinstance(out, tuple | list) or len(out) != 2 or not all(isinstance(x, Tensor) for x in out):
        raise ShapeError(f"out must be two tensors, y and the last state, got {type(out).__name__}.")
    wide = torch.float64 if u.dtype == torch.float64 else torch.float32
    expected = (("y", y_shape, u.dtype), ("the last state", (u.shape[0], *A.shape), wide))
    for (name, shape, dtype), tensor in zip(expected, out, strict=True):
        if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype or tensor.device != u.device:
            raise ShapeError(
                f"out: {name} must be {list(shape)} in {_plain(dtype)} on {u.device}, got {list(tensor.shape)} in "
                f"{_plain(tensor.dtype)} on {tensor.device}."
            )
        if not tensor.is_contiguous():
            raise ShapeError(
                f"out: {name} has gaps, its strides are {tensor.stride()}. Give a contiguous tensor, such as "
                "torch.empty makes."
            )
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (u, A, *others, *out)):
        raise ConfigError(
            "out is given, but an input or a tensor of out requires gradients. Call without out, or within "
            "torch.no_grad() or torch.inference_mode()."
        )


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_AXES = {"delta": "RTD", "B": "RTS", "C": "RTS", "D": "D", "z": "RTD", "delta_bias": "D", "state": "RDS"}
