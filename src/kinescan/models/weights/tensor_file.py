"""The one door through which files of tensors are read: safetensors, and what torch.save wrote.

No file runs code, nor takes more memory than its own size lets expect: sizes are compared before anything is read, and
pickles are looked through before they are taken.
"""

import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from kinescan.errors import CheckpointError
from kinescan.runtime.error_text import first_line
from kinescan.runtime.files import require_regular

ALLOWED_NAMES = re.compile(
    r"collections OrderedDict|collections Counter|torch\._utils _rebuild_(tensor(_v[23])?|parameter(_with_state)?)"
    r"|torch \w+Storage|torch\.storage (Typed|Untyped)Storage|torch Size|torch device"
    r"|torch\.nn\.parameter Parameter|torch (float|bfloat|int|uint|complex)\w+|torch bool"
    r"|_codecs encode|(__builtin__|builtins) set|(__builtin__|builtins) complex"
)
"""What a pickle of tensors asks for. torch's own list is longer, and has names that take any amount of memory."""
MAX_PICKLE_BYTES = 256 * 2**20
MAX_DEPTH = 100
MAX_VALUES = 20_000_000
"""Values in a pickle, each counted as often as it would be met by walking through."""
_PROTOCOL = 3
_NEVER_WRITTEN = {"EXT1", "EXT2", "EXT4", "INST", "OBJ", "PERSID", "POP", "POP_MARK", "DUP"}
_APPENDING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"}
_NUM_LEGACY_PICKLES = 5
"""What torch.save wrote before 1.6 starts with so many pickles: number, version, machine, content, names."""


class PickleRefused(Exception):
    """A pickle asks for more than tensors need.

    Attributes:
        name: the name that it asks for; None where it is too deep or too large.
    """

    def __init__(self, reason: str, name: str | None = None) -> None:
        super().__init__(reason)
        self.name = name


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on the CPU.

    Raises:
        CheckpointError: it is not a regular file, or damaged.
    """
    require_regular(path, error=CheckpointError)
    try:
        return load_file(path)
    # The library lets errors of several kinds through, of torch's among them.
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read ({first_line(error)}). It is damaged; fetch or save it again."
        ) from error


def read_saved(path: Path, *, mapped: bool = False) -> Any:
    """What torch.save wrote into a file: tensors on the CPU, in dicts and lists with numbers and text.

    Args:
        path: the file.
        mapped: the tensors' memory is the file's: it is read where it is used, and processes of a machine share it. A
            change of a tensor does not reach the file.

    Raises:
        PickleRefused: it asks for a name other than those of tensors, or is nested without end.
        CheckpointError: it is not a regular file, damaged, or its parts are larger than the file.
    """
    require_regular(path, error=CheckpointError)
    try:
        with path.open("rb") as file:
            # As torch.load tells them apart.
            if file.read(4) == b"PK\x03\x04":
                check_archive(path)
            else:
                file.seek(0)
                for _ in range(_NUM_LEGACY_PICKLES):
                    check_pickle(file)
            file.seek(0)
            # A file, not its path: torch.load would go by the ending.
            if mapped:
                content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
            else:
                content = torch.load(file, map_location="cpu", weights_only=True)
        for tensor in walk_tensors(content):
            check_tensor(tensor, path)
        return content
    except (PickleRefused, CheckpointError):
        raise
    # A damaged pickle fails in as many ways as there are.
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read ({first_line(error)}). It is damaged; fetch or save it again."
        ) from error


def check_archive(path: Path, allowed: Callable[[str], Any] = ALLOWED_NAMES.fullmatch) -> None:
    """Passes a zip whose members are stored as they are and together no larger than the file, with a sound pickle.

    Args:
        path: the zip.
        allowed: whether its pickle may ask for "module name".

    Raises:
        CheckpointError: a member is compressed or larger than the file has room for.
        PickleRefused: as `check_pickle`.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        # The program of a TorchScript archive is packed, and never read.
        members = [member for member in archive.infolist() if member.filename.split("/")[1:2] != ["code"]]
        if len({member.filename for member in members}) < len(members):
            raise CheckpointError(f"{path}: two of its parts have the same name. It is damaged; fetch it again.")
        packed = next((member for member in members if member.compress_type != zipfile.ZIP_STORED), None)
        if packed is not None:
            raise CheckpointError(
                f"{path}: its part {packed.filename!r} is compressed, to {packed.compress_size:,} bytes from "
                f"{packed.file_size:,}; torch.save compresses nothing. Save it with torch.save."
            )
        total = sum(member.file_size for member in members)
        if total > size:
            raise CheckpointError(
                f"{path}: its parts would have {total:,} bytes, the file has {size:,}. It is damaged; fetch it again."
            )
        for member in members:
            if member.filename.split("/", 1)[-1] == "data.pkl":
                if member.file_size > MAX_PICKLE_BYTES:
                    raise CheckpointError(f"{path}: its list of tensors has {member.file_size:,} bytes. It is damaged.")
                with archive.open(member) as file:
                    check_pickle(file, allowed)


