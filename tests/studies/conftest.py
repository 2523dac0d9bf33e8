"""The videos and settings of a short run are those of the command line's tests."""

from pathlib import Path
from typing import Any

import pytest

from kinescan.config import flat_settings, parse_overrides
from kinescan.studies import Row, Study

from ..cli.conftest import kinescan, tiny, videos

__all__ = ["kinescan", "small", "tiny", "videos"]


@pytest.fixture
def small(videos: Path, tiny: list[str]) -> Any:
    """Makes a study of runs of a second; what is given replaces its fields."""

    def make(**values: Any) -> Study:
        settings = flat_settings(parse_overrides([*tiny, f"data.train={videos}", "optim.epochs=1"]))
        rows = (Row(name="one"), Row(name="two", settings={"optim.lr": 1e-2}))
        given = {"name": "small", "recipe": {"model": "pks4_vit_ti16"}, "rows": rows, "settings": settings}
        return Study(**(given | values))

    return make
