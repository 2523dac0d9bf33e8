"""Folders from strangers: none runs code, leads out of itself, or takes all memory or time."""

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kinescan as ks
from kinescan.errors import CheckpointError, ConfigError, KinescanError
from kinescan.inference.export import export
from kinescan.inference.export_record import read_record
from kinescan.inference.exported import load_exported
from kinescan.inference.model_source import holds_export, resolve_model
from kinescan.models.pks4 import PKS4

from .conftest import tiny_model

BARE: dict[str, Any] = {
    "depth": 1,
    "scanner": False,
    "correlation": False,
    "variation": False,
    "class_token_route": "none",
}


class Attack:
    """Leaves a mark where a pickle of it is read by one that runs code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def model() -> PKS4:
    return tiny_model(**BARE)


@pytest.fixture(scope="module")
def exported(model: PKS4, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "deployed"
    export(model, folder, to="torch")
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A sound export that a test may change."""
    shutil.copytree(exported, tmp_path / "deployed")
    return tmp_path / "deployed"


def change(folder: Path, **fields: Any) -> None:
    record = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    (folder / "export.json").write_text(json.dumps(record | fields), encoding="utf-8")


def replace_member(path: Path, end: str, content: bytes) -> None:
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    assert any(name.endswith(end) for name in members)
    with zipfile.ZipFile(path, "w") as file:
        for name, old in members.items():
            file.writestr(name, content if name.endswith(end) else old)


@pytest.fixture
def armed(folder: Path, tmp_path: Path) -> Path:
    """The export with a program in place of its sample inputs."""
    buffer = io.BytesIO()
    torch.save(Attack(tmp_path / "mark"), buffer)
    replace_member(folder / "model.pt2", "data/sample_inputs/model.pt", buffer.getvalue())
    return folder


def test_the_attack_would_work(armed: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        load_exported(armed, allow_code=True)
    assert (tmp_path / "mark").is_dir()


USES: dict[str, Callable[[Path], Any]] = {
    "predict": lambda folder: ks.predict(folder, folder.parent / "none.mp4"),
    "from_pretrained": ks.from_pretrained,
    "load_exported": load_exported,
    "resolve_model": resolve_model,
    "stream": lambda folder: next(ks.stream(folder, folder.parent / "none.mp4")),
    "create_model": lambda folder: ks.create_model("pks4_vit_ti16", weights=folder),
    "export": lambda folder: export(folder, folder.parent / "again", to="torch"),
    "export over it": lambda folder: export(tiny_model(**BARE), folder, to="torch"),
}


@pytest.mark.parametrize("use", USES)
def test_no_use_of_a_folder_runs_what_it_carries(use: str, armed: Path, tmp_path: Path) -> None:
    if use == "export over it":
        USES[use](armed)
    else:
        with pytest.raises(KinescanError):
            USES[use](armed)
    assert not (tmp_path / "mark").exists()


def test_torch_export_is_opened_only_where_the_caller_says_so(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"allow_code=True.*--allow-code"):
        load_exported(folder)
    assert load_exported(folder, allow_code=True)(torch.zeros(1, 4, 3, 32, 32)).shape == (1, 4)


def test_saved_weights_go_before_an_export_in_the_same_folder(armed: Path, model: PKS4, tmp_path: Path) -> None:
    model.save_pretrained(armed)
    assert not holds_export(armed)
    assert isinstance(resolve_model(armed), PKS4)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["../../../../etc/passwd", "/etc/passwd", "..", "", "a/b", "C:model.pt2", "a\0b"])
def test_records_name_files_of_their_own_folder(folder: Path, name: str) -> None:
    change(folder, file=name)
    with pytest.raises(CheckpointError, match=r"must be 'model\.pt2'"):
        load_exported(folder, allow_code=True)
    change(folder, file="model.pt2", files=[name])
    with pytest.raises(CheckpointError, match="folder"):
        load_exported(folder, allow_code=True)


def test_an_export_over_a_stranger_s_removes_nothing_elsewhere(folder: Path, model: PKS4, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for name in ("../mine.txt", str(tmp_path / "mine.txt")):
        change(folder, files=[name])
        with pytest.raises(CheckpointError):
            export(model, folder, to="torch")
        assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["export.json", "model.pt2"])
