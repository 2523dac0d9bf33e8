import json

import pytest

from kinescan.errors import CheckpointError, ConfigError
from kinescan.models.timing import FrameTiming
from kinescan.models.zoo import create_model, from_pretrained

STEADY = FrameTiming(median_seconds=0.16, shortest_seconds=0.16, longest_seconds=0.17)


@pytest.fixture
def folder(tmp_path):
    model = create_model("vit_ti16", labels=["left", "right"], depth=1, image_size=32)
    model.timing = STEADY
    model.save_pretrained(tmp_path)
    return tmp_path


def test_a_saved_model_keeps_it(folder):
    assert from_pretrained(folder).timing == STEADY
    assert r"| longest_seconds | 0\.17 |" in (folder / "README.md").read_text()


def test_a_model_without_it_loads_as_before(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["timing"]
    (folder / "config.json").write_text(json.dumps(config))
    assert from_pretrained(folder).timing is None


@pytest.mark.parametrize("timing", [[0.1], {"median_seconds": 0.1}, {"median_seconds": -1}, "0.1"])
def test_a_damaged_one_is_refused(folder, timing):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "timing": timing}))
    with pytest.raises(CheckpointError, match="timing"):
        from_pretrained(folder)


@pytest.mark.parametrize("values", [(0.2, 0.3, 0.4), (0.2, 0.1, 0.15), (0.0, 0.0, 0.0), (-1.0, -1.0, -1.0)])
def test_the_three_must_be_positive_and_in_order(values):
    names = ("median_seconds", "shortest_seconds", "longest_seconds")
    with pytest.raises(ConfigError, match="in order"):
        FrameTiming(**dict(zip(names, values, strict=True)))


def test_a_steady_rate_is_told_from_a_varying_one():
    assert STEADY.is_steady
    assert not FrameTiming(median_seconds=0.16, shortest_seconds=0.1, longest_seconds=0.2).is_steady
