"""What the page shows; test_browser.py has the page itself."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.bright_model import bright_model, bright_model_that_looks_ahead, write_blinking

from kinescan.data.video import VideoReader, write_video
from kinescan.errors import VideoError
from kinescan.models.pks4 import PKS4
from kinescan.models.zoo import create_model
from kinescan.preprocessing import Preprocessing
from kinescan.web.analysis import MOST_SHOWN, Analysis, Interval, analyse
from kinescan.web.chat import HeldTokens
from kinescan.web.frame_strip import frame_strip
from kinescan.web.held_seconds import held_seconds
from kinescan.web.page_uploads import PageUploads
from kinescan.web.pictures import OTHER
from kinescan.web.problems import RequestProblem
from kinescan.web.settings import ServeLimits
from kinescan.web.timeline import timeline

from .conftest import LIMITS, SIZES, causal_model


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "a.mp4"
    picture = torch.randint(0, 256, (3, 48, 200), dtype=torch.uint8)
    write_video(path, torch.stack([picture[:, :, 4 * t : 4 * t + 64] for t in range(24)]), fps=8)
    return path


def test_analysis_of_a_causal_model_goes_through_the_whole_video(video: Path) -> None:
    found = analyse(causal_model(), video, LIMITS)
    assert found.scores.shape == (24, 2)
    assert np.allclose(found.scores.sum(1), 1, atol=1e-4)
    assert found.seconds[-1] == pytest.approx(23 / 8, abs=0.01)
    assert found.frames.shape == (4, 3, 48, 64)
    assert found.maps is not None
    assert found.maps.change.shape == (3, 2, 2)
    assert found.update_speed is not None
    assert found.update_speed.shape == (4, 2, 2)
    assert bool((found.update_speed > 0).all())
    shown = timeline(found, "<b>")
    assert all(part in shown for part in ("&lt;b&gt;", "<polyline", "ks-event", "ks-speed"))
    # three frames with a next one, in three rows, two of which have a heat map over them
    assert frame_strip(found).count("<img") == 3 * (1 + 2 + 2)


def test_the_class_of_an_event_has_a_curve_and_a_colour_however_many_were_likelier() -> None:
    labels = tuple(f"class {index}" for index in range(MOST_SHOWN + 3))
    scores = np.linspace(0.9, 0.1, len(labels))[None].repeat(2, 0)
    found = Analysis(
        labels=labels,
        seconds=np.array([0.0, 1.0]),
        scores=scores,
        best=labels[0],
        best_score=0.9,
        events=(Interval(label=labels[-1], start=0.0, end=1.0, score=0.1),),
        duration=2.0,
        frames=torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        frame_seconds=(0.0,),
        maps=None,
        update_speed=None,
        speed_over_time=None,
        speed_seconds=np.zeros(0),
    )
    shown = timeline(found)
    assert shown.count("<polyline") == MOST_SHOWN
    assert f"background:{OTHER}" not in shown
    assert f"{labels[-1]} <small>" in shown


def test_other_models_are_shown_as_far_as_they_go(video: Path) -> None:
    sizes = {**SIZES, "depth": 1}
    model = create_model("vit_ti16", labels=["a", "b"], preprocessing=Preprocessing(size=32, num_frames=4), **sizes)
    found = analyse(model, video, LIMITS)
    assert found.scores.shape == (2, 2)
    assert found.events == ()
    assert "ks-speed" not in timeline(found)


@pytest.mark.parametrize("make", [bright_model, bright_model_that_looks_ahead])
def test_a_model_that_answers_for_every_frame_has_its_events_shown(tmp_path: Path, make: Callable[[], PKS4]) -> None:
    path = write_blinking(tmp_path / "a.mp4", 20, 20, 20)
    found = analyse(make(), path, LIMITS)
    assert found.scores.shape == (60, 2)
    [event] = found.events
    assert (event.label, event.start, event.end) == ("bright", pytest.approx(2.0, abs=0.2), pytest.approx(4.0, abs=0.2))
    assert found.best == "background"
    assert found.best_score == pytest.approx(found.scores[:, 0].mean())
    assert found.speed_over_time is not None
    assert "ks-event" in timeline(found)


@pytest.mark.parametrize("causal", [True, False])
def test_update_speed_is_shown_over_the_whole_video(video: Path, causal: bool) -> None:
    model = causal_model()
    if not causal:
        sampling = Preprocessing(size=32, num_frames=4, sampling="rate", frame_rate=8)
        torch.manual_seed(0)
        model = create_model("pks4_vit_ti16", labels=["a", "b"], preprocessing=sampling, **SIZES, insert_after=1).eval()
    found = analyse(model, video, LIMITS)
    assert found.speed_over_time is not None
    assert found.speed_over_time.shape == (len(found.speed_seconds), 2, 2)
    assert found.speed_seconds[0] == 0
    assert found.speed_seconds[-1] == pytest.approx(23 / 8, abs=0.01)
    # four clips of four frames or more: none of its seconds is without
    assert np.diff(found.speed_seconds).max() < 0.3
    assert "margin-left" not in timeline(found)


def test_update_speed_of_a_moment_does_not_depend_on_what_comes_later(video: Path, tmp_path: Path) -> None:
    with VideoReader(video) as reader:
        write_video(tmp_path / "cut.mkv", reader.read(range(12)).pixels, fps=8, codec="ffv1")
        write_video(tmp_path / "whole.mkv", reader.read(range(24)).pixels, fps=8, codec="ffv1")
    cut, whole = (analyse(causal_model(), tmp_path / name, LIMITS).speed_over_time for name in ("cut.mkv", "whole.mkv"))
    torch.testing.assert_close(cut, whole[: len(cut)], atol=1e-4, rtol=1e-4)


def test_long_and_broken_videos_are_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "long.mp4", torch.zeros(40, 3, 32, 32, dtype=torch.uint8), fps=1)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(RequestProblem):
        analyse(causal_model(), tmp_path / "long.mp4", LIMITS)
    with pytest.raises(VideoError):
        analyse(causal_model(), tmp_path / "broken.mp4", LIMITS)


def test_seconds_that_are_held_are_bars() -> None:
    held = [HeldTokens(0.0, 1.0, 10, 5.0), HeldTokens(1.0, 2.0, 10, 0.0), HeldTokens(2.0, 3.0, 10, 10.0)]
    shown = held_seconds(held, 15)
    heights = [float(part.split('"')[0]) for part in shown.split('height="')[1:]]
    assert heights == [100, 50, 100, 0, 100, 100]
    assert "15 of 30" in shown
    assert held_seconds([], 15) == ""


def test_a_video_goes_when_no_tab_shows_it(tmp_path: Path) -> None:
    one, other = tmp_path / "one.mp4", tmp_path / "other.mp4"
    foreign = tmp_path / "foreign.mp4"
    for path in (one, other, foreign):
        path.write_bytes(b"12345")
    files = {str(one), str(other)}
    uploads = PageUploads(files, ServeLimits(uploads=2, upload_bytes=12))
    assert uploads.refusal(1) is not None
    assert uploads.show("a", "video", str(one))
    assert uploads.show("b", "video", str(one))
    uploads.leave("a")
    assert one.is_file()
    assert uploads.show("b", "video", str(other))
    assert not one.exists()
    assert uploads.sizes == [5]
    assert uploads.refusal(7) is None
    assert uploads.refusal(7, others=1) is not None
    assert uploads.refusal(8) is not None
    # whatever a client names, only uploads are deleted
    uploads.show("b", "video", str(foreign))
    uploads.leave("b")
    assert foreign.is_file()
    assert not other.exists()
    assert not uploads.show("b", "video", str(one))
