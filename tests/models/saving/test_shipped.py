"""The model that comes with the package, as those use it who have just installed it."""

import json
import logging
import tomllib
from pathlib import Path

import pytest
import torch

from kinescan.data.mirroring import mirrored_labels
from kinescan.data.synthetic import MOTION_PAIRS, WindowConfig
from kinescan.data.synthetic.sources import Sources
from kinescan.data.synthetic.window_paths import WINDOW_PATHS
from kinescan.data.synthetic.windows import render_window
from kinescan.errors import ConfigError
from kinescan.inference.predictor import predict
from kinescan.inference.stream import stream
from kinescan.models.classifier import VideoClassifier
from kinescan.models.saving.shipped import SHIPPED, is_shipped, shipped_model
from kinescan.models.zoo import from_pretrained
from kinescan.runs.folder import model_folder
from kinescan.shapes import Pixels

RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results" / "motion_model.json"
TEXTURES = SHIPPED / "textures"


@pytest.fixture(scope="module")
def model() -> VideoClassifier:
    return from_pretrained("motion")


def _windows(number: int, **settings: float) -> list[tuple[str, Pixels]]:
    """Windows over the photographs that come with the package, none of which the model was trained on."""
    names = sorted(path.name for path in TEXTURES.glob("*.jpg"))
    sources = Sources(TEXTURES, {"train": [], "test": names})
    config = WindowConfig(source=str(TEXTURES), num_frames=24, fps=12.0, frame_size=96, **settings)  # type: ignore[arg-type]
    return [
        (MOTION_PAIRS[pair][0], render_window(config, sources, "test", pair, index))
        for pair in WINDOW_PATHS
        for index in range(number)
    ]


def _named(model: VideoClassifier, clips: list[Pixels]) -> list[str]:
    return [prediction.labels[0] for prediction in predict(model, clips, top=1, fps=12.0)]


def test_it_is_small_and_has_its_card_and_photographs() -> None:
    sizes = [path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(sizes) < 5 * 2**20
    card = (SHIPPED / "motion" / "README.md").read_text(encoding="utf-8")
    for photograph in TEXTURES.glob("*.jpg"):
        assert photograph.stem in card
    results = json.loads(RESULTS.read_text(encoding="utf-8"))["results"]
    for name, scores in results.items():
        assert name in card
        assert f"{100 * scores['right']:.1f} %" in card, name


def test_it_names_windows_over_photographs_and_their_reversals_and_mirror_images(model: VideoClassifier) -> None:
    clips = _windows(4)
    mates = dict(MOTION_PAIRS.values())
    mirrored = {
        name: model.class_names[mate or 0]
        for name, mate in zip(model.class_names, mirrored_labels(model.class_names), strict=True)
    }
    plain = _named(model, [clip for _, clip in clips])
    turned = _named(model, [clip.flip(0) for _, clip in clips])
    flipped = _named(model, [clip.flip(3) for _, clip in clips])
    names = [name for name, _ in clips]
    assert sum(own == name for own, name in zip(plain, names, strict=True)) >= 0.75 * len(names)
    assert sum(own == mates[name] for own, name in zip(turned, names, strict=True)) >= 0.75 * len(names)
    assert sum(own == mirrored[name] for own, name in zip(flipped, names, strict=True)) >= 0.75 * len(names)


def test_a_still_picture_is_still(model: VideoClassifier) -> None:
    clips = [clip[:1].expand(24, -1, -1, -1) for _, clip in _windows(2)]
    assert _named(model, clips).count("still") >= len(clips) - 1


def test_it_streams(model: VideoClassifier) -> None:
    clip = _windows(1)[0][1]
    predictions = list(stream(model, list(clip)))
    assert len(predictions) >= 8
    assert all(set(prediction.labels) <= set(model.class_names) for prediction in predictions)


def test_without_a_run_it_is_taken_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        model_folder(None, hint="RUN")
    with caplog.at_level(logging.INFO):
        folder = model_folder(None, hint="RUN", or_shipped=True)
    assert is_shipped(folder)
    [said] = caplog.messages
    assert "\n" not in said
    for name in (*from_pretrained(folder).class_names, "README.md"):
        assert name in said


def test_a_run_and_a_folder_of_its_name_go_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = from_pretrained("motion")
    own.save_pretrained("runs/mine/checkpoints/best")
    assert not is_shipped(model_folder(None, hint="RUN", or_shipped=True))
    own.save_pretrained("motion")
    assert not is_shipped(model_folder("motion", hint="RUN"))


@pytest.mark.parametrize("name", ["textures", "../shipped/motion", "other", ""])
def test_other_names_are_no_shipped_models(name: str) -> None:
    assert shipped_model(name) is None


def test_frames_of_any_size_and_rate_are_taken(model: VideoClassifier) -> None:
    frames = torch.zeros(3, 3, 30, 200, dtype=torch.uint8)
    [prediction] = predict(model, [frames], fps=60.0)
    assert prediction.error is None


def test_every_file_of_the_package_is_in_the_wheel() -> None:
    root = Path(__file__).resolve().parents[3]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["kinescan"]
    package = root / "src" / "kinescan"
    files = {
        path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".nbc", ".nbi")
    }
    assert files == {path for pattern in patterns for path in package.glob(pattern)} & files
