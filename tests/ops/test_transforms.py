"""Derivatives by torch.func, in forward mode and of second order, and autocast: the right value or an error of ours."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from kinescan.errors import BackendError, ConfigError
from kinescan.models.zoo import create_model
from kinescan.ops import attention_mass, local_correlation, selective_scan
from kinescan.ops.attention_mass import blockwise
from kinescan.ops.backend import plain_torch

Op = Callable[..., Tensor]
_drawn = torch.Generator().manual_seed(0)
SCAN = {
    name: torch.randn(*shape, generator=_drawn)
    for name, shape in {"delta": (2, 5, 4), "A": (4, 3), "B": (2, 5, 3), "C": (2, 5, 3)}.items()
}


def _correlate(x: Tensor, backend: Any = None) -> Tensor:
    return local_correlation(x, window=3, backend=backend)


def _scan(x: Tensor, backend: Any = None) -> Tensor:
    others = {name: tensor.to(x.dtype) for name, tensor in SCAN.items()}
    return selective_scan(x, **others | {"A": -others["A"].exp()}, backend=backend)[0]


def _mass(x: Tensor, backend: Any = None) -> Tensor:
    return torch.cat([part.flatten() for part in attention_mass(x, x, 2 * x, backend=backend)])


OPS: dict[str, tuple[Op, tuple[int, ...], str]] = {
    "local_correlation": (_correlate, (1, 3, 8, 4, 4), "numba"),
    "selective_scan": (_scan, (2, 5, 4), "numba"),
    "attention_mass": (_mass, (1, 2, 4, 8), "blockwise"),
}
BACKENDS = {
    "local_correlation": ("numba", "dense", "reference"),
    "selective_scan": ("numba", "blockwise", "reference"),
    "attention_mass": ("blockwise", "reference"),
}
DIFFERENTIABLE = ("local_correlation", "selective_scan")


def _along(op: Op, x: Tensor, direction: Tensor) -> Tensor:
    """The derivative by central differences, in float64."""
    step = 1e-6
    x, direction = x.double(), direction.double()
    return ((op(x + step * direction) - op(x - step * direction)) / (2 * step)).float()


@pytest.mark.parametrize("name", OPS)
def test_forward_mode_gives_the_right_tangent(name: str) -> None:
    op, shape, _ = OPS[name]
    x, direction = torch.randn(shape), torch.randn(shape)
    expected = _along(op, x, direction)
    torch.testing.assert_close(torch.func.jvp(op, (x,), (direction,))[1], expected, atol=1e-4, rtol=1e-3)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(op(forward_ad.make_dual(x, direction))).tangent
    torch.testing.assert_close(tangent, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_torch_func_gives_the_gradients_of_backward(name: str) -> None:
    op, shape, _ = OPS[name]
    x = torch.randn(shape, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        return op(x).square().sum()

    (expected,) = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(torch.func.grad(loss)(x.detach()), expected, atol=1e-5, rtol=1e-4)
    rows = torch.stack([x.detach(), 2 * x.detach()])
    by_row = torch.vmap(torch.func.grad(loss))(rows)
    torch.testing.assert_close(by_row[0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", OPS)
def test_vmap_gives_what_calls_one_by_one_give(name: str) -> None:
    op, shape, _ = OPS[name]
    rows = torch.randn(2, *shape)
    torch.testing.assert_close(torch.vmap(op)(rows), torch.stack([op(row) for row in rows]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", OPS)
def test_a_kernel_asked_for_by_name_refuses_what_it_has_no_rule_for(name: str) -> None:
    op, shape, backend = OPS[name]
    x = torch.randn(shape)
    with pytest.raises(BackendError, match=rf"{name}: backend '{backend}'.*backend=\"reference\""):
        torch.func.jvp(lambda x: op(x, backend), (x,), (x,))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_second_derivatives_are_refused_by_name_and_right_with_the_reference(name: str) -> None:
    op, shape, backend = OPS[name]

    def second(x: Tensor, backend: str | None) -> Tensor:
        (first,) = torch.autograd.grad(op(x, backend).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    x = torch.randn(shape, requires_grad=True)
    for asked in (None, backend):
        with pytest.raises(BackendError, match=rf"{name}: backend '{backend}' .*backend=\"reference\""):
            second(x, asked)
    with plain_torch():
        torch.testing.assert_close(second(x, None), second(x, "reference"), atol=1e-3, rtol=1e-3)


def test_attention_mass_says_that_it_has_no_gradient() -> None:
    with pytest.raises(ConfigError, match="attention_mass"):
        torch.func.grad(lambda x: _mass(x).sum())(torch.randn(1, 2, 4, 8))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_whole_models_can_be_differentiated_by_torch_func(norm: str) -> None:
    sizes = {"width": 16, "heads": 2, "mlp_dim": 16, "embed_dim": 8, "image_size": 8, "patch_size": 4}
    model = create_model("pks4_vit_ti16", depth=2, window=3, kinematic_width=8, norm=norm, num_classes=2, **sizes)
    for parameter in model.eval().parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    clip, direction = torch.randn(1, 2, 3, 8, 8), torch.randn(1, 2, 3, 8, 8)
    tangent = torch.func.jvp(model, (clip,), (direction,))[1]
    gradient = torch.func.grad(lambda clip: model(clip)[0, 0])(clip)
    torch.testing.assert_close((gradient * direction).sum(), tangent[0, 0], atol=1e-5, rtol=1e-3)
    with plain_torch():
        (first,) = torch.autograd.grad(model(clip.requires_grad_()).square().sum(), clip, create_graph=True)
        assert torch.autograd.grad(first.square().sum(), clip)[0].any()


@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, backend) for name, backends in BACKENDS.items() for backend in backends],
)
def test_autocast_changes_nothing_about_an_op(name: str, backend: str) -> None:
    op, shape, _ = OPS[name]
    x = torch.randn(shape)
    expected = op(x, backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(op(x, backend), expected, atol=0, rtol=0)


def test_long_attention_is_summed_in_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "CPU_BLOCK_BYTES", 64)
    x = torch.randn(1, 2, 40, 8)
    expected = _mass(x, "blockwise")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(_mass(x, "blockwise"), expected, atol=0, rtol=0)


@pytest.mark.compile
def test_compiled_functions_give_the_same_tangents() -> None:
    x, direction = torch.randn(1, 2, 4, 3, 3), torch.randn(1, 2, 4, 3, 3)

    def tangent(x: Tensor, direction: Tensor) -> Tensor:
        return torch.func.jvp(_correlate, (x,), (direction,))[1]

    compiled = torch.compile(tangent, backend="eager")
    torch.testing.assert_close(compiled(x, direction), tangent(x, direction), atol=1e-5, rtol=1e-4)
    plain = torch.compile(_correlate, backend="eager")
    torch.testing.assert_close(plain(x), _correlate(x), atol=1e-6, rtol=1e-5)
