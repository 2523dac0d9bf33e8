import fnmatch
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file
from torch import Tensor

State = dict[str, Tensor]
GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture(scope="session")
def golden() -> State:
    """A tiny CLIP encoder in Hugging Face's names with its outputs, see tests/golden/make_clip.py."""
    return load_file(GOLDEN / "clip.safetensors")


@pytest.fixture(scope="session")
def encoder(golden: State) -> State:
    """The golden weights under OpenAI's names without `visual.`, put together here by hand."""
    return openai_encoder(
        {name.removeprefix("weights/"): t for name, t in golden.items() if name.startswith("weights/")}
    )


@pytest.fixture(scope="session")
def published(encoder: State, golden: State) -> dict[str, State]:
    """The golden weights as each of the published layouts has them."""
    hugging_face = {name.removeprefix("weights/"): t for name, t in golden.items() if name.startswith("weights/")}
    openai = {f"visual.{name}": tensor for name, tensor in encoder.items()}
    text = {"logit_scale": torch.ones(()), "token_embedding.weight": torch.ones(5, 4)}
    timm = timm_encoder(encoder)
    projection = timm.pop("head.weight")
    return {
        "openai": openai | text,
        "openai encoder": encoder,
        "openai half": {name: tensor.half() for name, tensor in openai.items()},
        "hugging_face": hugging_face | {"vision_model.embeddings.position_ids": torch.arange(10)},
        "hugging_face encoder": {
            name.removeprefix("vision_model."): t
            for name, t in hugging_face.items()
            if name.startswith("vision_model.")
        },
        "timm": timm | {"head.weight": projection, "head.bias": torch.zeros(12)},
        "timm without bias": timm | {"head.weight": projection},
        "open_clip trunk": {f"visual.trunk.{name}": tensor for name, tensor in timm.items()}
        | {"visual.head.proj.weight": projection}
        | text,
    }


def openai_encoder(hugging_face: State) -> State:
    """Hugging Face names -> OpenAI names without `visual.`."""
    vision = {name.removeprefix("vision_model."): tensor for name, tensor in hugging_face.items()}
    encoder = {
        "conv1.weight": vision["embeddings.patch_embedding.weight"],
        "class_embedding": vision["embeddings.class_embedding"],
        "positional_embedding": vision["embeddings.position_embedding.weight"],
        "proj": vision["visual_projection.weight"].T.contiguous(),
    }
    for leaf in ("weight", "bias"):
        encoder[f"ln_pre.{leaf}"] = vision[f"pre_layrnorm.{leaf}"]
        encoder[f"ln_post.{leaf}"] = vision[f"post_layernorm.{leaf}"]
        for i in range(2):
            old, new = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
            encoder[f"{new}.ln_1.{leaf}"] = vision[f"{old}.layer_norm1.{leaf}"]
            encoder[f"{new}.ln_2.{leaf}"] = vision[f"{old}.layer_norm2.{leaf}"]
            projections = [vision[f"{old}.self_attn.{letter}_proj.{leaf}"] for letter in "qkv"]
            encoder[f"{new}.attn.in_proj_{leaf}"] = torch.cat(projections)
            encoder[f"{new}.attn.out_proj.{leaf}"] = vision[f"{old}.self_attn.out_proj.{leaf}"]
            encoder[f"{new}.mlp.c_fc.{leaf}"] = vision[f"{old}.mlp.fc1.{leaf}"]
            encoder[f"{new}.mlp.c_proj.{leaf}"] = vision[f"{old}.mlp.fc2.{leaf}"]
    return encoder


def timm_encoder(encoder: State) -> State:
    """OpenAI names -> timm names, by the replacements that timm itself makes."""
    swaps = [
        ("conv1", "patch_embed.proj"),
        ("positional_embedding", "pos_embed"),
        ("transformer.resblocks.", "blocks."),
    ]
    swaps += [("ln_pre", "norm_pre"), ("ln_post", "norm"), ("ln_", "norm"), ("in_proj_", "qkv."), ("out_proj", "proj")]
    swaps += [("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"), ("class_embedding", "cls_token")]
    timm = {}
    for name, tensor in encoder.items():
        if name == "proj":
            timm["head.weight"] = tensor.T.contiguous()
            continue
        for old, new in swaps:
            name = name.replace(old, new)
        extra = {"pos_embed": 1, "cls_token": 2}.get(name, 0)
        timm[name] = tensor.reshape((1,) * extra + tuple(tensor.shape))
    return timm


Hub = Callable[[str, Path], None]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """A pretended Hugging Face hub: `hub(name, folder)` publishes a folder; every other name is out of reach."""
    repositories: dict[str, Path] = {}

    def snapshot_download(
        repo_id: str, *, revision: str | None = None, allow_patterns: list[str], library_name: str
    ) -> str:
        if f"{repo_id}@{revision}" not in repositories:
            raise LocalEntryNotFoundError("no connection")
        cached = tmp_path / "cache" / repo_id
        cached.mkdir(parents=True, exist_ok=True)
        for file in repositories[f"{repo_id}@{revision}"].iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, cached / file.name)
        return str(cached)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return lambda name, folder: repositories.update({name if "@" in name else f"{name}@None": folder})