def test_links_out_of_the_folder_and_pipes_are_refused(folder: Path, name: str, tmp_path: Path) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="outside"):
        load_exported(folder, allow_code=True)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match=r"has no export\.json|lacks model\.pt2"):
        load_exported(folder, allow_code=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"labels": []},
        {"labels": ["a", "a"]},
        {"labels": "abcd"},
        {"num_frames": 0},
        {"num_frames": True},
        {"size": -1},
        {"size": 10**30},
        {"batch": 0},
        {"format": "pickle"},
        {"precision": "int8"},
        {"preprocessing": []},
        {"preprocessing": {"size": 10**9}},
        {"preprocessing": {"num_frames": 10**12}},
        {"check": 3},
        {"extra": 1},
    ],
    ids=str,
)
def test_records_of_the_wrong_kind_are_damaged(folder: Path, fields: dict[str, Any]) -> None:
    change(folder, **fields)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_record(folder)


def test_an_export_of_another_model_is_refused_at_its_first_clip(folder: Path) -> None:
    change(folder, labels=["a", "b"], num_classes=2)
    exported = load_exported(folder, allow_code=True)
    with pytest.raises(CheckpointError, match=r"gives torch.float32 \[1, 4\] where float32 \[1, 2\] belongs"):
        exported(torch.zeros(1, 4, 3, 32, 32))


# ONNX


