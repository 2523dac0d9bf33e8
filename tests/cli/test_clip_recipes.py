"""The recipes for one's own videos on CLIP's weights, run as typed on a tiny CLIP folder in the published layout."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.clip_folder import make_clip_folder
from tests.events_data import write_events

from kinescan.config import load_recipe
from kinescan.data.clips import read_clips
from kinescan.data.sampling import Views
from kinescan.data.transforms import EvalTransform
from kinescan.models.zoo import from_pretrained

SMALL = [
    *("model.options.heads=4", "preprocessing.num_frames=4", "preprocessing.size=32", "loader.num_workers=0"),
    *("loader.batch_size=4", "train.device=cpu", "train.trackers=[]", "evaluation.views=4x1x1"),
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    return folder, make_clip_folder(folder)


def _arguments(recipe: str, videos: Path, weights: Path, *settings: str) -> list[str]:
    given = [f"data.train={videos}", f"model.weights={weights}", *SMALL, *settings]
    return ["train", recipe, *(word for setting in given for word in ("--set", setting)), "--json"]


def test_clip_own_videos_trains_scores_and_predicts(
    kinescan: Any, videos: Path, clip: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = kinescan(*_arguments("clip_own_videos", videos, clip[0], "optim.epochs=2"))
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    model = from_pretrained(result["checkpoint"])
    assert (model.config.width, model.config.depth, model.config.embed_dim) == (32, 2, 20)
    assert model.config.scanner
    assert model.config.insert_after == 1
    assert model.labels == ("bright", "dark")
    file = next(videos.rglob("*.mp4"))
    [predicted] = json.loads(kinescan("predict", file, "--model", result["output"], "--json").stdout)
    assert set(predicted["labels"]) == {"bright", "dark"}


def test_clip_events_trains_on_intervals_and_streams_events(
    kinescan: Any, clip: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    labels, test = write_events(tmp_path / "train"), write_events(tmp_path / "test", names=("0.mp4", "3.mp4"))
    settings = (f"data.test={test}", "optim.epochs=1", "loader.batch_size=2", "train.eval_every=1")
    done = kinescan(*_arguments("clip_events", labels, clip[0], *settings))
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    model = from_pretrained(result["checkpoint"])
    assert (model.config.causal, model.answers_frames, model.config.width) == (True, True, 32)
    file = next(tmp_path.rglob("*.mp4"))
    told = kinescan("stream", file, "--model", result["output"], "--events", "-", "--json")
    assert told.exit_code == 0, told.stderr


def test_recipe_for_clip_wants_only_the_folder() -> None:
    for name in ("clip_own_videos", "clip_text_own_videos", "clip_events"):
        config = load_recipe(name)
        assert (config.data.train, config.model.weights) == ("", "openai/clip-vit-base-patch16")
        assert config.train.device == "auto"
        assert config.augment.flip_rate == 0.0
    assert load_recipe("clip_own_videos").model.text.templates == ()
    assert len(load_recipe("clip_text_own_videos").model.text.templates) == 4


def test_clip_text_own_videos_without_training_scores_as_transformers(
    kinescan: Any, videos: Path, clip: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    monkeypatch.chdir(tmp_path)
    settings = ("model.name=vit_b16", "optim.epochs=0", 'model.text.names.dark="the inside"')
    done = kinescan(*_arguments("clip_text_own_videos", videos, clip[0], *settings))
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["steps"] == 0
    run, (folder, theirs) = Path(result["output"]), clip
    model = from_pretrained(run)
    assert model.class_texts is not None
    assert model.class_texts["dark"][0] == "a photo of the inside."
    report = json.loads((run / "report.json").read_text())
    assert [note for note in report["notes"] if "optim.epochs = 0" in note]
    files = sorted(videos.rglob("*.mp4"))
    shown = json.loads(kinescan("predict", *files, "--model", run, "--json").stdout)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        rows = []
        for name in ("bright", "the inside"):
            texts = [
                template.replace("{}", name) for template in load_recipe("clip_text_own_videos").model.text.templates
            ]
            tokens = tokenizer(texts, padding=True, return_tensors="pt")
            unit = torch.nn.functional.normalize(theirs.get_text_features(**tokens).pooler_output, dim=-1).mean(dim=0)
            rows.append(unit / unit.norm())
        for file, prediction in zip(files, shown, strict=True):
            clips, _ = read_clips(file, model.preprocessing, Views.parse("4x1x1"), EvalTransform(model.preprocessing))
            pixels = clips[0, 0]
            images = torch.nn.functional.normalize(theirs.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
            logits = theirs.logit_scale.exp() * (images @ torch.stack(rows).T).mean(dim=0)
            expected = dict(zip(("bright", "dark"), logits.softmax(dim=0).tolist(), strict=True))
            got = dict(zip(prediction["labels"], prediction["scores"], strict=True))
            assert got == pytest.approx(expected, abs=1e-4)


def test_a_run_of_no_epochs_continues_with_some(
    kinescan: Any, videos: Path, clip: tuple[Path, Any], tmp_path: Path
) -> None:
    arguments = _arguments("clip_own_videos", videos, clip[0])
    start = kinescan(*arguments, "--set", "optim.epochs=0", "--output", tmp_path / "run")
    assert start.exit_code == 0, start.stderr
    more = kinescan(*arguments, "--set", "optim.epochs=1", "--output", tmp_path / "run", "--resume")
    assert more.exit_code == 0, more.stderr
    assert json.loads(more.stdout)["steps"] == 3
