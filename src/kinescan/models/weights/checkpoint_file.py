from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from kinescan.errors import CheckpointError
from kinescan.models.saving.location import best_checkpoint, locate_model
from kinescan.models.saving.shipped import is_shipped
from kinescan.models.weights.hub import download
from kinescan.models.weights.tensor_file import PickleRefused, read_safetensors, read_saved
from kinescan.models.weights.torchscript import is_torchscript, read_torchscript
from kinescan.runtime.files import inside, read_head, read_json, read_json_object

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
_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pth.tar")
_WRAPPERS = ("state_dict", "model", "module", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_MAX_WRAPPERS = 8
_CONVERT = (
    "Where you trust the file, convert it once: "
    'python -c "import sys, torch; from safetensors.torch import save_file; '
    "state = torch.load(sys.argv[1], map_location='cpu', weights_only=False); "
    "state = state.get('state_dict', state.get('model', state)); "
    "save_file({k: v.contiguous() for k, v in state.items() if hasattr(v, 'contiguous')}, sys.argv[2])\" "
    "IN.pth OUT.safetensors"
)
_GIVE = "Give safetensors, or a state dict that torch.save wrote."
_OTHER_KINDS = {".npz": "NumPy", ".pt2": "torch.export (a program)"}
_OTHER_STARTS = {
    b"version https://git-lfs": "a pointer that git left instead of a large file; fetch that: git lfs pull",
    b"\x93NUMPY": "an array of NumPy",
    b"\x1f\x8b": "packed with gzip; unpack it first",
    b"\x89HDF": "HDF5, as Keras writes it",
    b"<": "a page of text, such as a server's answer instead of the file",
    b"{": "JSON",
}


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

    No file runs code: see `tensor_file` for pickles, `torchscript` for TorchScript archives.

    Args:
        source: a file (.safetensors, .pt, .pth, .bin, TorchScript archive, index of shards), a folder that holds one, a
            run's folder (its best checkpoint), "motion" (the model that comes with the package), or a name on the
            Hugging Face hub: "user/name" or "user/name@revision".
        revision: branch, tag or commit on the hub.

    Raises:
        CheckpointError: nothing there, damaged, or a pickle that would run code.
    """
    path = Path(source).expanduser()
    if not path.exists():
        wanted = "a checkpoint file, a folder that holds one, a run's folder, or a hub name (ORG/NAME)"
        located = locate_model(source, wanted=wanted)
        # "motion" is a folder of the package; every other name that is not here is one on the hub.
        path = Path(located) if is_shipped(located) else _download(located, revision)
    elif path.is_dir():
        # The folder of a run stands for its best checkpoint.
        path = best_checkpoint(path) or path
    file = _find_weights(path) if path.is_dir() else path
    content = _read_shards(file) if file.name.endswith(".index.json") else _read_file(file)
    tensors = _unwrap(content, str(file))
    if not tensors:
        held = ", ".join(_names(content)) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{file} holds no tensors by name; it holds: {held or 'nothing'}. Give a state dict.")
    return Checkpoint(source=str(source), file=file, tensors=tensors, settings=_read_settings(file.parent))


def read_checkpoint(source: str | Path, *, revision: str | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU; see `open_checkpoint`.

    Args:
        source: a file, a folder, or a name on the Hugging Face hub.
        revision: branch, tag or commit on the hub.

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
            return inside(folder, name, error=CheckpointError)
    for ending in _ENDINGS:
        files = sorted(folder.glob(f"*{ending}"))
        if len(files) > 1:
            raise CheckpointError(
                f"{folder} holds several checkpoints: {', '.join(file.name for file in files[:6])}. "
                "Give one of the files."
            )
        if files:
            return inside(folder, files[0].name, error=CheckpointError)
    held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "nothing"
    raise CheckpointError(f"{folder} holds no checkpoint ({', '.join(f'*{e}' for e in _ENDINGS)}); it holds: {held}.")


def _names(content: Mapping[Any, Any]) -> list[str]:
    """Some of its keys; those that are not text may be anything, and endless to show."""
    return [key[:80] if isinstance(key, str) else f"a {type(key).__name__}" for key in islice(content, 6)]


def _read_shards(index: Path) -> dict[str, Tensor]:
    weight_map = read_json_object(index, error=CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(
            f"{index} is not an index of shards: it needs a weight_map of tensors and files. It is damaged; fetch it "
            "again."
        )
    names = sorted(set(weight_map.values()))
    tensors: dict[str, Tensor] = {}
    for name in names:
        shard = inside(index.parent, name, error=CheckpointError)
        if not shard.is_file():
            raise CheckpointError(
                f"{index} names the shard {name}, which is not beside it. Fetch all {len(names)} shards."
            )
        content = _read_file(shard)
        if not isinstance(content, dict):
            raise CheckpointError(f"{shard} holds no tensors by name. It is damaged; fetch it again.")
        tensors.update(content)
    return tensors


def _read_file(path: Path) -> Any:
    head = read_head(path, 512, error=CheckpointError)
    if path.suffix in (".npz", ".pt2"):
        raise CheckpointError(
            f"{path} is a file of {_OTHER_KINDS[path.suffix]}, from which no tensors are read. {_GIVE}"
        )
    try:
        if head[:2] == b"PK":
            return read_torchscript(path) if is_torchscript(path) else read_saved(path)
        if head[8:9] == b"{":
            return read_safetensors(path)
        if head[:1] == b"\x80":
            return read_saved(path)
    except PickleRefused as refused:
        raise CheckpointError(_refusal(path, refused)) from None
    kind = next((kind for start, kind in _OTHER_STARTS.items() if head.startswith(start)), None)
    if head[257:262] == b"ustar":
        kind = "a tar archive, such as torch wrote before its version 0.2"
    if kind is None:
        kind = f"neither safetensors nor a file of torch.save nor a TorchScript archive (it starts with {head[:9]!r})"
    raise CheckpointError(f"{path} is {kind}. {_GIVE}")


def _refusal(path: Path, refused: PickleRefused) -> str:
    if refused.name is None:
        return f"{path} is a pickle that is not read: {refused}. Fetch it again, or save its tensors anew."
    return (
        f"{path} is a pickle that needs to run code to make a {refused.name}, which could do anything; only tensors "
        f"are read. {_CONVERT}"
    )


def _only_part(content: Mapping[Any, Any], source: str) -> Mapping[Any, Any] | None:
    """The one dict of tensors under a key of its own, where `content` has no tensors itself."""
    if any(isinstance(value, Tensor) for value in content.values()):
        return None
    parts = {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Mapping) and any(isinstance(t, Tensor) for t in value.values())
    }
    if len(parts) > 1:
        raise CheckpointError(
            f"{source} holds several state dicts: {', '.join(_names(parts))}. Save the one that you want into a file "
            "of its own."
        )
    return next(iter(parts.values()), None)


def _unwrap(content: Any, source: str) -> dict[str, Tensor]:
    """The dict of tensors inside `content`; empty if there is none."""
    # A dict may hold itself: wrappers are taken off so often and no more.
    for _ in range(_MAX_WRAPPERS):
        if not isinstance(content, Mapping):
            return {}
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            inner = _only_part(content, source)
        if inner is None:
            break
        content = inner
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    for prefix in _PREFIXES * _MAX_WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _read_settings(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in _CONFIG_FILES:
        path = folder / name
        if path.exists():
            content = read_json(inside(folder, name, error=CheckpointError), error=CheckpointError)
            settings |= content if isinstance(content, dict) else {}
    return settings
