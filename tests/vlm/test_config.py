import math

import numpy as np
import pytest

from kinescan.errors import ConfigError
from kinescan.vlm import StreamConfig, open_stream


@pytest.mark.parametrize(
    "name", ["budget", "horizon_frames", "horizon_text_tokens", "patches_per_step", "chunk_tokens"]
)
@pytest.mark.parametrize("value", [True, "8", 0, -1, 1.5, float("nan"), 8.0, [8]], ids=repr)
def test_counts_are_whole_numbers(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be"):
        StreamConfig(**{name: value})


@pytest.mark.parametrize("value", [True, "2", 0, -1.0, math.nan, math.inf, None, 1e9], ids=repr)
def test_frame_rates_are_positive_numbers(value):
    with pytest.raises(ConfigError, match="fps"):
        StreamConfig(fps=value)


@pytest.mark.parametrize(
    "options",
    [{"policy": 5}, {"policy": ["statekv"]}, {"policy": None}, {"storage": None}, {"storage": 8}, {"hf_compat": "no"},
     {"memory_policy": 5}, {"memory_policy": None}, {"memory_policy": "reduncy"}, {"compiled": 1}, {"compiled": "no"},
     {"horizon_is_limit": None}, {"hf_compat": 0}, {"retrieved_chunks": True}, {"retrieved_chunks": "2"},
     {"budget": "4GiB"}, {"budget": {}}, {"budget": 1 + 0j}, {"memory_budget": 1 + 0j}, {"memory_budget": {}},
     {"horizon_text_tokens": None}, {"chunk_tokens": 2**40},
     {"budget_ratios": (1, -1, 1)}, {"budget_ratios": "111"}, {"budget_ratios": (1, 1)}],
    ids=str,
)  # fmt: skip
def test_other_settings_are_named(options, vlm):
    with pytest.raises(ConfigError, match=next(iter(options))):
        open_stream(vlm("internvl"), **options)


def test_numbers_of_numpy_are_numbers():
    config = StreamConfig(budget=np.int64(8), fps=np.float32(2))
    assert (type(config.budget), config.budget, config.fps) == (int, 8, 2.0)


@pytest.mark.parametrize("limit", [True, 0, 1.5, "8"], ids=repr)
def test_lengths_of_answers_are_whole_numbers(limit, vlm, video):
    with open_stream(vlm("internvl")) as stream:
        stream.push(video(1))
        with pytest.raises(ConfigError, match="max_new_tokens must be"):
            stream.ask([1, 2], max_new_tokens=limit)


def test_old_name_of_budget_ratios_is_taken_and_can_be_read(vlm):
    with pytest.warns(DeprecationWarning, match="budget_ratios"):
        config = StreamConfig(budget_shares=(2, 1))
    with pytest.warns(DeprecationWarning, match="budget_ratios"):
        assert config.budget_shares == config.budget_ratios == (2.0, 1.0)
    with (
        pytest.warns(DeprecationWarning, match="budget_ratios") as warned,
        open_stream(vlm("qwen3_vl"), budget=9, budget_shares=(2, 1, 1)) as stream,
    ):
        assert stream.config.budget_ratios == (2.0, 1.0, 1.0)
    assert {one.filename for one in warned} == {__file__}
