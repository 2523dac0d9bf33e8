"""A backend of the selective scan as an operator that torch can differentiate, compile and export."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kinescan.ops.backend import refuse_second_derivative
from kinescan.runtime.torch_internals import runs_alone
from kinescan.shapes import State, TrackMatrix, Tracks


class ScanInputs(NamedTuple):
    """What a scan is computed from, as in `reference.scan`.

    Attributes:
        u: [R, T, D].
        delta: [R, T, D].
        A: [D, S].
        B: [R, T, S].
        C: [R, T, S].
        D: [D] or None.
        z: [R, T, D] or None.
        delta_bias: [D] or None.
        delta_softplus: whether step sizes go through softplus.
        state: [R, D, S] or None.
    """

    u: Tracks
    delta: Tracks
    A: Tensor
    B: TrackMatrix
    C: TrackMatrix
    D: Tensor | None
    z: Tracks | None
    delta_bias: Tensor | None
    delta_softplus: bool
    state: State | None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All but `delta_softplus`, in this order."""
        return (*self[:8], self.state)


Forward = Callable[[ScanInputs], tuple[Tensor, Tensor]]
"""Gives y in the dtype of u and the last state in float32, both contiguous."""
Into = Callable[[ScanInputs, Tensor, Tensor], None]
"""As `Forward`, into a y and a last state that are given: contiguous, y in float32."""
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""In the order of `ScanInputs.tensors` and in their dtypes; that of an absent one has no entries."""
Backward = Callable[[Tensor, Tensor | None, ScanInputs], Gradients]
"""Takes the gradients of y and, or None, of the last state."""


def register_scan(name: str, forward: Forward, backward: Backward) -> Callable[..., tuple[Tensor, Tensor]]:
    """Operators `kinescan::<name>` and `kinescan::<name>_backward` of the two functions.

    Only the inputs are kept between them. The gradient can be taken once: it has none of its own.

    Returns:
        a function of the fields of `ScanInputs`.
    """

    @torch.library.custom_op(f"kinescan::{name}", mutates_args=())
    def scan(
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
        return forward(ScanInputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state))

    @torch.library.custom_op(f"kinescan::{name}_backward", mutates_args=())
    def scan_backward(
        grad_y: Tensor,
        grad_state: Tensor | None,
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
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state)
        return backward(grad_y, grad_state, inputs)

    def differentiate(ctx: Any, grad_y: Tensor | None, grad_state: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, state = ctx.saved_tensors
        if grad_y is None:
            grad_y = torch.zeros_like(tensors[0])
        *grads, grad_of_state = scan_backward(grad_y, grad_state, *tensors, ctx.delta_softplus, state)
        found = [None if x is None else grad for x, grad in zip(tensors, grads, strict=True)]
        return *found, None, None if state is None else grad_of_state

    scan.register_fake(_fake_scan)
    scan_backward.register_fake(_fake_backward)
    scan.register_autograd(differentiate, setup_context=_save_inputs)
    op = name.removesuffix("_triton")
    refuse_second_derivative(scan_backward, op, "numba" if op == name else "triton")

    def run(*inputs: Any) -> tuple[Tensor, Tensor]:
        given = ScanInputs(*inputs)
        if runs_alone(given.tensors):
            return forward(given)
        found: tuple[Tensor, Tensor] = scan(*inputs)
        return found

    return run


def register_scan_into(name: str, into: Into) -> Callable[..., None]:
    """The operator `kinescan::<name>`, without gradients, of a function that fills the results it is given.

    Returns:
        a function of the fields of `ScanInputs`, y and the last state, which may be the state that comes in.
    """

    @torch.library.custom_op(f"kinescan::{name}", mutates_args=("y", "last_state"))
    def scan_into(
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
        y: Tensor,
        last_state: Tensor,
    ) -> None:
        into(ScanInputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state), y, last_state)

    scan_into.register_fake(lambda *arguments: None)

    def run(*inputs: Any) -> None:
        *given, y, last_state = inputs
        values = ScanInputs(*given)
        if runs_alone((*values.tensors, y, last_state)):
            into(values, y, last_state)
            torch.autograd.graph.increment_version([y, last_state])
        else:
            scan_into(*inputs)

    return run


def _fake_scan(*inputs: Any) -> tuple[Tensor, Tensor]:
    u, _, A = inputs[:3]
    return u.new_empty(u.shape), u.new_empty((u.shape[0], *A.shape), dtype=torch.float32)


def _fake_backward(grad_y: Tensor, grad_state: Tensor | None, *inputs: Any) -> Gradients:
    given = ScanInputs(*inputs)
    return tuple(  # type: ignore[return-value]
        given.A.new_empty(0, dtype=torch.float32) if x is None else x.new_empty(x.shape) for x in given.tensors
    )


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    given = ScanInputs(*inputs)
    ctx.delta_softplus = given.delta_softplus
    ctx.save_for_backward(*given.tensors)
    ctx.set_materialize_grads(False)
