"""The form for long sequences against the reference: outputs, last state, every gradient; in chunks; the choice."""

import pytest
import torch
from torch import Tensor

from kinescan.ops import selective_scan
from kinescan.ops.backend import choose_backend
from kinescan.ops.selective_scan import OBSTACLES, OBSTACLES_OF_SHORT


def _draw(tracks: int, steps: int, channels: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype)

    return {
        "u": normal(tracks, steps, channels),
        "delta": normal(tracks, steps, channels) - 1,
        "A": -torch.rand(channels, 5, dtype=dtype) * 4,
        "B": normal(tracks, steps, 5),
        "C": normal(tracks, steps, 5),
        "D": normal(channels),
        "z": normal(tracks, steps, channels),
        "delta_bias": normal(channels),
        "state": normal(tracks, channels, 5),
    }


@pytest.mark.parametrize("steps", [1, 2, 63, 100, 257])
def test_blockwise_matches_reference(steps: int) -> None:
    tensors = {name: tensor.requires_grad_() for name, tensor in _draw(2, steps, 3).items()}
    results = [selective_scan(**tensors, backend=backend) for backend in ("reference", "blockwise")]
    weights = [torch.randn_like(part) for part in results[0]]
    gradients = []
    for result in results:
        loss = sum((part * weight).sum() for part, weight in zip(result, weights, strict=True))
        gradients.append(torch.autograd.grad(loss, list(tensors.values())))
    for expected, found in zip(results[0], results[1], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-9)
    for name, expected, found in zip(tensors, *gradients, strict=True):
        assert (found - expected).abs().max() <= 1e-8 * expected.abs().max(), name


@pytest.mark.parametrize("backend", ["blockwise", "numba"])
def test_long_sequences_in_float32_match_the_reference_in_float64(backend: str) -> None:
    tensors = _draw(1, 1569, 40, torch.float32)
    exact, exact_state = selective_scan(**{k: t.double() for k, t in tensors.items()}, backend="reference")
    y, state = selective_scan(**tensors, backend=backend)
    torch.testing.assert_close(y.double(), exact, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(state.double(), exact_state, atol=2e-5, rtol=2e-5)


def test_blockwise_in_pieces_equals_whole() -> None:
    tensors = _draw(2, 70, 3)
    whole, end = selective_scan(**tensors, backend="blockwise")
    state, chunks = tensors.pop("state"), []
    for part in (slice(0, 1), slice(1, 40), slice(40, 70)):
        cut = {name: t[:, part] if name in ("u", "delta", "B", "C", "z") else t for name, t in tensors.items()}
        y, state = selective_scan(**cut, state=state, backend="blockwise")
        chunks.append(y)
    torch.testing.assert_close(torch.cat(chunks, dim=1), whole, atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(state, end, atol=1e-10, rtol=1e-9)


def test_the_long_form_is_chosen_for_long_sequences_where_there_are_no_kernels() -> None:
    like = torch.zeros(1, 300, 2, dtype=torch.float64)
    assert choose_backend("selective_scan", None, OBSTACLES, like) == "blockwise"
    assert choose_backend("selective_scan", None, OBSTACLES_OF_SHORT, like) == "reference"
    assert choose_backend("selective_scan", None, OBSTACLES, like.float()) == "numba"
