"""The file formats that a model can be exported to: how each is written, and how it is run."""

import importlib
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from kinescan.errors import CheckpointError, ExportError
from kinescan.inference.graph_limits import check_onnx, check_openvino, limit_onnxruntime
from kinescan.inference.transformers_folder import read_transformers_folder
from kinescan.models.classifier import VideoClassifier
from kinescan.models.saving.model_card import TRANSFORMERS_USE, model_card
from kinescan.ops.backend import plain_torch
from kinescan.runtime.error_text import first_line
from kinescan.runtime.files import inside
from kinescan.runtime.optional_package import optional_package
from kinescan.settings import to_plain

FormatName = Literal["onnx", "openvino", "torch", "transformers"]
Precision = Literal["float32", "bfloat16"]
Shape = tuple[int | None, ...]
"""Of one tensor; None: any number, the same for all tensors that go in and come out."""
Runner = Callable[[Sequence[Tensor]], list[Tensor]]
"""All inputs of a graph, float32 on the CPU -> all outputs, float32."""

CLIP, LOGITS = "clip", "logits"
_LARGEST_PROTOBUF_BYTES = 2**31 - 2**24

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What goes into a graph and what comes out, in order.

    Attributes:
        inputs: name -> shape of each tensor.
        outputs: names.
    """

    inputs: Mapping[str, Shape]
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One kind of file.

    Attributes:
        file: name of the file that is opened.
        precisions: what it can compute in.
        fixed_batch: whether the number of clips can be fixed.
        runs_code: whether opening such a file may run code that it carries.
        holds_steps: whether it can hold one step of a stream, with the state as inputs and outputs.
        write: puts a module with such inputs and outputs into a file, and others beside it.
        open: makes the function that runs such a file.
    """

    file: str
    precisions: tuple[Precision, ...] = ("float32",)
    fixed_batch: bool = True
    runs_code: bool = False
    holds_steps: bool = True
    write: Callable[[nn.Module, Signature, Path], None]
    open: Callable[[Path, Precision, int, Signature], Runner]


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
            # Both by their texts: other warnings of the same modules and category are to be seen. All streams of a step
            # share one axis, which has one name.
            warnings.filterwarnings("ignore", message="# The axis name", category=UserWarning)
            # A recurrent layer of torch keeps a list of its weights, which tracing fills and puts back.
            warnings.filterwarnings("ignore", message="The tensor attributes", category=UserWarning)
            yield
    finally:
        chatty.setLevel(before)


def trace(module: nn.Module, signature: Signature) -> ExportedProgram:
    """The module as a graph of plain torch operations.

    Raises:
        ExportError: torch.export cannot take it apart.
    """
    batch = Dim("batch", min=1)
    examples, axes = [], []
    for shape in signature.inputs.values():
        # A batch of 1 would be taken for a constant.
        examples.append(torch.zeros([2 if size is None else size for size in shape]))
        axes.append({axis: batch for axis, size in enumerate(shape) if size is None})
    try:
        with plain_torch(), torch.no_grad():
            return torch.export.export(module, tuple(examples), dynamic_shapes=_nested(module, axes), strict=False)
    # It fails in many ways, each with its own kind of error.
    except Exception as error:
        raise ExportError(f"{_name_of(module)} cannot be taken apart by torch.export: {first_line(error)}") from error


