"""Means over seeds, and whether a difference is more than chance: Student's t for few pairs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from kinescan.errors import ConfigError

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Values of the same thing, such as a score over seeds.

    Attributes:
        mean: of the values.
        standard_deviation: of a sample (n - 1); NaN of a single value.
        n: how many values there are.
    """

    mean: float
    standard_deviation: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much higher one thing is than another, in pairs.

    Attributes:
        mean: of the differences.
        standard_deviation: of the differences (n - 1); NaN of a single pair.
        low: lower end of the interval; NaN of a single pair.
        high: its upper end.
        n: how many pairs there are.
        confidence: of the interval.
    """

    mean: float
    standard_deviation: float
    low: float
    high: float
    n: int
    confidence: float = CONFIDENCE


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of at least one value.

    Raises:
        ConfigError: there is no value.

    Example:
        >>> spread([1.0, 2.0, 3.0])
        Spread(mean=2.0, standard_deviation=1.0, n=3)
    """
    if not values:
        raise ConfigError("a spread needs at least one value.")
    return Spread(mean=mean(values), standard_deviation=stdev(values) if len(values) > 1 else math.nan, n=len(values))


def paired_difference(values: Sequence[float], base: Sequence[float], *, confidence: float = CONFIDENCE) -> Difference:
    """Mean of `values` minus `base`, pair by pair, with Student's t interval: of n pairs, n - 1 degrees of freedom.

    The interval takes the differences for a sample of a normal distribution; with 3 pairs it is 2.5 standard deviations
    wide to either side.

    Args:
        values: at least one.
        base: as many, in the same order.
        confidence: of the interval, in (0, 1).

    Raises:
        ConfigError: there are no pairs, or `base` has another length.

    Source: Student, The probable error of a mean, Biometrika 6 (1908).

    Example:
        >>> found = paired_difference([0.9, 0.8, 0.7], [0.7, 0.7, 0.7])
        >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3)
        (0.1, -0.148, 0.348)
    """
    if not values or len(values) != len(base):
        raise ConfigError(f"pairs need as many values on both sides, at least one; got {len(values)} and {len(base)}.")
    found = spread([one - other for one, other in zip(values, base, strict=True)])
    half = math.nan
    if found.n > 1:
        half = t_quantile((1 + confidence) / 2, found.n - 1) * found.standard_deviation / math.sqrt(found.n)
    return Difference(
        mean=found.mean,
        standard_deviation=found.standard_deviation,
        low=found.mean - half,
        high=found.mean + half,
        n=found.n,
        confidence=confidence,
    )


def t_quantile(probability: float, degrees: int) -> float:
    """The value that Student's t with so many degrees of freedom stays below with a probability.

    Raises:
        ConfigError: the probability is not in (0, 1), or there is no degree of freedom.

    Example:
        >>> round(t_quantile(0.975, 2), 4), round(t_quantile(0.975, 30), 4)
        (4.3027, 2.0423)
    """
    if not 0 < probability < 1 or degrees < 1:
        raise ConfigError(f"t needs a probability in (0, 1) and degrees of at least 1, got {probability}, {degrees}.")
    low, high = -1.0, 1.0
    while _t_below(low, degrees) > probability:
        low *= 2
    while _t_below(high, degrees) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if _t_below(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _t_below(t: float, degrees: int) -> float:
    """P(T < t), by the finite sums for whole degrees.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4.
    """
    angle = math.atan2(t, math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    if degrees % 2:
        term, total = cosine, 0.0
        for index in range(1, degrees - 1, 2):
            total += term
            term *= cosine * cosine * (index + 1) / (index + 2)
        within = 2 / math.pi * (angle + sine * total)
    else:
        term, total = 1.0, 0.0
        for index in range(0, degrees - 1, 2):
            total += term
            term *= cosine * cosine * (index + 1) / (index + 2)
        within = sine * total
    return (1 + within) / 2
