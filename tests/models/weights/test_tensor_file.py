import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kinescan.errors import CheckpointError
from kinescan.models.weights.checkpoint_file import read_checkpoint
from kinescan.models.weights.tensor_file import PickleRefused, check_pickle, read_saved


class Attack:
    """Leaves a mark where a pickle of it is read by one that runs code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def archive(path: Path, data: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """A zip like those of torch.save, around a pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/version", "3\n")
        for key, content in (storages or {}).items():
            file.writestr(f"archive/data/{key}", content)
    return path


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a" + bytes([len(pickle.encode_long(value))]) + pickle.encode_long(value)


def items(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + items(*arguments) + b"R"


def held(value: bytes, key: bytes = text("a")) -> bytes:
    """The pickle of a dict that holds one value."""
    return b"\x80\x02}" + key + value + b"s."


def tensor_pickle(*, numel: int = 4, size: int = 4, stride: int = 1, offset: int = 0) -> bytes:
    storage = items(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), number(numel)) + b"Q"
    layout = (number(offset), items(number(size)), items(number(stride)))
    hooks = call(name("collections", "OrderedDict"))
    return held(call(name("torch._utils", "_rebuild_tensor_v2"), storage, *layout, b"\x89", hooks))


def test_no_pickle_runs_code_whatever_it_is_wrapped_in(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    attack = {"model": {"w": torch.zeros(2), "x": Attack(mark)}}
    torch.save(attack, tmp_path / "zip.pt")
    torch.save(attack, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for protocol in range(2, 6):
        (tmp_path / f"plain{protocol}.bin").write_bytes(pickle.dumps(attack, protocol))
        archive(tmp_path / f"zip{protocol}.pt", pickle.dumps({"w": Attack(mark)}, protocol))
    files = [*tmp_path.glob("*.pt"), *tmp_path.glob("*.bin")]
    assert len(files) == 10
    for file in files:
        with pytest.raises(CheckpointError):
            read_checkpoint(file)
    with pytest.raises(CheckpointError, match=r"run.*(os|posix|nt)\.system"):
        read_checkpoint(tmp_path / "zip.pt")
    assert not mark.exists()


MUCH = number(10**11)
BOMBS = {
    # torch's own list of harmless names has these, which take as much memory as they are told.
    "bytearray": held(call(name("__builtin__", "bytearray"), MUCH)),
    "type of tensors": held(call(name("torch", "FloatTensor"), MUCH)),
    "tensor": held(call(name("torch", "Tensor"), MUCH)),
    "sparse": held(call(name("torch._utils", "_rebuild_sparse_tensor"), MUCH)),
    # A tuple of twice a tuple of twice ...: comparing it as a key of a dict would take for ever.
    "doubling": held(number(1), b")" + b"".join(b"q%ch%ch%c\x86" % (i, i, i) for i in range(60))),
    "doubling lists": held(b"]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(60))),
    "deep": held(number(1), b")" + b"\x85" * 1_000_000),
    "numbered": b"\x80\x02}r\xff\xff\xff\x7f.",
    "more than was given": b"\x80\x02}R.",
    "cut": b"\x80\x02}q\x00(X\x01\x00",
    "no pickle": b"nothing of the kind",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("bomb", BOMBS)
def test_pickles_that_take_all_memory_or_time_are_refused(bomb: str, tmp_path: Path) -> None:
    with pytest.raises((PickleRefused, ValueError)):
        check_pickle(io.BytesIO(BOMBS[bomb]))
    with pytest.raises(CheckpointError):
        read_checkpoint(archive(tmp_path / "a.pt", BOMBS[bomb]))


@pytest.mark.timeout(60)
def test_sizes_are_compared_with_the_file_before_anything_is_read(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(100)}, tmp_path / "sound.pt")
    with zipfile.ZipFile(tmp_path / "sound.pt") as sound, zipfile.ZipFile(tmp_path / "bomb.pt", "w", 8) as bomb:
        for member in sound.infolist():
            large = "data/0" in member.filename
            content = bytes(30_000_000) if large else sound.read(member)
            bomb.writestr(member.filename, content, zipfile.ZIP_DEFLATED if large else zipfile.ZIP_STORED)
    with pytest.raises(CheckpointError, match=r"data/0' is compressed"):
        read_checkpoint(tmp_path / "bomb.pt")
    # One stored part whose size in the list is a lie.
    content = bytearray((tmp_path / "sound.pt").read_bytes())
    position = content.rindex(b"data/0") - 46 - len("sound/")
    content[position + 20 : position + 28] = struct.pack("<II", 2**31, 2**31)
    (tmp_path / "lie.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="parts"):
        read_checkpoint(tmp_path / "lie.pt")


SIZES = [
    {"numel": 10**12},
    {"numel": -4},
    {"size": 10**11, "stride": 0},
    {"size": 10**11},
    {"size": -4},
    {"offset": 10**15},
    {"offset": -4},
    {"stride": -1},
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_tensors_larger_than_what_was_stored_are_refused(sizes: dict[str, int], tmp_path: Path) -> None:
    sound = archive(tmp_path / "sound.pt", tensor_pickle(), {"0": bytes(16)})
    assert read_checkpoint(sound)["a"].tolist() == [0, 0, 0, 0]
    with pytest.raises(CheckpointError):
        read_checkpoint(archive(tmp_path / "a.pt", tensor_pickle(**sizes), {"0": bytes(16)}))


@pytest.mark.parametrize("wrap", ["state_dict", "model", "module"])
def test_a_dict_that_holds_itself_ends(wrap: str, tmp_path: Path) -> None:
    content: dict[str, Any] = {"w": torch.zeros(2)}
    content[wrap] = content
    torch.save(content, tmp_path / "a.pt")
    assert list(read_checkpoint(tmp_path / "a.pt")) == ["w"]
    assert read_saved(tmp_path / "a.pt")[wrap]["w"].shape == (2,)


def test_keys_that_are_no_text_are_left_out(tmp_path: Path) -> None:
    torch.save({("a", 1): torch.zeros(2), 3: torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="tuple"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_files_without_an_end_are_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "base.pt")
    with pytest.raises(CheckpointError, match=r"a named pipe|a device"):
        read_checkpoint(tmp_path / "base.pt")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "..", "sub/a.safetensors", "a\0b", ""])
def test_shards_outside_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "outside.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map": {{"a": {json.dumps(name)}}}}}')
    with pytest.raises(CheckpointError, match="folder"):
        read_checkpoint(folder)


def test_links_out_of_a_model_folder_are_refused_and_those_of_the_hub_cache_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1a2b"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file({"a": torch.zeros(2)}, blobs / "c0ffee")
    (snapshot / "model.safetensors").symlink_to("../../blobs/c0ffee")
    assert list(read_checkpoint(snapshot)) == ["a"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").symlink_to(blobs / "c0ffee")
    with pytest.raises(CheckpointError, match="outside"):
        read_checkpoint(tmp_path / "other")


def test_what_torch_save_writes_is_read(tmp_path: Path) -> None:
    content = {
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2, 3)}}, "lr": 0.1, "big": 2**70},
        "parameter": torch.nn.Parameter(torch.zeros(2)),
        "views": [torch.arange(6).view(2, 3).T, torch.zeros(4)[1:3]],
        "types": [torch.zeros(1, dtype=kind) for kind in (torch.bfloat16, torch.bool, torch.uint8, torch.float16)],
        "ordered": OrderedDict(a=1),
        "plain": [None, True, "text", (1, 2.0), {1, 2}, b"bytes"],
    }
    for modern in (True, False):
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=modern)
        read = read_saved(tmp_path / "a.pt")
        assert read["plain"] == content["plain"]
        assert read["optimizer"]["big"] == 2**70
        assert torch.equal(read["views"][0], content["views"][0])
