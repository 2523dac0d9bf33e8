import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kinescan.data.video import write_video
from kinescan.errors import CheckpointError, ConfigError, ExportError, ShapeError, VideoError
from kinescan.inference import export_formats as formats
from kinescan.inference.export import TOLERANCES, export
from kinescan.inference.exported import ExportedModel, load_exported
from kinescan.inference.predictor import predict
from kinescan.inference.stream import StreamSession
from kinescan.models.pks4 import PKS4
from kinescan.models.zoo import create_model, from_pretrained

from .conftest import LABELS, tiny_model

PACKAGES = {"torch": (), "onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
SIZES = {"depth": 2, "insert_after": 1, "window": 3, "context_frames": 2, "width": 16, "heads": 1}


def _need(to: str) -> None:
    for package in PACKAGES[to]:
        pytest.importorskip(package)


@pytest.fixture(scope="module")
def small() -> PKS4:
    return tiny_model(**SIZES)


@pytest.fixture(scope="module")
def bare() -> PKS4:
    """Quickly exported."""
    return tiny_model(depth=1, scanner=False, correlation=False, variation=False, class_token_route="none")


@pytest.fixture(scope="module")
def deployed(small: PKS4, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One export to torch, which the tests read."""
    folder = tmp_path_factory.mktemp("export") / "deployed"
    export(small, folder, to="torch")
    return folder


@pytest.fixture
def video(tmp_path: Path) -> Path:
    pixels = torch.randint(0, 256, (9, 3, 40, 48), dtype=torch.uint8)
    write_video(tmp_path / "a.mp4", pixels, fps=8)
    return tmp_path / "a.mp4"


@pytest.mark.parametrize("to", sorted(PACKAGES))
def test_any_number_of_clips_gives_the_logits_of_the_model(to: Any, small: PKS4, video: Path, tmp_path: Path) -> None:
    _need(to)
    small.train()
    record = export(small, tmp_path / "deployed", to=to, videos=[video], num_frames=2)
    assert small.training
    assert (record.batch, record.num_frames, record.size, record.labels) == (None, 2, 32, LABELS)
    assert record.check["passed"]
    assert record.check["clips"] == [str(video)]
    assert record.check["single_clip"]
    exported = load_exported(tmp_path / "deployed", allow_code=True)
    small.eval()
    for batch in (1, 3):
        clip = torch.randn(batch, 2, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(exported(clip), small(clip), atol=1e-4, rtol=1e-4)


def _computes_in_bfloat16() -> bool:
    """Whether OpenVINO has instructions for it here; on other processors it computes such a model in float32."""
    openvino = pytest.importorskip("openvino")
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_fixed_batch_in_bfloat16_with_openvino(bare: PKS4, tmp_path: Path) -> None:
    _need("openvino")
    record = export(bare, tmp_path, to="openvino", batch=2, num_frames=3, precision="bfloat16", tolerance=0.1)
    assert (record.batch, record.num_frames, record.precision) == (2, 3, "bfloat16")
    assert 0 < record.check["largest_difference"] <= record.check["allowed_difference"]
    assert set(record.files) == {"model.xml", "model.bin"}
    clip = torch.randn(3, 3, 3, 32, 32)
    with torch.no_grad():
        expected = bare(clip)
    # The third clip goes in beside one of zeros.
    torch.testing.assert_close(load_exported(tmp_path, precision="float32")(clip), expected, atol=1e-4, rtol=1e-4)
    if _computes_in_bfloat16():
        assert (load_exported(tmp_path)(clip) - expected).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pks4_vit_ti16", {"causal": True, "norm": "group", **SIZES}),
        ("pks4_vit_ti16", {"bidirectional": True, "border": "replicate", **SIZES}),
        ("videomamba_tiny", {"depth": 1}),
    ],
)
def test_other_models_export_too(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = create_model(name, labels=["a", "b"], image_size=32, preprocessing={"num_frames": 2}, **options)
    assert export(model, tmp_path, to="torch", batch=1).check["passed"]


def test_exported_file_needs_nothing_of_kinescan(deployed: Path) -> None:
    program = torch.export.load(deployed / "model.pt2")
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in called if "kinescan" in name]


def test_record_beside_the_file_says_all_that_is_needed(deployed: Path, small: PKS4) -> None:
    record = json.loads((deployed / "export.json").read_text(encoding="utf-8"))
    assert {entry.name for entry in deployed.iterdir()} == {"model.pt2", "export.json"}
    assert record["labels"] == list(LABELS)
    assert record["preprocessing"]["mean"] == list(small.preprocessing.mean)
    assert record["check"]["clips"] == ["synthetic: right", "synthetic: down", "synthetic: clockwise"]
    assert record["check"]["same_top1"] == 3


def test_predict_takes_the_folder_of_an_export(deployed: Path, small: PKS4, video: Path) -> None:
    [ours], [theirs] = predict(small, video), predict(deployed, video, allow_code=True)
    assert theirs.labels == ours.labels
    assert theirs.scores == pytest.approx(ours.scores, abs=1e-5)


def test_a_file_that_differs_is_an_error_with_the_numbers_and_leaves_nothing(
    bare: PKS4, deployed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = formats.FORMATS["torch"]

    def off(*arguments: Any) -> Any:
        run = honest.open(*arguments)
        return lambda inputs: [run(inputs)[0] + torch.tensor([0.0, 0.0, 0.0, 50.0])]

    monkeypatch.setitem(formats.FORMATS, "torch", replace(honest, open=off))  # type: ignore[arg-type]
    message = (
        r"torch file differs from pks4_vit_ti16: logits by up to 50 \(allowed: 0.00\d+, .*same best class on 0 of 3"
    )
    with pytest.raises(ExportError, match=message):
        export(bare, tmp_path / "new" / "deployed", to="torch")
    assert not list((tmp_path / "new").iterdir())
    before = {entry.name: entry.stat().st_mtime_ns for entry in deployed.iterdir()}
    with pytest.raises(ExportError, match="--tolerance"):
        export(bare, deployed, to="torch")
    assert {entry.name: entry.stat().st_mtime_ns for entry in deployed.iterdir()} == before
    with pytest.raises(ExportError, match="classes"):
        export(bare, tmp_path / "new" / "deployed", to="torch", tolerance=1000.0, batch=3)


def test_another_export_takes_the_place_of_the_earlier_one(tmp_path: Path) -> None:
    model = create_model("vit_ti16", labels=["a", "b"], image_size=32, depth=1, preprocessing={"num_frames": 2})
    export(model, tmp_path, to="torch")
    (tmp_path / "model.pt2").rename(tmp_path / "old.pt2")
    record = json.loads((tmp_path / "export.json").read_text(encoding="utf-8"))
    (tmp_path / "export.json").write_text(json.dumps(record | {"files": ["old.pt2"]}), encoding="utf-8")
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    export(model, tmp_path, to="torch", batch=1)
    assert {entry.name for entry in tmp_path.iterdir()} == {"model.pt2", "export.json", "notes.txt"}


def test_exported_model_refuses_what_it_cannot_do(deployed: Path, tmp_path: Path) -> None:
    exported = load_exported(deployed, allow_code=True)
    with pytest.raises(ShapeError, match=r"4.*5. Sample 4.*--frames 5"):
        exported(torch.zeros(1, 5, 3, 32, 32))
    with pytest.raises(CheckpointError, match="kinescan"):
        exported.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="exported"):
        export(deployed, tmp_path, to="torch")
    with pytest.raises(ConfigError, match=r"float32.*bfloat16. For bfloat16"):
        load_exported(deployed, precision="bfloat16")
    assert isinstance(exported, ExportedModel)
    assert (exported.layer_depths(), exported.num_layers) == ({}, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "coreml"}, "'coreml'."),
        ({"to": "onnx", "precision": "bfloat16"}, "onnx.*float32.*bfloat16"),
        ({"to": "torch", "precision": "int8"}, "precision.*float32.*bfloat16.*'int8'"),
        ({"to": "torch", "batch": 0}, "batch.*1.*'dynamic'.*0"),
        ({"to": "torch", "num_frames": 0}, "num_frames.*1.*0"),
        ({"to": "torch", "tolerance": 0.0}, "tolerance.*0.0"),
    ],
)
def test_arguments_out_of_range(small: PKS4, tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        export(small, tmp_path, **options)


def test_folders_models_and_videos_that_do_not_do(small: PKS4, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="file"):
        export(small, tmp_path / "file", to="torch")
    with pytest.raises(ConfigError, match="earlier"):
        export(small, tmp_path, to="torch")
    with pytest.raises(VideoError):
        export(small, tmp_path / "new", to="torch", videos=[tmp_path / "file"])
    half = create_model("vit_ti16", depth=1, image_size=32).bfloat16()
    with pytest.raises(ConfigError, match=r"exported in float32, vit_ti16 is in bfloat16. Give model.float\(\)"):
        export(half, tmp_path / "new", to="torch")
    assert {entry.name for entry in tmp_path.iterdir()} == {"file"}


def test_a_model_that_cannot_be_taken_apart(bare: PKS4, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = PKS4.forward

    def peeking(self: PKS4, clip: torch.Tensor) -> torch.Tensor:
        return forward(self, clip) * (2.0 if clip.sum().item() > 0 else 1.0)

    monkeypatch.setattr(PKS4, "forward", peeking)
    with pytest.raises(ExportError, match=r"pks4_vit_ti16.*torch.export:"):
        export(bare, tmp_path, to="torch")


def test_a_format_that_cannot_hold_the_model(bare: PKS4, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no rule for an operation\nlong log")

    broken = replace(formats.FORMATS["torch"], write=fail)
    monkeypatch.setitem(formats.FORMATS, "torch", broken)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=r"operation.*$"):
        export(bare, tmp_path, to="torch")


def test_damaged_exports(deployed: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"export.json.*`kinescan export` wrote"):
        load_exported(tmp_path)
    text = (deployed / "export.json").read_text(encoding="utf-8")
    (tmp_path / "export.json").write_text(text[:-20], encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"export.json.*JSON"):
        load_exported(tmp_path)
    (tmp_path / "export.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"lacks model.pt2"):
        load_exported(tmp_path)


def test_tolerances_are_those_of_the_documentation() -> None:
    assert TOLERANCES == {"float32": 1e-3, "bfloat16": 0.05}


def test_a_model_without_labels_is_exported_without_labels(tmp_path: Path) -> None:
    model = create_model("vit_ti16", num_classes=2, depth=1, image_size=32, preprocessing={"num_frames": 2})
    record = export(model, tmp_path, to="onnx")
    assert (record.labels, record.num_classes) == (None, 2)
    loaded = load_exported(tmp_path)
    assert (loaded.labels, loaded.class_names) == (None, ("0", "1"))


def test_exported_files_can_be_read_by_whom_new_files_can(deployed: Path, small: PKS4, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    usual = (tmp_path / "new").stat().st_mode
    assert {file.stat().st_mode for file in deployed.iterdir()} == {usual}
    if importlib.util.find_spec("transformers"):
        export(small, tmp_path / "other", to="transformers")
        assert {file.stat().st_mode for file in (tmp_path / "other").iterdir()} == {usual}


def test_a_causal_export_is_called_causal(bare: PKS4, deployed: Path, tmp_path: Path) -> None:
    assert load_exported(deployed, allow_code=True).record.causal is False
    with pytest.raises(ConfigError, match="exported"):
        StreamSession(deployed)
    causal = tiny_model(depth=1, scanner=False, correlation=False, variation=False, causal=True)
    export(causal, tmp_path / "causal", to="torch")
    with pytest.raises(ConfigError, match=r"exported.*that.*exported"):
        StreamSession(tmp_path / "causal")


def test_from_pretrained_says_how_an_export_is_loaded(deployed: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model.*load_exported"):
        from_pretrained(deployed)


def test_a_model_of_frames_is_refused(tmp_path: Path) -> None:
    model = create_model("vit_ti16", labels=["background", "fall"], depth=1, output="frames")
    with pytest.raises(ConfigError, match="every frame"):
        export(model, tmp_path / "exported", to="onnx")
    assert not (tmp_path / "exported").exists()
