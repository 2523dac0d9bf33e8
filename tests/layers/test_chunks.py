import pytest
import torch
from torch import Tensor, nn

from kinescan.layers.chunks import CHUNK_VALUES, in_chunks


def _lengths(num_rows: int, values_per_row: int) -> list[int]:
    lengths = []

    def part(rows: Tensor) -> Tensor:
        lengths.append(len(rows))
        return 2 * rows

    rows = torch.randn(num_rows, 3)
    assert torch.equal(in_chunks(part, rows, values_per_row), 2 * rows)
    return lengths


def test_pieces_hold_no_more_values_than_they_may() -> None:
    with torch.no_grad():
        assert _lengths(7, CHUNK_VALUES // 3) == [3, 3, 1]
        assert _lengths(7, CHUNK_VALUES // 7) == [7]
        assert _lengths(3, 2 * CHUNK_VALUES) == [1, 1, 1]


def test_all_rows_go_at_once_where_gradients_are_kept() -> None:
    assert _lengths(7, CHUNK_VALUES) == [7]


@pytest.mark.compile
def test_pieces_are_no_part_of_an_exported_graph() -> None:
    class Part(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return in_chunks(torch.exp, rows, CHUNK_VALUES)

    with torch.no_grad():
        program = torch.export.export(Part(), (torch.ones(4, 2),), dynamic_shapes=({0: torch.export.Dim("rows")},))
        assert torch.equal(program.module()(torch.zeros(6, 2)), torch.ones(6, 2))
