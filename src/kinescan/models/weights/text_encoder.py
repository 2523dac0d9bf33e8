"""The text encoder of a CLIP model, for the names of classes; transformers runs it."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kinescan.errors import CheckpointError, ConfigError, DependencyError, KinescanError
from kinescan.models.weights.checkpoint_file import Checkpoint, open_checkpoint
from kinescan.models.weights.hub import download
from kinescan.runtime.error_text import first_line
from kinescan.runtime.files import read_json_object
from kinescan.runtime.optional_package import optional_package

BATCH = 64
_CONFIG = "config.json"
_TOKENIZER_FILES = ("tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json")
_SCALE = "logit_scale"
_MAX_SCALE = 1e4
_ADVICE = (
    "Text heads need a CLIP model as transformers saves it: config.json, model.safetensors and the tokenizer in one "
    "folder, or its name on the hub, such as openai/clip-vit-base-patch16."
)


def encode_texts(source: str | Path, texts: Sequence[str]) -> tuple[Tensor, float]:
    """Embeddings of texts, as CLIP compares them with images, and the scale of its logits.

    Args:
        source: folder or hub name of a CLIP model of transformers, with its tokenizer.
        texts: at least one.

    Returns:
        [n, E] float32, of any length, and exp(logit_scale).

    Raises:
        CheckpointError: it is another kind of model, or text encoder, tokenizer or scale is missing or damaged.
        ConfigError: a text is longer than the encoder reads.
        DependencyError: transformers is not installed.

    Source: Learning Transferable Visual Models (arXiv 2103.00020), section 2.4.
    """
    transformers = optional_package("transformers", "vlm")
    checkpoint = open_checkpoint(source)
    folder = checkpoint.file.parent
    if not Path(source).expanduser().exists():
        download(str(source), patterns=_TOKENIZER_FILES)
    _check_folder(folder)
    with _named(folder):
        loaded = {"trust_remote_code": False, "local_files_only": True}
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **loaded)
        config = transformers.CLIPConfig.from_pretrained(folder, local_files_only=True)
        config.text_config.projection_dim = config.projection_dim
        model = transformers.CLIPTextModelWithProjection(config.text_config).eval()
    _load(model, checkpoint)
    _check_lengths(tokenizer, texts, config.text_config.max_position_embeddings, folder)
    with _named(folder), torch.inference_mode():
        parts = [_encode(model, tokenizer, texts[k : k + BATCH]) for k in range(0, len(texts), BATCH)]
    embeddings = torch.cat(parts)
    if not embeddings.isfinite().all() or not embeddings.norm(dim=-1).all():
        raise CheckpointError(f"{folder}: its text encoder gives NaN, infinite or zero embeddings. {_ADVICE}")
    return embeddings.clone(), _scale(checkpoint)


def checked_texts(texts: Any, source: str | Path) -> dict[str, tuple[str, ...]] | None:
    """Label -> the texts of a class, as the config.json of a saved model says it; None where it does not.

    Raises:
        CheckpointError: it says something else.
    """
    if texts is None:
        return None
    if not isinstance(texts, dict) or not all(
        isinstance(lines, list) and all(isinstance(line, str) for line in lines) for lines in texts.values()
    ):
        raise CheckpointError(f"{source}: class_texts must hold lists of text. It is damaged; save or fetch it again.")
    return {str(label): tuple(lines) for label, lines in texts.items()}


def _encode(model: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    tokens = tokenizer(list(texts), padding=True, return_tensors="pt")
    embeddings: Tensor = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).text_embeds
    return embeddings.float()


def _check_folder(folder: Path) -> None:
    """Passes a folder that holds a CLIP model of transformers with its tokenizer.

    Raises:
        CheckpointError: it holds something else.
    """
    if not (folder / _CONFIG).is_file():
        raise CheckpointError(f"{folder} has no {_CONFIG}. {_ADVICE}")
    kind = read_json_object(folder / _CONFIG, error=CheckpointError).get("model_type")
    if kind != "clip":
        what = f"a model of the kind {str(kind)[:40]!r}" if kind else "no model of transformers"
        raise CheckpointError(f"{folder} holds {what}. {_ADVICE}")
    if not any(path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)):
        raise CheckpointError(f"{folder} holds no tokenizer. {_ADVICE}")


def _load(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Puts the tensors of the text encoder into the model.

    Raises:
        CheckpointError: one is missing or of another shape.
    """
    own, folder = model.state_dict(), checkpoint.file.parent
    held = {name: checkpoint.tensors[name] for name in own if name in checkpoint.tensors}
    lacking = [name for name in own if name not in held]
    other = [name for name in held if held[name].shape != own[name].shape]
    if lacking:
        raise CheckpointError(f"{folder}: the text encoder lacks {lacking[0]}. {_ADVICE}")
    if other:
        shapes = f"{list(held[other[0]].shape)}, and {list(own[other[0]].shape)} by its {_CONFIG}"
        raise CheckpointError(f"{folder}: {other[0]} is {shapes}. Fetch both again.")
    model.load_state_dict(held)


def _check_lengths(tokenizer: Any, texts: Sequence[str], longest: int, folder: Path) -> None:
    """Passes where every text fits the encoder, and where the tokenizer gives tokens at all.

    Raises:
        ConfigError: one is too long.
        CheckpointError: the tokenizer gives nothing.
    """
    with _named(folder):
        lengths = [len(ids) for ids in tokenizer(list(texts))["input_ids"]]
    for text, length in zip(texts, lengths, strict=True):
        if length > longest:
            raise ConfigError(
                f"the text {text[:60]!r} has {length} tokens, and the text encoder reads at most {longest}. Shorten "
                "the template, or name the class in `names`."
            )
    if min(lengths) < 3:
        raise CheckpointError(f"{folder}: its tokenizer gives no tokens for a text. {_ADVICE}")


def _scale(checkpoint: Checkpoint) -> float:
    """What cosines are multiplied by.

    Raises:
        CheckpointError: the checkpoint does not say, or says something impossible.
    """
    tensor = checkpoint.tensors.get(_SCALE)
    scale = math.nan if tensor is None or tensor.numel() != 1 else float(tensor.float().exp())
    if not 0 < scale <= _MAX_SCALE:
        raise CheckpointError(
            f"{checkpoint.source}: no usable {_SCALE} among its tensors (e to its power is {scale:g}). {_ADVICE}"
        )
    return scale


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Whatever transformers raises over a folder becomes an error of `kinescan.errors`.

    Raises:
        CheckpointError: it raised something.
        DependencyError: it lacks a package.
    """
    try:
        yield
    except KinescanError:
        raise
    except ImportError as error:
        raise DependencyError(f"{folder} needs a package that is not installed: {first_line(error)[:200]}") from None
    # Files of others, read by others' code: it may fail in any way.
    except Exception as error:
        raise CheckpointError(
            f"{folder}: its text part cannot be read ({first_line(error)[:200]}). {_ADVICE}"
        ) from None
