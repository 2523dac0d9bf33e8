import json
import math

import numpy as np
import pytest
from tests.mentions import mentions

from kinescan.errors import ConfigError
from kinescan.evaluation.comparison import compare, sign_test
from kinescan.evaluation.predictions import VideoPrediction


def predictions(right, *, label="x", first=0):
    """A line for each video: right or not."""
    return [
        VideoPrediction(video_id=f"{first + index}.mp4", label=label, prediction=label if good else "other")
        for index, good in enumerate(right)
    ]


def test_compare_counts_pairs_whatever_their_order():
    a, b = predictions([1, 1, 0, 0, 1]), predictions([1, 0, 0, 1, 0])
    found = compare(a, b[::-1], name_a="A", name_b="B")
    assert (found.num_videos, found.num_better, found.num_worse) == (5, 2, 1)
    assert (found.top1_a, found.top1_b) == (0.6, 0.4)
    assert found.difference == pytest.approx(0.2)
    assert found.low < found.difference < found.high


def test_compare_gives_the_interval_of_a_bootstrap_that_draws_videos():
    """Against the plain form: videos sampled one by one, with both models' outcomes."""
    generator = np.random.default_rng(3)
    right_a, right_b = generator.random(200) < 0.7, generator.random(200) < 0.6
    found = compare(predictions(right_a), predictions(right_b), name_a="A", name_b="B")
    differences = right_a.astype(int) - right_b.astype(int)
    means = differences[generator.integers(0, 200, (10_000, 200))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.0051)
    assert found.high == pytest.approx(high, abs=0.0051)


def test_compare_is_seeded_and_turns_round():
    a, b = predictions([1] * 30 + [0] * 30), predictions([1] * 20 + [0] * 40)
    found = compare(a, b, name_a="A", name_b="B", seed=7)
    assert compare(a, b, name_a="A", name_b="B", seed=7) == found
    other = compare(b, a, name_a="B", name_b="A", seed=7)
    assert other.difference == -found.difference
    assert (other.num_better, other.num_worse) == (found.num_worse, found.num_better)


@pytest.mark.parametrize(
    ("better", "worse", "same", "noise", "words"),
    [
        (2, 0, 98, True, "another"),
        (52, 48, 900, True, "likely"),
        (5, 0, 5, True, "likely"),  # the bootstrap alone would be sure of five videos
        (30, 5, 65, False, "unlikely"),
        (5, 30, 65, False, "B"),
        (0, 0, 100, True, "100 videos"),
    ],
)
def test_compare_says_whether_a_gap_is_likely_noise(better, worse, same, noise, words):
    a = predictions([1] * better + [0] * worse + [1] * same)
    b = predictions([0] * better + [1] * worse + [1] * same)
    found = compare(a, b, name_a="A", name_b="B")
    assert found.likely_noise is noise
    assert words in found.verdict()
    plain = json.loads(json.dumps(found.to_json()))
    assert (plain["likely_noise"], plain["verdict"], plain["seed"]) == (noise, found.verdict(), 0)
    assert plain["num_videos"] == better + worse + same


def test_compare_is_reduced_to_the_shared_videos_and_says_so():
    found = compare(predictions([1] * 10), predictions([1] * 12, first=4), name_a="A", name_b="B")
    assert (found.num_videos, found.num_only_a, found.num_only_b) == (6, 4, 6)
    page = found.to_markdown()
    assert mentions(page, "**Only the 6 videos", "4 more", "A", "6 for B")
    assert mentions(page, "10000", "seed 0")
    assert "Only the" not in compare(predictions([1]), predictions([0]), name_a="A", name_b="B").to_markdown()


def test_compare_refuses_what_cannot_be_paired():
    with pytest.raises(ConfigError, match=r"A.*B.*'0\.mp4'.*'5\.mp4'"):
        compare(predictions([1] * 3), predictions([1] * 3, first=5), name_a="A", name_b="B")
    with pytest.raises(ConfigError, match=r"B: '0\.mp4'"):
        compare(predictions([1]), predictions([1]) * 2, name_a="A", name_b="B")
    with pytest.raises(ConfigError, match=r"2.*2.*'0\.mp4'.*'x'.*A.*'y'"):
        compare(predictions([1] * 2), predictions([1] * 2, label="y"), name_a="A", name_b="B")
    with pytest.raises(ConfigError, match=r"resamples.*1.*0"):
        compare(predictions([1]), predictions([1]), name_a="A", name_b="B", resamples=0)


@pytest.mark.parametrize(("better", "worse"), [(7, 2), (2, 7), (40, 60), (1, 0), (300, 320)])
def test_sign_test_is_the_exact_binomial(better, worse):
    total, fewer = better + worse, min(better, worse)
    exact = min(1.0, 2 * sum(math.comb(total, k) for k in range(fewer + 1)) / 2**total)
    assert sign_test(better, worse) == pytest.approx(exact, rel=1e-6, abs=1e-11)
