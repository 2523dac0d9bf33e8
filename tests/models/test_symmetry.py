"""Changes of a clip that change the answer in a known way."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import kinescan as ks
from kinescan.data.synthetic.motion_clips import MIRRORED, MOTION_NAMES, REVERSED
from kinescan.errors import CheckpointError, ConfigError
from kinescan.evaluation.multiview import score_videos
from kinescan.models.pks4 import PKS4
from kinescan.models.saving.shipped import SHIPPED
from kinescan.models.symmetry import Symmetry, clip_logits

SWAPPED = (1, 0, 2)
GROUP = (
    Symmetry(classes=SWAPPED, mirrored=True),
    Symmetry(classes=SWAPPED, reversed=True),
    Symmetry(classes=(0, 1, 2), mirrored=True, reversed=True),
)
SIZES: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 16,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 16,
    "embed_dim": 16,
    "insert_after": 1,
    "kinematic_width": 8,
}


@pytest.fixture
def model() -> PKS4:
    torch.manual_seed(0)
    made = ks.create_model("pks4_vit_ti16", labels=["left", "right", "hold"], **SIZES).eval()
    assert isinstance(made, PKS4)
    with torch.no_grad():
        made.head.weight.normal_()
    return made


def clips() -> Tensor:
    return torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def probabilities(model: PKS4, pixels: Tensor, symmetries: tuple[Symmetry, ...]) -> Tensor:
    with torch.no_grad():
        return clip_logits(model, pixels, symmetries).softmax(1)


def test_a_clip_without_a_finite_answer_changes_no_other(model: PKS4) -> None:
    pixels = clips()
    alone = probabilities(model, pixels[:1], GROUP)
    pixels[1] = float("nan")
    found = probabilities(model, pixels, GROUP)
    assert found[1].isnan().all()
    assert torch.allclose(found[:1], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("one", GROUP)
def test_a_changed_clip_gets_the_changed_answer(model: PKS4, one: Symmetry) -> None:
    plain, changed = (probabilities(model, pixels, GROUP) for pixels in (clips(), one.changed(clips())))
    torch.testing.assert_close(changed[:, list(one.classes)], plain, rtol=0, atol=1e-6)
    without = [probabilities(model, pixels, ()) for pixels in (clips(), one.changed(clips()))]
    assert (without[1][:, list(one.classes)] - without[0]).abs().max() > 1e-3


def test_without_symmetries_the_logits_are_the_models(model: PKS4) -> None:
    with torch.no_grad():
        assert torch.equal(clip_logits(model, clips(), ()), model(clips()).double())


def test_saved_models_and_their_predictions_keep_them(model: PKS4, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "plain")
    assert "symmetries" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    model.symmetries = GROUP
    model.save_pretrained(tmp_path / "group")
    loaded = ks.from_pretrained(tmp_path / "group").eval()
    assert loaded.symmetries == GROUP
    [found] = score_videos(loaded, [clips()], names=["a"])
    torch.testing.assert_close(found, probabilities(model, clips(), GROUP).mean(0))


@pytest.mark.parametrize(
    "damaged",
    [
        {},
        [1],
        [{"classes": [1, 0, 2]}],
        [{"classes": [0, 0, 2], "mirrored": True}],
        [{"classes": [1, 0], "mirrored": True}],
        [{"classes": [1, 0, 2], "mirrored": True}] * 2,
        [{"classes": [1, 0, 2], "mirrored": True, "turned": True}],
        [{"classes": "102", "mirrored": True}],
        [{"classes": [1, 2, 0], "mirrored": True}],
    ],
)
def test_damaged_ones_are_refused(model: PKS4, tmp_path: Path, damaged: object) -> None:
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"symmetries": damaged}))
    with pytest.raises(CheckpointError):
        ks.from_pretrained(tmp_path)


def test_classes_are_named_once_each() -> None:
    with pytest.raises(ConfigError):
        Symmetry(classes=(0, 2), mirrored=True)
    with pytest.raises(ConfigError):
        Symmetry(classes=(1, 0))


def test_a_change_made_twice_names_the_class_itself() -> None:
    with pytest.raises(ConfigError):
        Symmetry(classes=(1, 2, 0), reversed=True)


@pytest.mark.parametrize(
    "answers", [{"labels": ["background", "left", "right"]}, {"labels": ["a", "b", "c"], "overlapping": True}]
)
def test_models_that_answer_for_frames_have_none(tmp_path: Path, answers: dict[str, Any]) -> None:
    made = ks.create_model("pks4_vit_ti16", output="frames", **answers, **SIZES)
    made.symmetries = GROUP
    made.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError):
        ks.from_pretrained(tmp_path)


@pytest.mark.parametrize(("dims", "mates"), [([3], MIRRORED), ([0], REVERSED)])
def test_the_model_that_comes_with_kinescan_names_mirrored_and_reversed_clips_likewise(
    dims: list[int], mates: tuple[int, ...]
) -> None:
    picture = torch.from_numpy(np.asarray(Image.open(SHIPPED / "textures" / "gravel.jpg").convert("RGB")).copy())
    frames = torch.stack([picture[60:156, 40 + 4 * index :][:, :96].permute(2, 0, 1) for index in range(8)])
    plain, changed = ks.predict("motion", [frames, frames.flip(dims)], fps=6, top=len(MOTION_NAMES))
    scores = dict(zip(changed.labels, changed.scores, strict=True))
    mate_of = {name: MOTION_NAMES[mate] for name, mate in zip(MOTION_NAMES, mates, strict=True)}
    expected = [scores[mate_of[label]] for label in plain.labels]
    assert list(plain.scores) == pytest.approx(expected, abs=1e-5)
