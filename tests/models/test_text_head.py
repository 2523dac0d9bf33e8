"""Classifiers that start from the names of their classes, held to transformers' CLIPModel."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.clip_folder import make_clip_folder
from torch import Tensor

from kinescan.errors import CheckpointError, ConfigError
from kinescan.models.text_head import TextHead, class_weights
from kinescan.models.zoo import create_model, from_pretrained

transformers = pytest.importorskip("transformers")
LABELS = ["open_door", "run", "the_other"]
NAMES = ["open door", "run", "the other"]
TEMPLATE = "a video of {}."
TEXT = {"templates": [TEMPLATE]}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("clip")
    return folder, make_clip_folder(folder)


def _make(folder: Path, name: str = "vit_b16", labels: list[str] = LABELS, **options: Any) -> Any:
    options = {"text": TEXT, "weights": folder, **options}
    if options["weights"] == folder:
        options = {"heads": 4, **options}
    return create_model(name, labels=labels, **options).eval()


def _tokens(folder: Path, texts: list[str]) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")


def _their_logits(folder: Path, theirs: Any, clips: Tensor, texts: list[str]) -> Tensor:
    """[B, T, K], of every frame."""
    with torch.no_grad():
        out = theirs(**_tokens(folder, texts), pixel_values=clips.flatten(0, 1))
    return out.logits_per_image.unflatten(0, clips.shape[:2])


def test_zero_shot_scores_are_those_of_transformers_averaged_over_frames(clip: tuple[Path, Any]) -> None:
    folder, theirs = clip
    frames = torch.randn(2, 4, 3, 32, 32)
    model = _make(folder)
    expected = _their_logits(folder, theirs, frames, [TEMPLATE.replace("{}", name) for name in NAMES])
    with torch.no_grad():
        torch.testing.assert_close(model(frames), expected.mean(dim=1), atol=1e-5, rtol=1e-5)
        for index in range(4):
            one = model(frames[:, index : index + 1])
            torch.testing.assert_close(one, expected[:, index], atol=1e-5, rtol=1e-5)
    assert model.config.unit_embeddings
    assert torch.equal(model.head.bias, torch.zeros(3))


def test_several_templates_are_averaged_as_clip_does(clip: tuple[Path, Any]) -> None:
    folder, theirs = clip
    templates = (TEMPLATE, "the {}", "in an open {}")
    model = _make(folder, text=TextHead(templates=templates))
    frames = torch.randn(1, 2, 3, 32, 32)
    with torch.no_grad():
        rows = []
        for name in NAMES:
            texts = [template.replace("{}", name) for template in templates]
            embeddings = theirs.get_text_features(**_tokens(folder, texts)).pooler_output
            mean = (embeddings / embeddings.norm(dim=-1, keepdim=True)).mean(dim=0)
            rows.append(mean / mean.norm())
        images = theirs.get_image_features(pixel_values=frames[0]).pooler_output
        images = images / images.norm(dim=-1, keepdim=True)
        expected = theirs.logit_scale.exp() * (images @ torch.stack(rows).T).mean(dim=0, keepdim=True)
        torch.testing.assert_close(model(frames), expected, atol=1e-5, rtol=1e-5)


def test_class_weights_by_hand() -> None:
    embeddings = torch.tensor([[3.0, 0.0], [0.0, 5.0], [-1.0, 0.0], [-2.0, 0.0]])
    rows = class_weights(embeddings, 2, 10.0)
    torch.testing.assert_close(rows, torch.tensor([[50**0.5, 50**0.5], [-10.0, 0.0]]))


def test_a_saved_model_keeps_the_texts_and_the_scores(clip: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = clip
    model = _make(folder, text={"templates": [TEMPLATE], "names": {"run": "the run"}})
    texts = {"open_door": ("a video of open door.",), "run": ("a video of the run.",)}
    assert model.class_texts == texts | {"the_other": ("a video of the other.",)}
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    frames = torch.randn(1, 2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(frames), model(frames))
    assert again.class_texts == model.class_texts
    # As weights for the same classes in another order, it brings its head along.
    turned = create_model("vit_b16", labels=LABELS[::-1], weights=tmp_path).eval()
    assert turned.class_texts == model.class_texts
    with torch.no_grad():
        torch.testing.assert_close(turned(frames), model(frames).flip(1))
    # For other classes, the head is new, and what it compares is as usual.
    other = create_model("vit_b16", labels=["a", "b"], weights=tmp_path)
    assert other.class_texts is None
    assert not other.config.unit_embeddings


def test_a_head_that_the_weights_hold_for_these_classes_stays(clip: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = clip
    plain = create_model("vit_b16", labels=LABELS, weights=folder, heads=4)
    plain.save_pretrained(tmp_path)
    kept = create_model("vit_b16", labels=LABELS, weights=tmp_path, text={**TEXT, "weights": str(folder)})
    assert torch.equal(kept.head.weight, plain.head.weight)
    assert kept.class_texts is None
    assert not kept.config.unit_embeddings
    # For others, the text encoder of another folder is asked.
    started = create_model("vit_b16", labels=["open", "run"], weights=tmp_path, text={**TEXT, "weights": str(folder)})
    assert started.class_texts == {"open": ("a video of open.",), "run": ("a video of run.",)}


def test_a_stream_of_a_causal_model_scores_as_its_prefix(clip: tuple[Path, Any]) -> None:
    model = _make(clip[0], "pks4_vit_b16", causal=True)
    frames = torch.randn(1, 5, 3, 32, 32)
    with torch.no_grad():
        prefixes, _ = model.forward_stream(frames)
        for length in (1, 3, 5):
            torch.testing.assert_close(prefixes[:, length - 1], model(frames[:, :length]), atol=1e-5, rtol=1e-5)


def test_every_part_of_the_head_and_the_encoder_is_trained(clip: tuple[Path, Any]) -> None:
    model = _make(clip[0], "pks4_vit_b16").train()
    loss = torch.nn.functional.cross_entropy(model(torch.randn(3, 2, 3, 32, 32)), torch.arange(3))
    loss.backward()
    for name in ("head.weight", "vit.proj", "vit.conv1.weight"):
        assert torch.count_nonzero(model.get_parameter(name).grad), name


def test_without_a_text_nothing_changes() -> None:
    torch.manual_seed(0)
    plain = create_model("vit_ti16", labels=["a", "b"], depth=1)
    torch.manual_seed(0)
    off = create_model("vit_ti16", labels=["a", "b"], depth=1, text=TextHead())
    assert all(torch.equal(one, other) for one, other in zip(plain.parameters(), off.parameters(), strict=True))
    assert off.config == plain.config


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"text": {"templates": ["no place"]}}, ConfigError, "no place"),
        ({"text": {"templates": ["{} and {}"]}}, ConfigError, "{}"),
        ({"text": {"templates": [TEMPLATE, TEMPLATE]}}, ConfigError, TEMPLATE),
        ({"text": {"names": {"run": "x"}}}, ConfigError, "templates"),
        ({"text": {**TEXT, "template": "x"}}, ConfigError, "text.template"),
        ({"text": {**TEXT, "names": {"fly": "x"}}}, ConfigError, "fly"),
        ({"labels": ["a_b", "a b"]}, ConfigError, "a_b"),
        ({"unit_embeddings": False}, ConfigError, "unit_embeddings"),
        ({"weights": None, "labels": ["a", "b"]}, ConfigError, "openai/clip-vit-base-patch16"),
        ({"text": {"templates": ["a " * 60 + "{}"]}}, ConfigError, "tokens"),
        ({"name": "videomamba_tiny", "weights": None}, ConfigError, "videomamba_tiny"),
        ({"text": {**TEXT, "weights": "nowhere/at/all"}}, CheckpointError, "nowhere/at/all"),
    ],
)
def test_what_does_not_go_with_a_text_head_is_refused(
    clip: tuple[Path, Any], options: dict[str, Any], error: type[Exception], said: str
) -> None:
    options = {"labels": LABELS, "name": "vit_b16", **options}
    with pytest.raises(error) as raised:
        _make(clip[0], options.pop("name"), **options)
    assert said in str(raised.value)


def test_a_text_head_needs_labels(clip: tuple[Path, Any]) -> None:
    with pytest.raises(ConfigError) as raised:
        create_model("vit_b16", num_classes=3, weights=clip[0], heads=4, text=TEXT)
    assert "labels" in str(raised.value)


def test_damaged_texts_in_a_saved_model_are_refused(clip: tuple[Path, Any], tmp_path: Path) -> None:
    _make(clip[0]).save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"a video of run."', "7"))
    with pytest.raises(CheckpointError) as raised:
        from_pretrained(tmp_path)
    assert "class_texts" in str(raised.value)
