"""The cost columns of the paper's tables, against formulas written down by hand and against the paper's numbers."""

from pathlib import Path

import pytest

from kinescan.studies.costs import RowCost, compare_costs, row_costs
from kinescan.studies.paper import TABLES, paper_table, table_study
from kinescan.studies.reproduce import signed_percent


def _parameters(width: int, depth: int, patch: int, grid: int, embed: int, classes: int) -> int:
    """CLIP's ViT, the class-token route, KS4, O_var, O_corr (64 reduced channels, 5 frames, window 9) and the head."""
    mlp, inner, rank, state = 4 * width, 2 * width, width // 16, 16
    vit = 3 * patch**2 * width + width + (grid**2 + 1) * width + 4 * width + width * embed
    vit += depth * (4 * width + 3 * width * width + 3 * width + width * width + width + 2 * width * mlp + mlp + width)
    route = 2 * depth * 3 * width
    scanner = 2 * width + width * 2 * inner + inner * 4 + inner + inner * (rank + 2 * state)
    scanner += rank * inner + inner + inner * state + inner + inner * width
    reduced, norm = 64, 2 * 64
    operator = 9 * width * reduced + norm + 9 * 5 * reduced * reduced + norm + reduced * width
    variation = operator + 2 * (9 * reduced**2 + norm)
    correlation = operator + 9 * 81 * reduced + norm + 3 * (9 * reduced**2 + norm)
    return vit + route + scanner + variation + correlation + embed * classes + classes


def _macs(width: int, depth: int, patch: int, grid: int, embed: int, classes: int, frames: int) -> tuple[int, int]:
    """Products by the paper's convention without norms, and attention's own products."""
    patches, inner, rank, state, reduced = grid**2, 2 * width, width // 16, 16, 64
    positions, tokens = frames * patches, frames * (patches + 1)
    vit = positions * 3 * patch**2 * width + tokens * depth * 12 * width**2 + frames * width * embed
    scanner = positions * (width * 2 * inner + inner * (rank + 2 * state) + rank * inner + inner * width)
    scan = 9 * positions * inner * state
    shared = 9 * width * reduced + 9 * 5 * reduced**2 + reduced * width
    variation = shared + 5 * 2 * 9 * reduced**2
    correlation = shared + 5 * (9 * 81 * reduced + 3 * 9 * reduced**2) + 5 * patches * reduced
    total = vit + scanner + scan + positions * (variation + correlation) + embed * classes
    return total, 2 * depth * frames * (patches + 1) ** 2 * width


SIZES = {"pks4_vit_b16": (768, 12, 16, 14, 512), "pks4_vit_l14": (1024, 24, 14, 16, 768)}


@pytest.fixture(scope="module")
def costs() -> dict[str, tuple[RowCost, ...]]:
    tables = ("table2", "table3", "table4")
    return {table: row_costs(table_study(table, "paper"), paper_table(table)) for table in tables}


@pytest.mark.parametrize("table", ["table2", "table3", "table4"])
def test_costs_of_full_models_are_what_a_hand_counts(costs: dict[str, tuple[RowCost, ...]], table: str) -> None:
    classes = paper_table(table).num_classes
    for cost in costs[table]:
        sizes, frames = SIZES[cost.model], int(cost.views.split("x")[0])
        assert cost.num_parameters == _parameters(*sizes, classes), cost.row
        products, attention = _macs(*sizes, classes, frames)
        assert cost.macs.attention == attention
        assert cost.macs.published - cost.macs.norms == products
        assert cost.gflops_in_full == pytest.approx(2 * cost.macs.with_attention * cost.num_views / 1e9)
        assert cost.training_eflops == pytest.approx(
            6 * cost.macs.published * cost.num_clips * cost.num_epochs / 1e18, rel=1e-12
        )


def test_costs_agree_with_the_paper(costs: dict[str, tuple[RowCost, ...]]) -> None:
    """Within 0.35 %: norms, filters over time and rounding are what is left."""
    for table, found in costs.items():
        said = paper_table(table).rows
        for cost in found:
            row = said[cost.row]
            if row.parameters is not None:
                assert cost.num_parameters / 1e6 == pytest.approx(row.parameters, rel=1e-3)
            if row.gflops is not None:
                assert cost.gflops == pytest.approx(row.gflops, rel=3.5e-3)
            if row.training_eflops is not None:
                assert cost.training_eflops == pytest.approx(row.training_eflops, rel=3.5e-3)


def test_table5_and_7_have_the_parameters_of_the_paper_to_the_digit() -> None:
    found = {
        cost.row: cost
        for table in ("table5", "table7")
        for cost in row_costs(table_study(table, "paper"), paper_table(table))
    }
    assert {name: cost.num_parameters for name, cost in found.items()} == {
        "Baseline": 86_337_198,
        "+ KS4": 90_109_614,
        "+ KS4 + O_var": 90_859_694,
        "+ KS4 + O_var + O_corr": 91_693_550,
        "Unidirectional": 91_693_550,
        "Bidirectional": 95_464_430,
    }
    one, both = found["Unidirectional"], found["Bidirectional"]
    patches, width = 8 * 196, 768
    # A second scanner without its output projection is what the paper counts for the second direction.
    second = both.macs.published - one.macs.published - patches * 2 * width * width
    assert 2.9521 / one.training_eflops * (one.macs.published + second) / one.macs.published == pytest.approx(
        3.0404 / one.training_eflops, rel=1e-3
    )


@pytest.mark.parametrize("table", TABLES)
def test_rows_of_study_files_are_those_of_the_paper(table: str) -> None:
    said = paper_table(table)
    for scale in ("paper", "demo"):
        assert [row.name for row in table_study(table, scale).rows] == list(said.rows)  # type: ignore[arg-type]


def test_the_page_shows_what_is_counted_beside_the_paper(costs: dict[str, tuple[RowCost, ...]]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text(encoding="utf-8")
    shown = {"table2": ("training EFLOPs",), "table3": ("GFLOPs",), "table4": ("GFLOPs",)}
    for table, rows in costs.items():
        for found in compare_costs(rows, paper_table(table)):
            if found.what.startswith(shown[table]):
                assert found.difference is not None
                difference = signed_percent(found.difference) if abs(found.difference) > 5e-5 else "0.00 %"
                part = page.split(f"\n| {table[-1]} |")[1]
                assert all(text in part for text in (found.here, difference)), (found.row, found.what)
