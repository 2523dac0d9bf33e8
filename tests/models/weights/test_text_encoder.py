import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.clip_folder import make_clip_folder

from kinescan.errors import CheckpointError
from kinescan.models.weights.text_encoder import BATCH, encode_texts

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("clip")
    return folder, make_clip_folder(folder)


@pytest.fixture
def folder(clip: tuple[Path, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(clip[0], tmp_path / "clip"))


def test_many_texts_of_many_lengths_are_each_encoded_as_alone(clip: tuple[Path, Any]) -> None:
    texts = [f"{'run ' * (1 + k % 7)}{k}" for k in range(BATCH + 5)]
    embeddings, scale = encode_texts(clip[0], texts)
    assert embeddings.shape == (len(texts), 20)
    assert scale == pytest.approx(clip[1].logit_scale.exp().item())
    for index in (0, 6, BATCH, BATCH + 4):
        alone, _ = encode_texts(clip[0], [texts[index]])
        torch.testing.assert_close(embeddings[index], alone[0], atol=1e-5, rtol=1e-5)


def _without(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def _change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def _change_tensors(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: _without(folder, "config.json"), "config.json"),
        (lambda folder: _change_config(folder, model_type="siglip"), "'siglip'"),
        (lambda folder: _without(folder, "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"), "tok"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "clip"),
        (lambda folder: _change_tensors(folder, lambda held: held.pop("text_projection.weight")), "text_projection"),
        (lambda folder: _change_tensors(folder, lambda held: held.pop("logit_scale")), "logit_scale"),
        (lambda folder: _change_tensors(folder, lambda held: held["logit_scale"].fill_(200)), "logit_scale"),
        (lambda folder: _change_config(folder, projection_dim=24), "text_projection.weight"),
        (
            lambda folder: _change_tensors(folder, lambda held: held["text_projection.weight"].fill_(float("nan"))),
            "NaN",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_folder_that_holds_no_text_encoder_is_refused(folder: Path, damage: Any, said: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError) as raised:
        encode_texts(folder, ["run"])
    assert said in str(raised.value)
    assert "openai/clip-vit-base-patch16" in str(raised.value) or "Fetch" in str(raised.value)
