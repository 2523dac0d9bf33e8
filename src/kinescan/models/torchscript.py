import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinescan.errors import CheckpointError

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip with a `code` folder."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of a TorchScript archive, such as OpenAI's CLIP files, without running its code.

    `torch.jit.load` would compile the program in the archive. Here only the pickle of attributes is read, by an
    unpickler that makes tensors, plain containers and inert records, and refuses every other name.

    Args:
        path: the archive.

    Returns:
        Name -> tensor on the CPU, in the dtype of the file; names as in the module's state dict.

    Raises:
        CheckpointError: the archive is damaged or holds something else than modules and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = archive.namelist()[0].split("/")[0]
            with archive.open(f"{root}/data.pkl") as attributes:
                module = _AttributeReader(attributes, archive, root).load()
    except (pickle.UnpicklingError, zipfile.BadZipFile, KeyError, EOFError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{path} is a TorchScript archive whose tensors cannot be read ({error}). Fetch it again, or convert it "
            "where you trust it: safetensors.torch.save_file(torch.jit.load(path).state_dict(), 'vit.safetensors')."
        ) from error
    tensors: dict[str, Tensor] = {}
    _collect(module, "", tensors)
    return tensors


class _Record:
    """Stands for a scripted module: its attributes, nothing else."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class _AttributeReader(pickle.Unpickler):
    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self._archive = archive
        self._root = root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Record
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle":
            return _first
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, _ = pid
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            self._storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._storages[key]


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _first(value: Any, *_: Any) -> Any:
    """Typed lists and dicts of TorchScript are their first argument."""
    return value


def _collect(record: Any, prefix: str, tensors: dict[str, Tensor]) -> None:
    for name, value in vars(record).items():
        if isinstance(value, Tensor):
            tensors[prefix + name] = value
        elif isinstance(value, _Record):
            _collect(value, f"{prefix}{name}.", tensors)
