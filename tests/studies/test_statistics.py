import math

import pytest

from kinescan.errors import ConfigError
from kinescan.studies.statistics import paired_difference, spread, t_quantile


@pytest.mark.parametrize(
    ("probability", "degrees", "expected"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.3027),
        (0.975, 4, 2.7764),
        (0.9, 7, 1.4149),
        (0.025, 4, -2.7764),
        (0.995, 30, 2.75),
    ],
)
def test_t_quantiles_are_those_of_the_tables(probability: float, degrees: int, expected: float) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(expected, abs=5e-5)


def test_pairs_take_away_what_is_common_to_both_sides() -> None:
    seeds = [0.2, 0.5, 0.8]
    found = paired_difference([value + 0.1 for value in seeds], seeds)
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((0.1, 0.1, 0.1, 3))
    # differences 1, 0, 3: mean 4/3, standard error sqrt(7/9), times 4.302653
    found = paired_difference([1, 2, 4], [0, 2, 1])
    assert (found.low, found.high) == pytest.approx(
        (4 / 3 - 4.302653 * (7 / 9) ** 0.5, 4 / 3 + 4.302653 * (7 / 9) ** 0.5)
    )


def test_one_value_has_no_spread_and_one_pair_no_interval() -> None:
    assert math.isnan(spread([0.5]).standard_deviation)
    found = paired_difference([0.5], [0.25])
    assert found.mean == 0.25
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize("sides", [([], []), ([1.0], [1.0, 2.0])])
def test_sides_without_pairs_are_refused(sides: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ConfigError):
        paired_difference(*sides)
    with pytest.raises(ConfigError):
        t_quantile(1.0, 2)
    with pytest.raises(ConfigError):
        spread([])
