import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kinescan.errors import CheckpointError
from kinescan.models.weights.checkpoint_file import open_checkpoint, read_checkpoint

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.float16)}


def _same(tensors: dict[str, Tensor]) -> bool:
    return tensors.keys() == STATE.keys() and all(
        tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor) for name, tensor in STATE.items()
    )


def test_reads_every_kind_of_file(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    torch.save(STATE, tmp_path / "zip.pt")
    torch.save(STATE, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    for file in ("a.safetensors", "zip.pt", "legacy.pth", "pytorch_model.bin"):
        assert _same(read_checkpoint(tmp_path / file)), file
        assert _same(read_checkpoint(str(tmp_path / file))), file


def test_kind_is_read_from_the_content_not_the_ending(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "really_safetensors.bin")
    torch.save(STATE, tmp_path / "really_pickle.safetensors")
    assert _same(read_checkpoint(tmp_path / "really_safetensors.bin"))
    assert _same(read_checkpoint(tmp_path / "really_pickle.safetensors"))


@pytest.mark.parametrize(
    "wrapped",
    [
        {"state_dict": STATE, "epoch": 3},
        {"model": STATE, "optimizer": {"state": {}}},
        {"module": {f"module.{name}": tensor for name, tensor in STATE.items()}},
        {"model": {"state_dict": {f"module.model.{name}": tensor for name, tensor in STATE.items()}}},
        {f"_orig_mod.{name}": tensor for name, tensor in STATE.items()},
        {**STATE, "steps": 5},
    ],
)
def test_takes_off_wrappers_and_prefixes(tmp_path: Path, wrapped: dict[str, object]) -> None:
    torch.save(wrapped, tmp_path / "x.pt")
    assert _same(read_checkpoint(tmp_path / "x.pt"))


def test_a_header_that_starts_like_a_pickle_is_no_pickle(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for padding in range(500):
        save_file(STATE, path, metadata={"note": "x" * padding})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert _same(read_checkpoint(path))


def test_a_prefix_of_some_names_stays(tmp_path: Path) -> None:
    save_file({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "x.safetensors")
    assert set(read_checkpoint(tmp_path / "x.safetensors")) == {"module.a", "b"}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_reads_shards_by_their_index(tmp_path: Path, kind: str) -> None:
    stem = "model" if kind == "safetensors" else "pytorch_model"
    write = save_file if kind == "safetensors" else torch.save
    names = {name: f"{stem}-0000{i}-of-00002.{kind}" for i, name in enumerate(STATE, start=1)}
    for name, file in names.items():
        write({name: STATE[name]}, tmp_path / file)
    (tmp_path / f"{stem}.{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert _same(read_checkpoint(tmp_path))
    (tmp_path / f"{stem}-00002-of-00002.{kind}").unlink()
    with pytest.raises(CheckpointError, match=f"{stem}-00002-of-00002.{kind}, .* Fetch all 2 shards"):
        read_checkpoint(tmp_path)


def test_a_damaged_index_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(tmp_path)


def test_folder_prefers_safetensors_and_takes_a_single_file(tmp_path: Path) -> None:
    torch.save({"other": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert set(read_checkpoint(tmp_path)) == {"other"}
    save_file(STATE, tmp_path / "model.safetensors")
    assert _same(read_checkpoint(tmp_path))
    (tmp_path / "alone").mkdir()
    torch.save(STATE, tmp_path / "alone" / "ViT-B-16.pt")
    assert _same(read_checkpoint(tmp_path / "alone"))


def test_settings_come_from_the_files_beside_the_weights(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"hidden_act": "gelu"}')
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.settings == {"hidden_act": "gelu", "model_cfg": {}}
    assert checkpoint.file == tmp_path / "model.safetensors"
    assert "2 tensors" in repr(checkpoint)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json.*JSON"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_reads_the_model_that_comes_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = open_checkpoint("motion")
    assert checkpoint.tensors["head.weight"].shape[0] == 13
    (tmp_path / "motion").mkdir()
    save_file(STATE, tmp_path / "motion" / "model.safetensors")
    assert _same(open_checkpoint("motion").tensors), "a folder here comes first"


def test_reads_from_the_hub(tmp_path: Path, hub) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    save_file(STATE, folder / "open_clip_model.safetensors")
    torch.save({"second": torch.ones(1)}, folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text('{"model_cfg": {"quick_gelu": true}}')
    (folder / "flax_model.msgpack").write_text("large")
    hub("laion/CLIP-x", folder)
    checkpoint = open_checkpoint("laion/CLIP-x")
    assert _same(checkpoint.tensors)
    assert checkpoint.source == "laion/CLIP-x"
    assert checkpoint.settings == {"model_cfg": {"quick_gelu": True}}
    fetched = {file.name for file in checkpoint.file.parent.iterdir()}
    assert fetched == {"open_clip_model.safetensors", "open_clip_config.json"}


def test_reads_shards_and_revisions_from_the_hub(tmp_path: Path, hub) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    for i, name in enumerate(STATE):
        save_file({name: STATE[name]}, folder / f"model-{i}.safetensors")
    index = {"weight_map": {name: f"model-{i}.safetensors" for i, name in enumerate(STATE)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    hub("me/sharded@v2", folder)
    assert _same(read_checkpoint("me/sharded@v2"))
    assert _same(read_checkpoint("hf-hub:me/sharded", revision="v2"))


def test_hub_repository_without_weights_is_an_error(tmp_path: Path, hub) -> None:
    hub("me/empty", tmp_path)
    with pytest.raises(CheckpointError, match=r"me/empty.*model.safetensors"):
        read_checkpoint("me/empty")


def test_hub_out_of_reach_says_what_to_do(hub) -> None:
    with pytest.raises(CheckpointError, match="Hugging"):
        read_checkpoint("openai/clip-vit-base-patch16")


def test_missing_file_is_an_error_and_not_a_hub_name(tmp_path: Path) -> None:
    for source in ("weights/vit.pt", str(tmp_path / "absent")):
        with pytest.raises(CheckpointError, match="checkpoint"):
            read_checkpoint(source)


class Custom:
    pass


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_that_needs_code_says_why_and_how_to_convert(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.pth"
    content = {"model": STATE, "args": argparse.Namespace(lr=1)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"argparse.Namespace.*convert"):
        read_checkpoint(path)


def test_damaged_files_are_errors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    torch.save(STATE, tmp_path / "b.pt")
    for file in ("a.safetensors", "b.pt"):
        path = tmp_path / file
        path.write_bytes(path.read_bytes()[:-50])
        with pytest.raises(CheckpointError, match=f"{file}.*damaged"):
            read_checkpoint(path)


def test_other_content_is_an_error(tmp_path: Path) -> None:
    for content, named in (
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\x93NUMPY\x01\x00v\x00", "NumPy"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"<!DOCTYPE html>", "a page of text"),
        (b"sys_info".ljust(257, b"\0") + b"ustar  \0", "a tar archive"),
        (b"cposix\nmkdir\n.", "neither safetensors nor"),
    ):
        (tmp_path / "other.pth").write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"other\.pth is .*{named}.*Give safetensors"):
            read_checkpoint(tmp_path / "other.pth")
    np.savez(tmp_path / "a.npz", np.zeros(1))
    with pytest.raises(CheckpointError, match=r"a\.npz.*NumPy"):
        read_checkpoint(tmp_path / "a.npz")
    torch.save(STATE, tmp_path / "late.pth", pickle_protocol=4)
    with pytest.raises(CheckpointError, match=r"late\.pth .*pickle protocol 4"):
        read_checkpoint(tmp_path / "late.pth")
    torch.save({"a": torch.ones(1).expand(5)}, tmp_path / "repeated.pth")
    with pytest.raises(CheckpointError, match=r"repeated\.pth: a tensor \[5\]"):
        read_checkpoint(tmp_path / "repeated.pth")
    (tmp_path / "empty.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="safetensors"):
        read_checkpoint(tmp_path / "empty.pt")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "numbers.pt")
    with pytest.raises(CheckpointError, match="tensors"):
        read_checkpoint(tmp_path / "numbers.pt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="tensors"):
        read_checkpoint(tmp_path / "list.pt")


def test_folders_without_or_with_several_checkpoints_are_errors(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"\*.safetensors, .*it.*notes.txt"):
        read_checkpoint(tmp_path)
    for file in ("one.pt", "two.pt"):
        torch.save(STATE, tmp_path / file)
    with pytest.raises(CheckpointError, match=r"one.pt, two.pt"):
        read_checkpoint(tmp_path)
