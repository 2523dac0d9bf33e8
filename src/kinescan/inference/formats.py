"""The file formats that a model can be exported to: how each is written, and how it is run."""

import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import ExportedProgram

from kinescan.errors import DependencyError

FormatName = Literal["onnx", "openvino", "torch"]
Precision = Literal["float32", "bfloat16"]
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
        write: puts a program with inputs of a shape (None: any size) into a file.
        open: makes the function that runs such a file.
    """

    file: str
    precisions: tuple[Precision, ...]
    write: Callable[[ExportedProgram, tuple[int | None, ...], Path], None]
    open: Callable[[Path, Precision, int], Runner]


def optional_package(name: str) -> Any:
    """A package of the extra "export".

    Raises:
        DependencyError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DependencyError(f"this needs {name} ({error}). Install it with: pip install 'kinescan[export]'") from None


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


def _write_torch(program: ExportedProgram, shape: tuple[int | None, ...], path: Path) -> None:
    torch.export.save(program, path)


def _open_torch(path: Path, precision: Precision, num_threads: int) -> Runner:
    with quiet_exporters():
        module = torch.export.load(path).module()

    def run(clip: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(clip)
        return logits

    return run


def _write_onnx(program: ExportedProgram, shape: tuple[int | None, ...], path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        optional_package(package)
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
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda clip: torch.from_numpy(session.run([OUTPUT], {INPUT: clip.contiguous().numpy()})[0])


def _write_openvino(program: ExportedProgram, shape: tuple[int | None, ...], path: Path) -> None:
    openvino = optional_package("openvino")
    converted = openvino.convert_model(program)
    converted.reshape([-1 if size is None else size for size in shape])
    converted.inputs[0].tensor.set_names({INPUT})
    converted.outputs[0].tensor.set_names({OUTPUT})
    openvino.save_model(converted, path, compress_to_fp16=False)


def _open_openvino(path: Path, precision: Precision, num_threads: int) -> Runner:
    openvino = optional_package("openvino")
    hint = {"float32": openvino.Type.f32, "bfloat16": openvino.Type.bf16}[precision]
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": num_threads}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    chosen = compiled.get_property("INFERENCE_PRECISION_HINT")
    if chosen != hint:
        logger.warning("%s: this processor computes in %s instead of %s", path, chosen.to_string(), precision)
    return lambda clip: torch.from_numpy(compiled(clip.contiguous().numpy())[OUTPUT].copy())


FORMATS: Mapping[FormatName, Format] = {
    "onnx": Format(file="model.onnx", precisions=("float32",), write=_write_onnx, open=_open_onnx),
    "openvino": Format(
        file="model.xml", precisions=("float32", "bfloat16"), write=_write_openvino, open=_open_openvino
    ),
    "torch": Format(file="model.pt2", precisions=("float32",), write=_write_torch, open=_open_torch),
}
