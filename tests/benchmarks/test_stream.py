from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def stream(script: Any) -> ModuleType:
    module: ModuleType = script("stream")
    return module


def test_model_has_a_state_that_matters_and_streams_what_its_clip_gives(stream: ModuleType) -> None:
    model = stream.build("pks4_vit_ti16", image_size=32)
    assert all(parameter.any() for parameter in model.parameters())
    assert 0 < stream.check(model) < 1e-4


def test_run_counts_frames_by_window(stream: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "START", 2)
    monkeypatch.setattr(stream, "WINDOWS", 8)
    monkeypatch.setattr(stream, "TURN", 2)
    found = stream.run(stream.build("pks4_vit_ti16", image_size=32, depth=2, insert_after=1), 26)
    assert found["frames"] == 26
    assert list(found["windows"])[-1] == "26 frames"
    assert found["state_bytes"] > 0


@pytest.mark.parametrize("slowing", [0.0, 0.5])
def test_summary_tells_a_stream_that_slows_down_and_grows_from_a_machine_that_does(
    stream: ModuleType, slowing: float
) -> None:
    windows = {}
    for k in range(stream.WINDOWS):
        machine = 1 + k / 19
        windows[f"{100 * k} frames"] = {
            "cpu_seconds": machine * (1 + slowing * k / 19) + 1e-3 * (-1) ** k,
            "cpu_seconds_of_a_young_stream": machine,
            "resident_bytes": 1000 + (slowing > 0) * k,
        }
    found = stream.summary(windows)
    assert found["time_of_the_last_windows_over_the_first"] == pytest.approx(1 + 0.75 * slowing, abs=0.1)
    assert found["the_same_without_the_young_stream"] > 1.5
    assert (found["resident_growth_bytes"] > 0) == (slowing > 0)
    assert (found["slope_of_time_over_the_stream"] > 0.3) == (slowing > 0)
