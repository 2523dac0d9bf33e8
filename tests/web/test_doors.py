"""One video is named alike by everything that names videos, by the model that comes with the package."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import kinescan as ks
from kinescan.cli.main import app
from kinescan.data.video import VideoReader, write_video
from kinescan.errors import CheckpointError
from kinescan.inference.batch_predictor import BatchPredictor
from kinescan.inference.export import export
from kinescan.inference.predictor import Prediction
from kinescan.models.saving.shipped import SHIPPED
from kinescan.web.analysis import analyse
from kinescan.web.settings import ServeConfig

from .conftest import LIMITS, SIZES, Running

FPS = 12
Named = tuple[list[str], list[float]]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds of a window that moves right, stands still, and moves down: each part has a name of its own."""
    picture = torch.from_numpy(np.asarray(Image.open(SHIPPED / "textures" / "coffee.jpg").convert("RGB")).copy())
    ways = [(0, -3)] * 24 + [(0, 0)] * 24 + [(-3, 0)] * 24
    top, left, frames = 80, 80, []
    for down, right in ways:
        top, left = top + down, left + right
        frames.append(picture[max(top, 0) :, max(left, 0) :][:96, :96].permute(2, 0, 1))
    path = tmp_path_factory.mktemp("doors") / "a.mkv"
    write_video(path, torch.stack(frames), fps=FPS, codec="ffv1")
    return path


@pytest.fixture(scope="module")
def by_path(video: Path) -> Named:
    return _named(ks.predict("motion", video, top=13)[0])


def _named(prediction: Prediction) -> Named:
    assert prediction.error is None
    return list(prediction.labels), list(prediction.scores)


def _is_alike(found: Named, expected: Named) -> bool:
    return found[0] == expected[0] and found[1] == pytest.approx(expected[1], abs=1e-5)


def test_the_whole_video_is_looked_at_unless_views_are_given(video: Path, by_path: Named) -> None:
    model = ks.from_pretrained("motion")
    assert model.num_clips > 1
    views = f"{model.preprocessing.num_frames}x{model.num_clips}x1"
    assert _is_alike(_named(ks.predict(model, video, top=13, views=views)[0]), by_path)
    one = _named(ks.predict(model, video, top=13, views="8x1x1")[0])
    assert not _is_alike(one, by_path)


def test_python_names_it_alike_however_it_is_given(video: Path, by_path: Named) -> None:
    model = ks.from_pretrained("motion")
    with VideoReader(video) as reader:
        frames = reader.read(range(reader.num_frames)).pixels
    given = [str(video), video.read_bytes(), io.BytesIO(video.read_bytes()), frames, frames.permute(0, 2, 3, 1).numpy()]
    for one in given:
        assert _is_alike(_named(ks.predict(model, one, top=13, fps=FPS)[0]), by_path), type(one)
    for batch in (1, 3):
        for found in ks.predict_iter(model, [video] * 3, top=13, videos_per_batch=batch):
            assert _is_alike(_named(found), by_path)
    rows = BatchPredictor("motion", top=13, device="cpu").rows([str(video)])
    assert _is_alike((rows[0]["labels"], rows[0]["scores"]), by_path)


def test_the_command_names_it_alike(video: Path, by_path: Named) -> None:
    answer = CliRunner().invoke(app, ["predict", str(video), "--model", "motion", "--top", "13", "--json"])
    [found] = json.loads(answer.stdout)
    assert _is_alike((found["labels"], found["scores"]), by_path)


@pytest.fixture(scope="module")
def service(video: Path) -> Iterator[str]:
    config = ServeConfig(
        models={"motion": "motion"}, media=video.parent, port=0, device="cpu", page=False, limits=LIMITS
    )
    with Running(config) as url:
        yield url


def test_the_service_and_the_page_name_it_alike(video: Path, by_path: Named, service: str) -> None:
    address, content = f"{service}/v1/predict?top=13", video.read_bytes()
    with httpx.Client(timeout=60) as client:
        answers = [
            client.post(address, json={"video": video.name}),
            client.post(address, content=content),
            client.post(address, files={"file": ("a.mkv", content)}),
        ]
    for answer in answers:
        assert _is_alike((answer.json()["labels"], answer.json()["scores"]), by_path)
    page = analyse(ks.from_pretrained("motion"), video, LIMITS)
    assert page.best == by_path[0][0]
    assert page.best_score == pytest.approx(by_path[1][0], abs=1e-5)


def test_copies_and_exports_of_the_model_name_it_alike(video: Path, by_path: Named, tmp_path: Path) -> None:
    model = ks.from_pretrained("motion")
    model.save_pretrained(tmp_path / "copy")
    export(model, tmp_path / "exported", to="torch")
    assert _is_alike(_named(ks.predict(tmp_path / "copy", video, top=13)[0]), by_path)
    found = ks.predict(tmp_path / "exported", video, top=13, allow_code=True)
    assert _is_alike(_named(found[0]), by_path)


def test_a_damaged_number_of_clips_is_refused(tmp_path: Path) -> None:
    model = ks.create_model("vit_ti16", labels=["a", "b"], preprocessing={"size": 32, "num_frames": 2}, **SIZES)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert ks.from_pretrained(tmp_path).num_clips == 1
    for wrong in (0, -1, True, "4", 2.0, 10**9, None):
        (tmp_path / "config.json").write_text(json.dumps({**config, "num_clips": wrong}))
        with pytest.raises(CheckpointError, match="num_clips"):
            ks.from_pretrained(tmp_path)