def check_pickle(file: Any, allowed: Callable[[str], Any] = ALLOWED_NAMES.fullmatch) -> None:
    """Passes the next pickle of a file if it needs no names but those of tensors; nothing of it is built.

    Values are counted, and how deep they are nested, each time that they are named: a tuple of tuples of tuples that
    is short in the file may be endless to compare.

    Args:
        file: open for reading, at the start of a pickle; afterwards at its end.
        allowed: whether "module name" may be asked for.

    Raises:
        PickleRefused: it needs more.
    """
    stack: list[_Held] = []
    marks: list[int] = []
    memo: dict[int, _Held] = {}
    for opcode, value, _ in pickletools.genops(file):
        name, argument = opcode.name, cast(Any, value)
        if name == "GLOBAL" and not allowed(str(argument)):
            raise PickleRefused(f"it asks for {argument}", str(argument).replace(" ", "."))
        if opcode.proto > _PROTOCOL:
            raise PickleRefused(
                f"it is of pickle protocol {opcode.proto} or later, which torch.load takes no tensors from; "
                "leave out pickle_protocol=... in torch.save"
            )
        if name in _NEVER_WRITTEN:
            raise PickleRefused(f"it has the instruction {name}, which torch.save does not write")
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            # Python's own reader makes a list as long as the largest number.
            if int(argument) > MAX_VALUES:
                raise PickleRefused(f"it numbers a value {argument}")
            memo[int(argument)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(argument)])
        elif name in _APPENDING:
            items = _popped(stack, marks, opcode.stack_before[1:])
            stack[-1].add(items)
        else:
            items = _popped(stack, marks, opcode.stack_before)
            if opcode.stack_after:
                stack.append(_Held())
                stack[-1].add(items)
        if stack and (stack[-1].depth > MAX_DEPTH or stack[-1].size > MAX_VALUES):
            raise PickleRefused("its values are nested without end")


def walk_tensors(content: Any) -> Iterator[Tensor]:
    """Every tensor in nested dicts, lists, tuples and sets, each container once, however they hold each other."""
    waiting, met = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict | list | tuple | set) and id(value) not in met:
            met.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)


def check_tensor(tensor: Tensor, path: Path) -> None:
    """Passes a dense tensor in memory that is no larger than what was read for it.

    Args:
        tensor: as it was read.
        path: the file, for the error.

    Raises:
        CheckpointError: it is sparse, quantised, of another device, or repeats what was read.
    """
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        kind = f"{tensor.layout}, {tensor.dtype}, on {tensor.device}".replace("torch.", "")
        raise CheckpointError(
            f"{path}: a tensor {list(tensor.shape)} ({kind}) does not hold all of its own values. Save contiguous "
            "tensors."
        )


class _Held:
    """A value on the pickle machine's stack: how many values it holds, and how deep they are nested."""

    def __init__(self) -> None:
        self.size, self.depth = 1, 1

    def add(self, items: list["_Held"]) -> None:
        # It may be among them: then it counts as it was.
        size, depth = sum(item.size for item in items), max((item.depth for item in items), default=0)
        self.size, self.depth = self.size + size, max(self.depth, depth + 1)


def _popped(stack: list[_Held], marks: list[int], before: list[Any]) -> list[_Held]:
    """Takes off the stack what an instruction takes."""
    start = marks.pop() if any(kind.name == "mark" for kind in before) else len(stack) - len(before)
    if start < 0:
        raise PickleRefused("it takes more than it was given")
    items = stack[start:]
    del stack[start:]
    return items
