"""What the page shows; test_browser.py has the page itself."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kinescan.data.video import write_video
from kinescan.errors import VideoError
from kinescan.models.zoo import create_model
from kinescan.preprocessing import Preprocessing
from kinescan.web.analysis import analyse
from kinescan.web.chat import HeldTokens
from kinescan.web.frame_strip import frame_strip
from kinescan.web.held_seconds import held_seconds
from kinescan.web.page_uploads import PageUploads
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


def test_other_models_are_shown_as_far_as_they_go(video: Path) -> None:
    sizes = {**SIZES, "depth": 1}
    model = create_model("vit_ti16", labels=["a", "b"], preprocessing=Preprocessing(size=32, num_frames=4), **sizes)
    found = analyse(model, video, LIMITS)
    assert found.scores.shape == (2, 2)
    assert found.events == ()
    assert "ks-speed" not in timeline(found)


def test_update_speed_is_drawn_only_where_frames_were_sampled(video: Path) -> None:
    found = analyse(causal_model(), video, LIMITS)
    late = replace(found, frame_seconds=(2.0, 2.1, 2.2, 2.3), duration=4.0)
    left, width = map(float, re.search(r"margin-left:([\d.]+)%;width:([\d.]+)%", timeline(late)).groups())
    assert (left, width) == pytest.approx((48.75, 10), abs=0.1)


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
