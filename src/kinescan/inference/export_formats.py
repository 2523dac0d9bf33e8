"""The file formats that a model can be exported to: how each is written, and how it is run."""

import importlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from kinescan.errors import CheckpointError, ExportError
from kinescan.inference.graph_limits import check_onnx, check_openvino, limit_onnxruntime
from kinescan.inference.transformers_folder import read_transformers_folder
from kinescan.models.classifier import VideoClassifier
from kinescan.models.saving.model_card import TRANSFORMERS_USE, model_card
from kinescan.ops.backend import plain_torch
from kinescan.runtime.files import inside
from kinescan.runtime.optional_package import optional_package
from kinescan.settings import to_plain

FormatName = Literal["onnx", "openvino", "torch", "transformers"]
Precision = Literal["float32", "bfloat16"]
Shape = tuple[int | None, int, int, int, int]
"""Of the clips that go in; None: any number of them."""
Runner = Callable[[Tensor], Tensor]
"""Clips [B, T, 3, H, W] float32 on the CPU -> logits [B, K] float32."""

INPUT, OUTPUT = "clip", "logits"
_LARGEST_PROTOBUF_BYTES = 2**31 - 2**24

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Format:
    """One kind of file.

    Attributes:
        file: name of the file that is opened.
        precisions: what it can compute in.
        fixed_batch: whether the number of clips can be fixed.
        runs_code: whether opening such a file may run code that it carries.
        write: puts a model that takes clips of a shape into a file, and others beside it.
        open: makes the function that runs such a file.
    """

    file: str
    precisions: tuple[Precision, ...] = ("float32",)
    fixed_batch: bool = True
    runs_code: bool = False
    write: Callable[[VideoClassifier, Shape, Path], None]
    open: Callable[[Path, Precision, int], Runner]


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Within the block, torch's exporters do not tell of their own deprecations, nor of torchvision being absent."""
    chatty = logging.getLogger("torch.onnx")
    before = chatty.level
    chatty.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        chatty.setLevel(before)


def trace(model: VideoClassifier, shape: Shape) -> ExportedProgram:
    """The model as a graph of plain torch operations.

    Raises:
        ExportError: torch.export cannot take it apart.
    """
    # A batch of 1 would be taken for a constant.
    example = torch.zeros(shape[0] or 2, *shape[1:])
    axes = {0: Dim("batch", min=1)} if shape[0] is None else None
    try:
        with plain_torch(), torch.no_grad():
            return torch.export.export(model, (example,), dynamic_shapes=(axes,), strict=False)
    # It fails in many ways, each with its own kind of error.
    except Exception as error:
        raise ExportError(f"{model.name} cannot be taken apart by torch.export: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What an error says first; exporters append long logs."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # OpenVINO begins with the places in its source that the error came through.
    telling = [line for line in lines if not re.match(r"Exception from \S+:\d+:$|Check '.*' failed at \S+:$", line)]
    return (telling or lines or [type(error).__name__])[0]


def _write_torch(model: VideoClassifier, shape: Shape, path: Path) -> None:
    torch.export.save(trace(model, shape), path)


def _open_torch(path: Path, precision: Precision, num_threads: int) -> Runner:
    with quiet_exporters():
        module = torch.export.load(path).module()

    def run(clip: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(clip)
        return logits

    return run


def _write_onnx(model: VideoClassifier, shape: Shape, path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        optional_package(package)
    program = trace(model, shape)
    axes = {axis: "batch" for axis, size in enumerate(shape) if size is None}
    converted = torch.onnx.export(
        program,
        (),
        dynamo=True,
        verbose=False,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=(axes,) if axes else None,
    )
    assert converted is not None
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    converted.save(path, external_data=num_bytes > _LARGEST_PROTOBUF_BYTES)


def _open_onnx(path: Path, precision: Precision, num_threads: int) -> Runner:
    runtime = optional_package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = num_threads
    # Errors are raised; what it logs beside them is for its own developers.
    options.log_severity_level = 4
    options.add_session_config_entry("session.use_env_allocators", "1")
    check_onnx(path)
    limit_onnxruntime(runtime)
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda clip: torch.from_numpy(session.run([OUTPUT], {INPUT: clip.contiguous().numpy()})[0])


def _write_openvino(model: VideoClassifier, shape: Shape, path: Path) -> None:
    openvino = optional_package("openvino")
    converted = openvino.convert_model(trace(model, shape))
    converted.reshape([-1 if size is None else size for size in shape])
    converted.inputs[0].tensor.set_names({INPUT})
    converted.outputs[0].tensor.set_names({OUTPUT})
    openvino.save_model(converted, path, compress_to_fp16=False)


def _open_openvino(path: Path, precision: Precision, num_threads: int) -> Runner:
    openvino = optional_package("openvino")
    hint = {"float32": openvino.Type.f32, "bfloat16": openvino.Type.bf16}[precision]
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": num_threads}
    inside(path.parent, path.with_suffix(".bin").name, error=CheckpointError)
    # Of OpenVINO's own format: left to itself, it takes an ONNX or TensorFlow file under this name, which names files.
    reader = importlib.import_module("openvino.frontend").FrontEndManager().load_by_framework("ir")
    model = reader.convert(reader.load(path))
    if (len(model.inputs), len(model.outputs)) != (1, 1):
        raise CheckpointError(
            f"{path} cannot be opened: it holds no graph from a clip to logits. Export the model again."
        )
    check_openvino(model, path)
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    chosen = compiled.get_property("INFERENCE_PRECISION_HINT")
    if chosen != hint:
        logger.warning("%s: this processor computes in %s instead of %s", path, chosen.to_string(), precision)
    return lambda clip: torch.from_numpy(compiled(clip.contiguous().numpy())[OUTPUT].copy())


def _auto_classes() -> Any:
    """Our classes for transformers, which import it."""
    optional_package("transformers", extra="vlm")
    return importlib.import_module("kinescan.inference.transformers_classes")


def _write_transformers(model: VideoClassifier, shape: Shape, path: Path) -> None:
    wrapped, processor = _auto_classes().wrap(model, num_frames=shape[1])
    wrapped.save_pretrained(path.parent)
    processor.save_pretrained(path.parent)
    card = model_card(
        name=model.name,
        config=to_plain(model.config),
        labels=model.labels,
        preprocessing=to_plain(model.preprocessing) | {"num_frames": shape[1]},
        num_parameters=model.num_parameters,
        use=TRANSFORMERS_USE,
    )
    (path.parent / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")


def _open_transformers(path: Path, precision: Precision, num_threads: int) -> Runner:
    model = read_transformers_folder(path)

    def run(clip: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(clip)
        return logits

    return run


FORMATS: Mapping[FormatName, Format] = {
    "onnx": Format(file="model.onnx", write=_write_onnx, open=_open_onnx),
    "openvino": Format(
        file="model.xml", precisions=("float32", "bfloat16"), write=_write_openvino, open=_open_openvino
    ),
    "torch": Format(file="model.pt2", runs_code=True, write=_write_torch, open=_open_torch),
    "transformers": Format(
        file="model.safetensors", fixed_batch=False, write=_write_transformers, open=_open_transformers
    ),
}
