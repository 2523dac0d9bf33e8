"""The page in a browser, as a person meets it; each state leaves a picture where KINESCAN_SCREENSHOTS says."""

import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kinescan.data.video import write_video
from kinescan.models.classifier import VideoClassifier
from kinescan.models.saving.shipped import MOTION, SHIPPED
from kinescan.web.page import mount_page
from kinescan.web.settings import ServeConfig

from .conftest import LIMITS, Running, causal_model, save_vlm

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.usefixtures("dropped_sockets"),
    # the browser's own threads, and gradio's
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (apt-get install chromium)"),
]

_spec = importlib.util.spec_from_file_location("pictures", Path(__file__).parents[2] / ".ci" / "pictures.py")
pictures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pictures)

WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
_WAIT = 120_000


def _picture(seed: int) -> torch.Tensor:
    """[3, 48, 200], something to see."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 25, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(48, 200), mode="bilinear")[0]


def _clip(brightness: list[float], seed: int = 0) -> torch.Tensor:
    """[T, 3, 48, 64] uint8: a window that moves over a picture, as bright as it is told at each frame."""
    picture = _picture(seed)
    frames = [60 * picture[:, :, 4 * t % 130 : 4 * t % 130 + 64] + 190 * value for t, value in enumerate(brightness)]
    return torch.stack(frames).clamp(0, 255).to(torch.uint8)


def _taught() -> VideoClassifier:
    """A model that tells dark from bright: its head is trained in a moment."""
    model = causal_model(labels=["dark", "bright"])
    kept = model.preprocessing
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (kept.mean, kept.std))
    clips = [_clip([value] * 4, seed)[:, :, :32, :32] / 255 for seed in range(4) for value in (0.0, 1.0)]
    batch = torch.stack([(clip - mean) / std for clip in clips])
    wanted = torch.arange(2).repeat(4)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(25):
        loss = torch.nn.functional.cross_entropy(model(batch), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    _taught().save_pretrained(folder / "taught")
    causal_model(labels=["dark", "bright"]).save_pretrained(folder / "untaught")
    save_vlm(folder / "vlm")
    write_video(folder / "dark_then_bright.mp4", _clip([0.0] * 20 + [1.0] * 12), fps=8)
    write_video(folder / "bright.mp4", _clip([1.0] * 24, seed=3), fps=8)
    (folder / "broken.mp4").write_bytes((folder / "bright.mp4").read_bytes()[:300])
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[str]:
    models = {"taught": str(folder / "taught"), "untaught": str(folder / "untaught")}
    config = ServeConfig(models=models, vlm=str(folder / "vlm"), port=0, device="cpu", budget=24, limits=LIMITS)
    with Running(config, mount=mount_page) as url:
        yield url


@pytest.fixture
def page_without_models() -> Iterator[str]:
    """What `kinescan web` serves where no model is named and no run is there."""
    with Running(ServeConfig(models={MOTION: str(SHIPPED / MOTION)}, port=0, device="cpu"), mount=mount_page) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    arguments = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream=fps=10"]
    # without these, the fake camera gave no frame on some machines
    arguments += ["--disable-dev-shm-usage", "--disable-gpu"]
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def tabs(browser: Any, page: str) -> Iterator[Any]:
    """Opens tabs of the page; what they fetch from elsewhere is an error."""
    contexts, elsewhere = [], []

    def note(request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            elsewhere.append(request.url)

    def open_tab(viewport: dict[str, int] = WIDE, scheme: str = "light", address: str = page) -> Any:
        context = browser.new_context(viewport=viewport, color_scheme=scheme, permissions=["camera"])
        context.set_default_timeout(_WAIT)
        contexts.append(context)
        tab = context.new_page()
        tab.on("request", note)
        tab.goto(address)
        tab.wait_for_selector("#ks-look")
        return tab

    yield open_tab
    for context in contexts:
        context.close()
    assert elsewhere == []


def _keep(tab: Any, name: str, part: str | None = None, *, from_the_top: bool = False) -> None:
    folder = Path(os.environ.get("KINESCAN_SCREENSHOTS") or tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"page_{name}.png"
    tab.wait_for_timeout(400)
    if part is None:
        tab.screenshot(path=path, full_page=True)
    elif from_the_top:
        box, width = tab.locator(part).first.bounding_box(), tab.viewport_size["width"]
        bottom = box["y"] + box["height"] + tab.evaluate("window.scrollY") + 16
        tab.screenshot(path=path, full_page=True, clip={"x": 0, "y": 0, "width": width, "height": bottom})
    else:
        tab.locator(part).first.screenshot(path=path)


def _choose(tab: Any, video: Path, place: str = "#ks-video") -> None:
    tab.set_input_files(f"{place} input[type=file]", str(video))
    tab.wait_for_selector(f"{place} video")


def _fits(tab: Any) -> bool:
    """Nothing is wider than the window."""
    return tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_made_video_has_the_right_labels_on_its_timeline(tabs: Any, folder: Path) -> None:
    tab = tabs()
    _keep(tab, "empty")
    _choose(tab, folder / "dark_then_bright.mp4")
    tab.click("#ks-look")
    tab.wait_for_selector(".ks-label")
    assert tab.inner_text(".ks-label") == "dark"
    bars = tab.eval_on_selector_all(".ks-event", "all => all.map(bar => bar.title)")
    spans = [re.match(r"([\w-]+): ([\d.]+) s to ([\d.]+) s", bar).groups() for bar in bars]
    assert [label for label, _, _ in sorted(spans, key=lambda span: float(span[1]))] == ["dark", "bright"]
    starts = {label: float(start) for label, start, _ in spans}
    assert starts["dark"] < 0.5
    assert 2.3 < starts["bright"] < 3.5
    assert tab.locator(".ks-cell").count() >= 6
    assert tab.locator(".ks-speed img").count() == 1
    _keep(tab, "result")
    _keep(tab, "timeline", ".ks-timeline")
    _keep(tab, "pictures", ".ks-strip")
    _keep(tab, "delta", ".ks-speed")


def test_the_model_that_comes_with_kinescan_names_the_motions_of_a_made_video(
    tabs: Any, page_without_models: str, folder: Path
) -> None:
    write_video(folder / "made.mp4", pictures.moving_photograph(), fps=pictures.FPS)
    tab = tabs({"width": 1120, "height": 900}, "dark", page_without_models)
    _choose(tab, folder / "made.mp4")
    tab.click("#ks-look")
    tab.wait_for_selector(".ks-label")
    bars = tab.eval_on_selector_all(".ks-event", "all => all.map(bar => bar.title)")
    spans = [re.match(r"([\w-]+): ([\d.]+) s to ([\d.]+) s", bar).groups() for bar in bars]
    for index, motion in enumerate(pictures.MOTIONS):
        start = index * pictures.SECONDS
        middle = [label for label, begin, end in spans if float(begin) < start + 1.8 < float(end)]
        assert middle == [motion]
    tab.wait_for_function("document.querySelector('#ks-video video').readyState >= 2")
    _keep(tab, "motion")
    # README's picture ends below the events
    _keep(tab, "readme", ".ks-timeline", from_the_top=True)


def test_by_keyboard_alone(tabs: Any, folder: Path) -> None:
    tab = tabs()
    _choose(tab, folder / "bright.mp4")
    tab.focus("#ks-look")
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".ks-plot")
    tab.focus(".ks-plot")
    for _ in range(10):
        tab.keyboard.press("ArrowRight")
    assert tab.eval_on_selector("#ks-video video", "video => video.currentTime") == pytest.approx(0.6, abs=0.1)
    at = tab.eval_on_selector(".ks-timeline", "line => Number(line.style.getPropertyValue('--at'))")
    assert at == pytest.approx(0.2, abs=0.05)


def test_two_checkpoints_stand_side_by_side(tabs: Any, folder: Path) -> None:
    tab = tabs()
    _choose(tab, folder / "bright.mp4")
    tab.get_by_label("Side by side with").click()
    tab.get_by_role("option", name="untaught").click()
    tab.click("#ks-look")
    tab.wait_for_function("document.querySelectorAll('.ks-label').length == 2")
    boxes = [tab.locator(".ks-timeline").nth(index).bounding_box() for index in (0, 1)]
    assert boxes[0]["y"] == pytest.approx(boxes[1]["y"], abs=2)
    assert boxes[1]["x"] > boxes[0]["x"] + boxes[0]["width"] - 1
    assert tab.locator(".ks-label").first.inner_text() == "bright"
    _keep(tab, "side_by_side")


def test_a_broken_video_says_why_and_another_tab_is_left_alone(tabs: Any, folder: Path) -> None:
    first, second = tabs(), tabs()
    _choose(second, folder / "bright.mp4")
    first.set_input_files("#ks-video input[type=file]", str(folder / "broken.mp4"))
    first.wait_for_function("document.querySelector('.ks-kept b').innerText.startsWith('2 ')")
    first.click("#ks-look")
    second.click("#ks-look")
    first.wait_for_selector(".ks-problem")
    second.wait_for_selector(".ks-label")
    assert first.locator(".ks-problem").get_attribute("role") == "alert"
    assert len(first.inner_text(".ks-problem")) > 20
    assert str(folder) not in first.inner_text("body")
    assert second.inner_text(".ks-label") == "bright"
    assert second.locator(".ks-problem").count() == 0
    _keep(first, "error")


def test_a_phone_in_the_dark(tabs: Any, folder: Path) -> None:
    tab = tabs(PHONE, "dark")
    _choose(tab, folder / "dark_then_bright.mp4")
    tab.click("#ks-look")
    tab.wait_for_selector(".ks-strip")
    assert _fits(tab)
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", colour)[:3])) < 200
    _keep(tab, "phone")
    tab.set_viewport_size(WIDE)
    _keep(tab, "dark")


def test_the_camera_gives_a_video(tabs: Any) -> None:
    tab = tabs()
    tab.click("#ks-video [aria-label='Capture from camera']")
    tab.click("#ks-video [title='grant webcam access'] button")
    tab.wait_for_function("document.querySelector('#ks-video video')?.currentTime > 0.5")
    _keep(tab, "camera")
    tab.click("#ks-video .button-wrap button")
    tab.wait_for_timeout(4000)
    tab.click("#ks-video .button-wrap button")
    tab.wait_for_function("document.querySelector('.ks-kept b').innerText.startsWith('1 ')")
    tab.click("#ks-look")
    tab.wait_for_selector(".ks-label, .ks-problem")
    _keep(tab, "camera_result")
    assert tab.locator(".ks-problem").all_inner_texts() == []
    assert tab.inner_text(".ks-label") in ("dark", "bright")
    assert tab.locator(".ks-cell").count() >= 6


def test_uploads_are_counted_limited_and_deleted(tabs: Any, folder: Path) -> None:
    taken = "document.querySelector('.ks-kept b').innerText.startsWith('{} ')"
    first, second, third = tabs(), tabs(), tabs()
    _choose(first, folder / "bright.mp4")
    first.wait_for_function(taken.format(1))
    _choose(second, folder / "dark_then_bright.mp4")
    second.wait_for_function(taken.format(2))
    with third.expect_response(lambda answer: "/upload?" in answer.url) as refused:
        third.set_input_files("#ks-video input[type=file]", str(folder / "broken.mp4"))
    assert refused.value.status == 429
    third.wait_for_selector("[data-testid=toast-body]")
    assert third.locator("#ks-video video").count() == 0
    # it was opened when nothing was kept
    third.wait_for_function(taken.format(2), timeout=10_000)
    _keep(third, "too_many")
    first.click("#ks-video [aria-label=Clear]")
    first.wait_for_function(taken.format(1))
    # what another tab did is told, too
    third.wait_for_function(taken.format(1), timeout=30_000)
    second.close()
    # the server notices that a tab is gone when it likes; whoever comes then sees no video but his own
    for _ in range(60):
        fourth = tabs()
        number = fourth.inner_text(".ks-kept b")
        fourth.context.close()
        if number.startswith("0 "):
            break
        first.wait_for_timeout(1000)
    assert number.startswith("0 ")
    _choose(first, folder / "bright.mp4")
    first.wait_for_function(taken.format(1))


def test_a_question_shows_which_seconds_are_held(tabs: Any, folder: Path) -> None:
    tab = tabs()
    tab.get_by_role("tab", name="Questions").click()
    tab.wait_for_selector("#ks-ask")
    _choose(tab, folder / "dark_then_bright.mp4", "#ks-asked")
    tab.locator("#ks-question textarea, #ks-question input").fill("a b c?")
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".ks-held")
    assert tab.locator(".ks-held .ks-slot").count() == 4
    assert re.search(r"of \d+ tokens, with a budget of 24", tab.inner_text(".ks-held"))
    _keep(tab, "questions")
    tab.set_viewport_size(PHONE)
    assert _fits(tab)
    _keep(tab, "questions_phone")
