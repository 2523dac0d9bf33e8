import math

import pytest

from kinescan.runtime.quantities import byte_size, duration, percent


@pytest.mark.parametrize(("ratio", "text"), [(0.0, "0.0 %"), (1.0, "100.0 %"), (1 / 3, "33.3 %"), (math.nan, "-")])
def test_percent(ratio: float, text: str) -> None:
    assert percent(ratio) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (90_061, "25:01:01")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0.0 KiB"), (2**20 - 1, "1024.0 KiB"), (2**20, "1.0 MiB"), (3 * 2**29, "1.5 GiB")]
)
def test_byte_size(num_bytes: int, text: str) -> None:
    assert byte_size(num_bytes) == text