def write_onnx(folder: Path, make: Callable[[Any], tuple[list[Any], list[Any]]], domain: str = "") -> None:
    """An export to ONNX whose logits are what `make` adds to nothing: nodes that end in "x", a number; initializers."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes, tensors = make(onnx)
    numbers = {"axes": [1, 2, 3, 4], "row": [1, 4]}
    tensors += [onnx.numpy_helper.from_array(np.array(held, np.int64), name) for name, held in numbers.items()]
    nodes += [
        helper.make_node("ReduceMean", ["clip", "axes"], ["mean"], keepdims=0),
        helper.make_node("Add", ["mean", "x"], ["sum"]),
        helper.make_node("Expand", ["sum", "row"], ["logits"]),
    ]
    clip = helper.make_tensor_value_info("clip", kinds.FLOAT, ["batch", 4, 3, 32, 32])
    logits = helper.make_tensor_value_info("logits", kinds.FLOAT, ["batch", 4])
    graph = helper.make_graph(nodes, "hostile", [clip], [logits], tensors)
    opsets = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    (folder / "model.onnx").write_bytes(made.SerializeToString())
    change(folder, format="onnx", file="model.onnx", files=["model.onnx"])


def constant(onnx: Any, value: float = 2.0) -> tuple[list[Any], list[Any]]:
    return [], [onnx.numpy_helper.from_array(np.array(value, np.float32), "x")]


def huge(onnx: Any) -> tuple[list[Any], list[Any]]:
    size = onnx.numpy_helper.from_array(np.array([2**33], np.int64), "size")
    byte = onnx.numpy_helper.from_array(np.array([1], np.int8))
    make = onnx.helper.make_node
    nodes = [make("ConstantOfShape", ["size"], ["bytes"], value=byte), make("Cast", ["bytes"], ["big"], to=1)]
    return [*nodes, make("ReduceMax", ["big"], ["x"], keepdims=0)], [size]


def huge_by_its_clip(onnx: Any) -> tuple[list[Any], list[Any]]:
    arrays = {"much": np.array([1e12], np.float32)}
    make = onnx.helper.make_node
    nodes = [make("ReduceMax", ["clip"], ["most"], keepdims=0), make("Add", ["most", "much"], ["sum1"])]
    nodes += [make("Cast", ["sum1"], ["size"], to=7), make("ConstantOfShape", ["size"], ["big"])]
    nodes += [make("ReduceMax", ["big"], ["x"], keepdims=0)]
    return nodes, [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]


def sparse_elsewhere(onnx: Any) -> tuple[list[Any], list[Any]]:
    _, [values] = elsewhere("../../x")(onnx)
    indices = onnx.numpy_helper.from_array(np.array([0], np.int64), "indices")
    node = onnx.helper.make_node("Constant", [], ["held"])
    held = onnx.helper.make_sparse_tensor(values, indices, [1])
    node.attribute.append(onnx.helper.make_attribute("sparse_value", held))
    return [node, onnx.helper.make_node("ReduceMax", ["held"], ["x"], keepdims=0)], []


def branching_over_nothing(onnx: Any) -> tuple[list[Any], list[Any]]:
    value = onnx.helper.make_tensor_value_info("x1", 1, [])
    inner = onnx.helper.make_graph([], "inner", [], [value], [onnx.numpy_helper.from_array(np.float32(1), "x1")])
    node = onnx.helper.make_node("If", ["true"], ["x"], then_branch=inner, else_branch=inner)
    return [node], [onnx.numpy_helper.from_array(np.array(True), "true")]


def endless(onnx: Any) -> tuple[list[Any], list[Any]]:
    helper = onnx.helper
    values = [helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("c", 9), ("v", 1))]
    results = [helper.make_tensor_value_info(name, kind, []) for name, kind in (("go", 9), ("w", 1))]
    body = [helper.make_node("Identity", ["c"], ["go"]), helper.make_node("Identity", ["v"], ["w"])]
    loop = helper.make_node("Loop", ["count", "true", "start"], ["x"])
    loop.attribute.append(helper.make_attribute("body", helper.make_graph(body, "body", values, results)))
    arrays = {"count": np.array(2**62), "true": np.array(True), "start": np.array(0, np.float32)}
    return [loop], [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]


def elsewhere(location: str) -> Callable[[Any], tuple[list[Any], list[Any]]]:
    def make(onnx: Any) -> tuple[list[Any], list[Any]]:
        _, [tensor] = constant(onnx)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "4")):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        return [], [tensor]

    return make


def test_a_plain_onnx_graph_is_opened(folder: Path) -> None:
    write_onnx(folder, constant)
    assert load_exported(folder)(torch.ones(1, 4, 3, 32, 32)).tolist() == [[3.0] * 4]


@pytest.mark.timeout(120)
def test_onnx_graphs_that_loop_or_name_other_files_are_refused(folder: Path) -> None:
    write_onnx(folder, endless)
    with pytest.raises(CheckpointError, match="operators"):
        load_exported(folder)
    write_onnx(folder, branching_over_nothing)
    with pytest.raises(CheckpointError, match="operators"):
        load_exported(folder)
    for make in (*map(elsewhere, ("/etc/passwd", "../../x", "*/_ORT_MEM_ADDR_/*")), sparse_elsewhere):
        write_onnx(folder, make)
        with pytest.raises(CheckpointError, match="folder"):
            load_exported(folder)
    (folder / "outside").symlink_to("/etc/passwd")
    write_onnx(folder, elsewhere("outside"))
    with pytest.raises(CheckpointError, match="outside"):
        load_exported(folder)
    write_onnx(folder, lambda onnx: ([onnx.helper.make_node("Run", [], ["x"], domain="evil")], []), domain="evil")
    with pytest.raises(CheckpointError, match="operators"):
        load_exported(folder)
    (folder / "model.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="ONNX file"):
        load_exported(folder)


def test_an_onnx_graph_that_asks_for_all_memory_fails_alone(folder: Path) -> None:
    write_onnx(folder, huge)
    with pytest.raises(CheckpointError, match="videos"):
        load_exported(folder)
    write_onnx(folder, huge_by_its_clip)
    exported = load_exported(folder)
    with pytest.raises(CheckpointError, match=r"(memory|size)"):
        exported(torch.zeros(1, 4, 3, 32, 32))
    write_onnx(folder, constant)
    assert load_exported(folder)(torch.ones(1, 4, 3, 32, 32)).tolist() == [[3.0] * 4]


# OpenVINO


def write_openvino(folder: Path, make: Callable[[Any], Any]) -> None:
    openvino = pytest.importorskip("openvino")
    ops = openvino.opset13
    clip = ops.parameter([-1, 4, 3, 32, 32], openvino.Type.f32, name="clip")
    mean = ops.reduce_mean(clip, ops.constant([1, 2, 3, 4]), keep_dims=False)
    logits = ops.broadcast(ops.add(mean, make(ops)), ops.constant([1, 4]))
    made = openvino.Model([logits], [clip])
    made.inputs[0].tensor.set_names({"clip"})
    made.outputs[0].tensor.set_names({"logits"})
    openvino.save_model(made, folder / "model.xml", compress_to_fp16=False)
    change(folder, format="openvino", file="model.xml", files=["model.xml", "model.bin"])


def test_only_openvino_s_own_format_is_opened_under_its_name(folder: Path) -> None:
    pytest.importorskip("openvino")
    write_onnx(folder, elsewhere("../../x"))
    (folder / "model.onnx").rename(folder / "model.xml")
    change(folder, format="openvino", file="model.xml", files=["model.xml"])
    (folder / "model.bin").write_bytes(b"\0")
    with pytest.raises(CheckpointError, match=r"model\.xml cannot be opened \((?!Exception from|Check)"):
        load_exported(folder)
    write_onnx(folder, constant)
    (folder / "model.onnx").rename(folder / "model.xml")
    change(folder, format="openvino", file="model.xml", files=["model.xml"])
    with pytest.raises(CheckpointError, match=r"model\.xml"):
        load_exported(folder)


def test_openvino_graphs_of_absurd_sizes_or_links_are_refused(folder: Path, tmp_path: Path) -> None:
    write_openvino(folder, lambda ops: ops.constant(np.float32(2)))
    assert load_exported(folder)(torch.ones(1, 4, 3, 32, 32)).tolist() == [[3.0] * 4]
    write_openvino(
        folder,
        lambda ops: ops.reduce_max(
            ops.broadcast(ops.constant(np.float32(2)), ops.constant(np.array([10**11]))), ops.constant(0)
        ),
    )
    with pytest.raises(CheckpointError, match="videos"):
        load_exported(folder)
    write_openvino(folder, lambda ops: ops.constant(np.float32(2)))
    (folder / "model.bin").rename(tmp_path / "model.bin")
    (folder / "model.bin").symlink_to(tmp_path / "model.bin")
    change(folder, files=["model.xml"])
    with pytest.raises(CheckpointError, match="outside"):
        load_exported(folder)
    (folder / "model.xml").write_text("<net></net>")
    (folder / "model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"model\.xml"):
        load_exported(folder)


# transformers


def test_a_transformers_folder_runs_no_code_and_its_sizes_are_compared(
    model: PKS4, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    folder = tmp_path / "deployed"
    export(model, folder, to="transformers")
    clip = torch.randn(1, 4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(load_exported(folder)(clip), model(clip))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "evil.py").write_text(f"import os; os.mkdir({str(tmp_path / 'mark')!r})\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))
    hostile = {"auto_map": {"AutoConfig": "evil.C", "AutoModelForVideoClassification": "evil.M"}, "model_type": "evil"}
    (folder / "config.json").write_text(json.dumps(config | hostile))
    assert load_exported(folder)(clip).shape == (1, 4)
    assert not (tmp_path / "mark").exists()
    for options in ({"width": 2**20}, {"depth": 2}, {"width": "wide"}, {"other": 1}):
        (folder / "config.json").write_text(json.dumps(config | {"options": config["options"] | options}))
        with pytest.raises(CheckpointError, match=r"does not fit"):
            load_exported(folder)
    for fields in ({"architecture": []}, {"options": 1}, {"id2label": ["a"]}, {"preprocessing": None}):
        (folder / "config.json").write_text(json.dumps(config | fields))
        with pytest.raises(CheckpointError, match="is not what"):
            load_exported(folder)


def test_threads_out_of_range(folder: Path) -> None:
    for threads in (0, -1, True, 10**6):
        with pytest.raises(ConfigError, match="num_threads must be"):
            load_exported(folder, num_threads=threads)


def test_pickles_named_as_saved_weights_run_nothing(model: PKS4, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    for content in (pickle.dumps(Attack(tmp_path / "mark")), b"PK\x03\x04", b"", b"\0" * 100):
        (tmp_path / "saved" / "model.safetensors").write_bytes(content)
        for load in (ks.from_pretrained, resolve_model, lambda folder: ks.create_model("vit_ti16", weights=folder)):
            with pytest.raises(CheckpointError):
                load(tmp_path / "saved")
    assert not (tmp_path / "mark").exists()
