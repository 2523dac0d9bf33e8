import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kinescan.errors import CheckpointError
from kinescan.models.hub import download, is_hub_name
from kinescan.models.torchscript import is_torchscript, read_torchscript

_CONFIG_FILES = ("preprocessor_config.json", "open_clip_config.json", "config.json")
# What a folder or a hub repository may hold, in order of preference -> the shards that belong to it.
_WEIGHT_FILES = {
    "model.safetensors": (),
    "model.safetensors.index.json": ("model-*.safetensors",),
    "open_clip_model.safetensors": (),
    "open_clip_pytorch_model.safetensors": (),
    "pytorch_model.bin": (),
    "pytorch_model.bin.index.json": ("pytorch_model-*.bin",),
    "open_clip_pytorch_model.bin": (),
}
_ENDINGS = (".safetensors", ".pt", ".pth", ".bin")
_WRAPPERS = ("state_dict", "model", "module", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_CONVERT = (
    "Where you trust the file, convert it once: "
    'python -c "import sys, torch; from safetensors.torch import save_file; '
    "state = torch.load(sys.argv[1], map_location='cpu', weights_only=False); "
    "state = state.get('state_dict', state.get('model', state)); "
    "save_file({k: v.contiguous() for k, v in state.items() if hasattr(v, 'contiguous')}, sys.argv[2])\" "
    "IN.pth OUT.safetensors"
)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Tensors by name, and what the files beside them say.

    Attributes:
        source: the file or folder, or the hub name, as it was given.
        file: the file that was read (the index, if it is in several).
        tensors: name -> tensor on the CPU, wrappers and common prefixes taken off.
        settings: the keys of config.json and open_clip_config.json beside the file; empty without them.
    """

    source: str
    file: Path
    tensors: dict[str, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Checkpoint(source={self.source!r}, file={str(self.file)!r}, {len(self.tensors)} tensors)"


def open_checkpoint(source: str | Path, *, revision: str | None = None) -> Checkpoint:
    """The tensors of a checkpoint, wherever it is.

    Pickles are read with `weights_only=True`; TorchScript archives without running their code.

    Args:
        source: a file (.safetensors, .pt, .pth, .bin, TorchScript archive, index of shards), a folder that holds one,
            or a name on the Hugging Face hub: "user/name" or "user/name@revision".
        revision: branch, tag or commit on the hub.

    Raises:
        CheckpointError: nothing there, damaged, or a pickle that would run code.
    """
    path = Path(source)
    if not path.exists():
        if not is_hub_name(str(source)):
            raise CheckpointError(
                f"{source}: no such file or folder. Give a checkpoint file, a folder that holds one, "
                "or a hub name (user/name)."
            )
        path = _download(str(source), revision)
    file = _find_weights(path) if path.is_dir() else path
    content = _read_shards(file) if file.name.endswith(".index.json") else _read_file(file)
    tensors = _unwrap(content)
    if not tensors:
        held = ", ".join(list(map(str, content))[:6]) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{file} holds no tensors by name; it holds: {held or 'nothing'}. Give a state dict.")
    return Checkpoint(source=str(source), file=file, tensors=tensors, settings=_read_settings(file.parent))


def read_checkpoint(source: str | Path, *, revision: str | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU; see `open_checkpoint`.

    Raises:
        CheckpointError: nothing there, damaged, or a pickle that would run code.
    """
    return open_checkpoint(source, revision=revision).tensors


def _download(name: str, revision: str | None) -> Path:
    """The folder in the cache with the config files and one kind of weight file, the most preferred that is there."""
    download(name, patterns=_CONFIG_FILES, revision=revision)
    unreachable = None
    for file, shards in _WEIGHT_FILES.items():
        try:
            folder = download(name, patterns=(file, *shards), revision=revision)
        except CheckpointError as error:
            # Without a connection, another kind may still be in the cache.
            unreachable = unreachable or error
            continue
        if (folder / file).is_file():
            return folder
    raise unreachable or CheckpointError(
        f"{name} on the Hugging Face hub has none of the files {', '.join(_WEIGHT_FILES)}. "
        f"Fetch the file that it has (`hf download {name}`) and give its path."
    )


def _find_weights(folder: Path) -> Path:
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    for ending in _ENDINGS:
        files = sorted(folder.glob(f"*{ending}"))
        if len(files) > 1:
            raise CheckpointError(
                f"{folder} holds several checkpoints: {', '.join(file.name for file in files[:6])}. "
                "Give one of the files."
            )
        if files:
            return files[0]
    held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "nothing"
    raise CheckpointError(f"{folder} holds no checkpoint ({', '.join(f'*{e}' for e in _ENDINGS)}); it holds: {held}.")


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of shards ({error!r}). It is damaged; fetch it again.") from error
    tensors: dict[str, Tensor] = {}
    for name in names:
        shard = index.parent / Path(name).name
        if not shard.is_file():
            raise CheckpointError(
                f"{index} names the shard {name}, which is not beside it. Fetch all {len(names)} shards."
            )
        tensors.update(_read_file(shard))
    return tensors


def _read_file(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            head = file.read(9)
        if head[:2] == b"PK":
            return read_torchscript(path) if is_torchscript(path) else _load_pickle(path)
        if head[8:9] == b"{":
            return load_file(path)
        if head[:1] == b"\x80":
            return _load_pickle(path)
    except (SafetensorError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read ({error}). It is damaged; fetch or save it again.") from error
    raise CheckpointError(
        f"{path} is neither safetensors nor a file of torch.save nor a TorchScript archive (it starts with {head!r}). "
        "If it was fetched with git, the large files may be missing: run `git lfs pull`."
    )


def _load_pickle(path: Path) -> Any:
    try:
        # A file, not its path: torch.load would go by the ending.
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"to make a {wanted[1]}" if wanted else "or is damaged"
        raise CheckpointError(
            f"{path} is a pickle that needs to run code {reason}, which could do anything; only tensors are read. "
            f"{_CONVERT}"
        ) from error


def _unwrap(content: Any) -> dict[str, Tensor]:
    """The dict of tensors inside `content`; empty if there is none."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        return {}
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    prefix = next((p for p in _PREFIXES if tensors and all(name.startswith(p) for name in tensors)), None)
    while prefix is not None:
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None)
    return tensors


def _read_settings(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in _CONFIG_FILES:
        path = folder / name
        if path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise CheckpointError(f"{path} is not JSON ({error}). Fetch it again, or take it away.") from error
            settings |= content if isinstance(content, dict) else {}
    return settings
