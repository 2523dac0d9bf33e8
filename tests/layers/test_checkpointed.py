import pytest
import torch
from torch import Tensor, nn

from kinescan.layers.checkpointed import checkpointed


def _saved(run: object) -> set[tuple[int, ...]]:
    """Shapes of what autograd keeps beyond parameters."""
    shapes = set()

    def keep(tensor: Tensor) -> Tensor:
        shapes.add(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()  # type: ignore[operator]
    return shapes


def test_checkpointed_gives_the_same_values_and_gradients_and_keeps_its_input_alone() -> None:
    norm, product = nn.LayerNorm(6), nn.Linear(6, 4)
    x = torch.randn(5, 6, requires_grad=True)
    weights = [x, *norm.parameters(), *product.parameters()]
    plain = product(norm(x))
    given = checkpointed(lambda rows: product(norm(rows)), x)
    assert torch.equal(given, plain)
    for left, right in zip(
        torch.autograd.grad(given.square().sum(), weights),
        torch.autograd.grad(plain.square().sum(), weights),
        strict=True,
    ):
        assert torch.equal(left, right)
    assert (5, 1) in _saved(lambda: product(norm(x)))  # mean and deviation of the norm
    assert _saved(lambda: checkpointed(lambda rows: product(norm(rows)), x)) == {(5, 6)}


def test_checkpointed_runs_once_where_no_gradient_is_wanted() -> None:
    calls = []

    def part(x: Tensor) -> Tensor:
        calls.append(x)
        return x.exp()

    with torch.no_grad():
        checkpointed(part, torch.ones(2, requires_grad=True))
    checkpointed(part, torch.ones(2))
    assert len(calls) == 2
    checkpointed(part, torch.ones(2, requires_grad=True)).sum().backward()
    assert len(calls) == 4


@pytest.mark.compile
def test_checkpointed_is_no_part_of_an_exported_graph() -> None:
    class Part(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return checkpointed(torch.exp, x)

    program = torch.export.export(Part(), (torch.ones(2, requires_grad=True),))
    assert "checkpoint" not in str(program.graph)
    assert torch.equal(program.module()(torch.zeros(2, requires_grad=True)), torch.ones(2))
