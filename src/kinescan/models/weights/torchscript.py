import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinescan.errors import CheckpointError
from kinescan.models.weights.tensor_file import check_archive, check_tensor

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
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())
    # Beside its own error, the library lets those of damaged fields through.
    except Exception:
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of a TorchScript archive, such as OpenAI's CLIP files, without running its code.

    `torch.jit.load` would compile the program in the archive. Here only the pickle of attributes is read, by an
    unpickler that makes plain containers and inert records, and refuses every other name. Tensors are made of the
    records afterwards.

    Args:
        path: the archive.

    Returns:
        Name -> tensor on the CPU, in the dtype of the file; names as in the module's state dict.

    Raises:
        CheckpointError: the archive is damaged or holds something other than modules and tensors.
    """
    try:
        check_archive(path, allowed=_allowed)
        with zipfile.ZipFile(path) as archive:
            root = archive.namelist()[0].split("/")[0]
            with archive.open(f"{root}/data.pkl") as attributes:
                module = _AttributeReader(attributes).load()
            storages = _Storages(archive, f"{root}/data", path)
            return {name: storages.tensor(record) for name, record in _tensors_of(module)}
    except CheckpointError:
        raise
    # A damaged pickle fails in as many ways as there are.
    except Exception as error:
        raise CheckpointError(
            f"{path} is a TorchScript archive whose tensors cannot be read ({error}). Fetch it again, or convert it "
            "where you trust it: safetensors.torch.save_file(torch.jit.load(path).state_dict(), 'vit.safetensors')."
        ) from error


class _Record:
    """Stands for a scripted module: its attributes, nothing else."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class _Inert:
    """Takes no state: what the pickle sets on it is refused."""

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"it changes a {type(self).__name__}")


@dataclass(frozen=True)
class _StorageRecord(_Inert):
    dtype: torch.dtype
    key: str


class _TensorRecord(_Inert):
    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride


class _First(_Inert):
    """Typed lists and dicts of TorchScript are their first argument."""

    def __call__(self, value: Any, *_: Any) -> Any:
        return value


def _allowed(name: str) -> bool:
    module, _, attribute = name.partition(" ")
    known = module == "torch" and attribute in _DTYPES
    return known or name in _NAMES or module == "torch.jit._pickle" or module.split(".")[0] == "__torch__"


class _AttributeReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if f"{module} {name}" in _NAMES:
            return _NAMES[f"{module} {name}"]
        if module.split(".")[0] == "__torch__":
            return _Record
        if module == "torch.jit._pickle":
            return _First()
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> _StorageRecord:
        _, dtype, key, _, _ = pid
        return _StorageRecord(dtype, str(key))


class _Storages:
    """Reads each storage of an archive once."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, path: Path) -> None:
        self._archive, self._folder, self._path = archive, folder, path
        self._read: dict[str, Tensor] = {}

    def tensor(self, record: _TensorRecord) -> Tensor:
        key, dtype = record.storage.key, record.storage.dtype
        if key not in self._read:
            content = bytearray(self._archive.read(f"{self._folder}/{key}"))
            self._read[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        tensor = self._read[key].as_strided(record.size, record.stride, record.offset)
        check_tensor(tensor, self._path)
        return tensor


def _tensors_of(module: Any) -> Iterator[tuple[str, _TensorRecord]]:
    """Names and records of tensors in a module and those below it, each module once, however they hold each other."""
    waiting, met = [("", module)], set()
    while waiting:
        prefix, record = waiting.pop()
        if id(record) in met:
            continue
        met.add(id(record))
        below = []
        for name, value in vars(record).items():
            if isinstance(value, _TensorRecord):
                yield f"{prefix}{name}", value
            elif isinstance(value, _Record):
                below.append((f"{prefix}{name}.", value))
        waiting.extend(reversed(below))


_NAMES = {"torch._utils _rebuild_tensor_v2": _TensorRecord, "collections OrderedDict": OrderedDict}