def _nested(module: nn.Module, axes: Sequence[Any]) -> tuple[Any, ...]:
    """The dynamic axes of the inputs as torch wants them: those of *inputs stand in a tuple of their own."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    return (tuple(axes),) if kinds == [inspect.Parameter.VAR_POSITIONAL] else tuple(axes)


def _name_of(module: nn.Module) -> str:
    return module.name if isinstance(module, VideoClassifier) else type(module).__name__


def _write_torch(module: nn.Module, signature: Signature, path: Path) -> None:
    torch.export.save(trace(module, signature), path)


def _open_torch(path: Path, precision: Precision, num_threads: int, signature: Signature) -> Runner:
    with quiet_exporters():
        module = torch.export.load(path).module()

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            given = module(*inputs)
        return [given] if isinstance(given, Tensor) else list(given)

    return run


def _write_onnx(module: nn.Module, signature: Signature, path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        optional_package(package)
    program = trace(module, signature)
    axes = [
        {axis: "batch" for axis, size in enumerate(shape) if size is None} or None
        for shape in signature.inputs.values()
    ]
    converted = torch.onnx.export(
        program,
        (),
        dynamo=True,
        verbose=False,
        input_names=list(signature.inputs),
        output_names=list(signature.outputs),
        dynamic_shapes=_nested(module, axes) if any(axes) else None,
    )
    assert converted is not None
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    converted.save(path, external_data=num_bytes > _LARGEST_PROTOBUF_BYTES)


def _open_onnx(path: Path, precision: Precision, num_threads: int, signature: Signature) -> Runner:
    runtime = optional_package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = num_threads
    # Errors are raised; what it logs beside them is for its own developers.
    options.log_severity_level = 4
    options.add_session_config_entry("session.use_env_allocators", "1")
    check_onnx(path)
    limit_onnxruntime(runtime)
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names, outputs = list(signature.inputs), list(signature.outputs)

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        given = {name: tensor.contiguous().numpy() for name, tensor in zip(names, inputs, strict=True)}
        return [torch.from_numpy(array) for array in session.run(outputs, given)]

    return run


def _write_openvino(module: nn.Module, signature: Signature, path: Path) -> None:
    openvino = optional_package("openvino")
    converted = openvino.convert_model(trace(module, signature))
    shapes = [[-1 if size is None else size for size in shape] for shape in signature.inputs.values()]
    converted.reshape(dict(enumerate(map(openvino.PartialShape, shapes))))
    for port, name in zip(converted.inputs, signature.inputs, strict=True):
        port.tensor.set_names({name})
    for port, name in zip(converted.outputs, signature.outputs, strict=True):
        port.tensor.set_names({name})
    openvino.save_model(converted, path, compress_to_fp16=False)


def _open_openvino(path: Path, precision: Precision, num_threads: int, signature: Signature) -> Runner:
    openvino = optional_package("openvino")
    hint = {"float32": openvino.Type.f32, "bfloat16": openvino.Type.bf16}[precision]
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": num_threads}
    inside(path.parent, path.with_suffix(".bin").name, error=CheckpointError)
    # Of OpenVINO's own format: left to itself, it takes an ONNX or TensorFlow file under this name, which names files.
    reader = importlib.import_module("openvino.frontend").FrontEndManager().load_by_framework("ir")
    model = reader.convert(reader.load(path))
    for ports, wanted in ((model.inputs, tuple(signature.inputs)), (model.outputs, signature.outputs)):
        names = [port.get_names() for port in ports]
        if len(names) != len(wanted) or not all(name in names[index] for index, name in enumerate(wanted)):
            raise CheckpointError(
                f"{path} cannot be opened: it holds no graph from {', '.join(signature.inputs)} to "
                f"{', '.join(signature.outputs)}. Export the model again."
            )
    check_openvino(model, path)
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    chosen = compiled.get_property("INFERENCE_PRECISION_HINT")
    if chosen != hint:
        logger.warning("%s: this processor computes in %s instead of %s", path, chosen.to_string(), precision)

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        given = compiled([tensor.contiguous().numpy() for tensor in inputs])
        # A copy: the next call writes to the same memory.
        return [torch.from_numpy(given[index].copy()) for index in range(len(signature.outputs))]

    return run


def _auto_classes() -> Any:
    """Our classes for transformers, which import it."""
    optional_package("transformers", extra="vlm")
    return importlib.import_module("kinescan.inference.transformers_classes")


def _write_transformers(module: nn.Module, signature: Signature, path: Path) -> None:
    assert isinstance(module, VideoClassifier)
    model, num_frames = module, signature.inputs[CLIP][1]
    wrapped, processor = _auto_classes().wrap(model, num_frames=num_frames)
    wrapped.save_pretrained(path.parent)
    processor.save_pretrained(path.parent)
    card = model_card(
        name=model.name,
        config=to_plain(model.config),
        labels=model.labels,
        preprocessing=to_plain(model.preprocessing) | {"num_frames": num_frames},
        num_parameters=model.num_parameters,
        use=TRANSFORMERS_USE,
    )
    (path.parent / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")


def _open_transformers(path: Path, precision: Precision, num_threads: int, signature: Signature) -> Runner:
    model = read_transformers_folder(path)

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [model(*inputs)]

    return run


FORMATS: Mapping[FormatName, Format] = {
    "onnx": Format(file="model.onnx", write=_write_onnx, open=_open_onnx),
    "openvino": Format(
        file="model.xml", precisions=("float32", "bfloat16"), write=_write_openvino, open=_open_openvino
    ),
    "torch": Format(file="model.pt2", runs_code=True, write=_write_torch, open=_open_torch),
    "transformers": Format(
        file="model.safetensors",
        fixed_batch=False,
        holds_steps=False,
        write=_write_transformers,
        open=_open_transformers,
    ),
}
