import re

import pytest

from kinescan.runtime.line_chart import Line, line_chart


def _points(shown: str) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, pair.split(","))) for pair in points.split()]
        for points in re.findall(r'points="(.*?)"', shown)
    ]


def test_larger_values_stand_higher_and_later_ones_further_right() -> None:
    [line] = _points(line_chart("loss", [Line("training", ((1, 2.0), (2, 1.0), (4, 0.5)))], x_label="step"))
    (x1, y1), (x2, y2), (x3, y3) = line
    assert x1 < x2 < x3
    assert y1 < y2 < y3
    assert (x3 - x2) / (x2 - x1) == pytest.approx(2, abs=0.01)


def test_many_points_become_means_and_what_is_not_finite_is_left_out() -> None:
    many = tuple((float(i), float("nan") if i % 10 == 0 else 1.0) for i in range(5000))
    [line] = _points(line_chart("loss", [Line("a", many)], x_label="step"))
    assert 300 < len(line) <= 400
    assert len({y for _, y in line}) == 1


def test_one_point_is_a_mark_and_none_is_no_chart() -> None:
    assert "<circle" in line_chart("loss", [Line("a", ((3.0, 1.0),))], x_label="step")
    assert line_chart("loss", [Line("a", ()), Line("b", ((1.0, float("inf")),))], x_label="step") == ""


def test_names_are_text() -> None:
    shown = line_chart("<b>", [Line("<i>", ((1.0, 1.0), (2.0, 2.0)))], x_label="<u>")
    assert not re.search("<b>|<i>|<u>", shown)


@pytest.mark.parametrize(
    "values", [(0.000504731, 0.000504731), (2.17689, 2.176891), (12345.678, 12345.679), (1e-9, 2e-9)]
)
def test_numbers_beside_the_lines_are_told_apart_and_fit(values: tuple[float, float]) -> None:
    shown = line_chart("loss", [Line("a", tuple(enumerate(values)))], x_label="step")
    ticks = re.findall(r'text-anchor="end" x="(.*?)" y=".*?">(.*?)<', shown)
    texts = [text for _, text in ticks]
    assert len(set(texts)) == len(texts) >= 2
    # a letter of 12 px is about 7 wide
    assert all(float(x) >= 7 * len(text) for x, text in ticks)
