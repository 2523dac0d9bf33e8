"""What an ONNX or OpenVINO graph may hold that comes from anyone: it computes once through, in bounded memory.

Neither format can run code of its own. But a graph may loop without end, ask for any amount of memory, or name files.
"""

import math
import os
from functools import cache
from pathlib import Path
from typing import Any

from kinescan.errors import CheckpointError
from kinescan.runtime.files import inside, require_regular
from kinescan.runtime.optional_package import optional_package

MAX_VALUES = 2**30
"""Of one intermediate result for one clip."""
MAX_CONSTANT_BYTES = 2**30
"""Of all that a graph makes of constants alone, above what its files hold."""
_LONGEST_SHAPE_BYTES = 4096
_PLAIN_DOMAINS = ("", "ai.onnx")
_OPENVINO_CONTROL = ("Loop", "TensorIterator", "If", "ReadValue", "Assign")


def check_onnx(path: Path) -> None:
    """Passes an ONNX file without loops, branches, functions or operators of its own, whose tensors lie in its folder.

    Raises:
        CheckpointError: it holds one of them, or is damaged.
        DependencyError: onnx is not installed.
    """
    onnx = optional_package("onnx")
    require_regular(path, error=CheckpointError)
    try:
        model = onnx.load(str(path), load_external_data=False)
    # protobuf has errors of its own.
    except Exception as error:
        raise CheckpointError(
            f"{path} is not an ONNX file ({error}). It is damaged; export the model again."
        ) from error
    domains = {str(node.domain) for node in model.graph.node} - set(_PLAIN_DOMAINS)
    attributes = [(str(node.op_type), held) for node in model.graph.node for held in node.attribute]
    nested = {kind for kind, held in attributes if held.HasField("g") or held.graphs}
    control = nested | ({"functions"} if model.functions else set())
    if domains or control:
        held = ", ".join(sorted(control | {f"operators of {domain}" for domain in domains})[:5])
        raise CheckpointError(
            f"{path} holds {held}: only graphs of standard operators, without loops and branches, are opened, as "
            "`kinescan export` writes them. Export the model again."
        )
    sparse = [*model.graph.sparse_initializer, *(part for _, held in attributes for part in _sparse_tensors(held))]
    tensors = [*model.graph.initializer, *(part for _, held in attributes for part in (held.t, *held.tensors))]
    for tensor in [*tensors, *(part for held in sparse for part in (held.values, held.indices))]:
        for entry in tensor.external_data:
            if entry.key == "location":
                require_regular(inside(path.parent, entry.value, error=CheckpointError), error=CheckpointError)
    _check_onnx_sizes(onnx, model, path)


def _check_onnx_sizes(onnx: Any, model: Any, path: Path) -> None:
    """Passes a graph whose results, as far as they are fixed, are of sane sizes; `model` is used up."""
    for tensor in model.graph.initializer:
        # Shapes come from short tensors; the others would only be copied.
        if len(tensor.raw_data) > _LONGEST_SHAPE_BYTES:
            tensor.ClearField("raw_data")
    try:
        # Not with data_prop, which makes results itself, of any size.
        known = onnx.shape_inference.infer_shapes(model).graph
    # What it finds fault with, the runtime refuses, too.
    except Exception as error:
        raise CheckpointError(f"{path} is damaged ({error}). Export the model again.") from error
    for value in (*known.value_info, *known.output):
        sizes = [int(dimension.dim_value) for dimension in value.type.tensor_type.shape.dim]
        if math.prod(size for size in sizes if size > 0) > MAX_VALUES:
            raise CheckpointError(
                f"{path}: its result {value.name!r} has the shape {sizes}, which no model of videos needs. It is "
                "damaged; export the model again."
            )


def _sparse_tensors(attribute: Any) -> tuple[Any, ...]:
    return (attribute.sparse_tensor, *attribute.sparse_tensors)


@cache
def limit_onnxruntime(runtime: Any) -> None:
    """Lets sessions of this process that ask for it share memory of at most half of the machine's."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**34
    memory = runtime.OrtMemoryInfo("Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT)
    # The strategy 1 takes from the system what is asked for, and not the double each time.
    limits = runtime.OrtArenaCfg({"max_mem": pages // 2, "arena_extend_strategy": 1})
    runtime.create_and_register_allocator(memory, limits)


def check_openvino(model: Any, path: Path) -> None:
    """Passes an OpenVINO graph without loops, branches and memory of its own, and with results of sane sizes.

    Args:
        model: as `Core.read_model` gives it.
        path: its file, for messages and for the size of the one with its constants.

    Raises:
        CheckpointError: it has loops or branches, or results that no model of videos has.
    """
    constants: dict[str, bool] = {}
    made_of_constants = 0
    for node in model.get_ordered_ops():
        kind, name = node.get_type_name(), node.get_friendly_name()
        if kind in _OPENVINO_CONTROL:
            raise CheckpointError(
                f"{path} holds a {kind}: only graphs without loops and branches are opened, as `kinescan export` "
                "writes them. Export the model again."
            )
        inputs = [value.get_source_output().get_node().get_friendly_name() for value in node.inputs()]
        constants[name] = kind != "Parameter" and all(constants.get(given, False) for given in inputs)
        for output in node.outputs():
            shape = output.get_partial_shape()
            if shape.rank.is_dynamic:
                continue
            values = math.prod(dimension.get_length() for dimension in shape if dimension.is_static)
            made_of_constants += values * output.get_element_type().size if constants[name] and inputs else 0
            if values > MAX_VALUES or made_of_constants > MAX_CONSTANT_BYTES + path.with_suffix(".bin").stat().st_size:
                raise CheckpointError(
                    f"{path}: its {kind} {name!r} has the shape {shape}, which no model of videos needs. It is "
                    "damaged; export the model again."
                )
