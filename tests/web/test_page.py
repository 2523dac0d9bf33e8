"""What the page shows, and the page itself in a browser."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from kinescan.data.video import write_video
from kinescan.errors import VideoError
from kinescan.models.zoo import create_model
from kinescan.preprocessing import Preprocessing
from kinescan.web.analysis import analyse
from kinescan.web.page import mount_page
from kinescan.web.pictures import frames, seconds_held, timeline
from kinescan.web.problems import RequestProblem
from kinescan.web.settings import ServeConfig

from .conftest import LIMITS, SIZES, Running, causal_model

pytestmark = pytest.mark.usefixtures("dropped_sockets")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


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
    assert all(part in shown for part in ("&lt;b&gt;", "<polyline", "<rect"))
    assert frames(found).count("<img") == 1


def test_other_models_are_shown_as_far_as_they_go(video: Path) -> None:
    sizes = {**SIZES, "depth": 1}
    model = create_model("vit_ti16", labels=["a", "b"], preprocessing=Preprocessing(size=32, num_frames=4), **sizes)
    found = analyse(model, video, LIMITS)
    assert found.scores.shape == (2, 2)
    assert found.events == ()


def test_long_and_broken_videos_are_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "long.mp4", torch.zeros(40, 3, 32, 32, dtype=torch.uint8), fps=1)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(RequestProblem):
        analyse(causal_model(), tmp_path / "long.mp4", LIMITS)
    with pytest.raises(VideoError):
        analyse(causal_model(), tmp_path / "broken.mp4", LIMITS)


def test_seconds_that_are_held_are_bars() -> None:
    assert seconds_held([(0.0, 4), (1.0, 0), (2.0, 8)], 3.0).count("<rect") == 3
    assert seconds_held([], 0.0).startswith("<svg")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("model")
    causal_model().save_pretrained(folder)
    config = ServeConfig(models={"small": str(folder), "other": str(folder)}, port=0, device="cpu")
    with Running(config, mount=mount_page) as url:
        yield url


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (apt-get install chromium)")
def test_the_page_in_a_browser(page: str, video: Path, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    kept = Path(os.environ.get("KINESCAN_SCREENSHOTS", tmp_path))
    kept.mkdir(parents=True, exist_ok=True)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    arguments = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=arguments)
        context = browser.new_context(viewport={"width": 390, "height": 900}, color_scheme="dark")
        context.set_default_timeout(60_000)
        first, second = context.new_page(), context.new_page()
        for tab in (first, second):
            tab.goto(page)
            tab.wait_for_selector("#ks-look")
        first.set_input_files("#ks-video input[type=file]", str(video))
        first.wait_for_selector("#ks-video video")
        # by keyboard alone
        first.focus("#ks-look")
        first.keyboard.press("Enter")
        first.wait_for_selector(".ks-label")
        assert first.inner_text(".ks-label") in ("left", "right")
        assert first.locator(".ks-frames").count() == 1
        # nothing is wider than a phone
        assert first.evaluate("document.documentElement.scrollWidth") <= 390
        first.screenshot(path=kept / "page_video.png", full_page=True)
        assert second.locator(".ks-label").count() == 0
        second.click("#ks-look")
        second.wait_for_selector(".ks-problem")
        second.screenshot(path=kept / "page_problem.png", full_page=True)
        browser.close()
