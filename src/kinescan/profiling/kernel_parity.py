"""Whether kernels for GPUs agree with the reference forms: outputs, states and every gradient, each with its error."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kinescan.ops import attention_mass, local_correlation, selective_scan
from kinescan.profiling.kernel_cases import OFFSETS, WINDOW, Tensors, relative_error, sample_attention, sample_scan
from kinescan.runtime.error_text import typed_line

SEED = 0
OUTPUT_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Of the largest entry, by the dtype of the result."""
GRADIENT_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far a result of a kernel is from the reference's.

    Attributes:
        case: sizes and dtype, such as "3 x 17 x 131, bfloat16".
        result: what is compared, such as "gradient of B"; empty where the kernel did not run.
        error: largest difference over the largest entry; None where there is no result.
        tolerance: what it may be.
        problem: why there is no result; empty where there is one.
    """

    case: str
    result: str = ""
    error: float | None = None
    tolerance: float = 0.0
    problem: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        return self.error is not None and self.error <= self.tolerance

    def describe(self) -> str:
        """A line for a report."""
        if self.error is None:
            return f"{self.case}: {self.problem}"
        return f"{self.case}: {self.result} differs by {self.error:.1e} (tolerance {self.tolerance:.0e})"


Result = tuple[str, Tensor]
Case = tuple[str, Callable[[str], list[Result]]]
"""Its name, and what gives the results of a backend: of "reference" in float64, of the same inputs."""


def scan_differences(device: torch.device, *, small: bool = False) -> list[Difference]:
    """The selective scan: y, the last state, and the gradients of all inputs and of the state that comes in.

    Args:
        device: a CUDA device, or a CPU where Triton's interpreter is on.
        small: sizes for the interpreter.
    """
    sizes = [(2, 1, 5, 4), (2, 5, 5, 4)] if small else [(2, 1, 5, 16), (3, 17, 131, 16)]
    cases = [_scan_case(*size, dtype, device) for dtype in OUTPUT_TOLERANCE for size in sizes[-1:]]
    cases += [_scan_case(*sizes[0], torch.float32, device), _scan_case(*sizes[-1], torch.float32, device, plain=True)]
    if not small:
        cases.append(_scan_case(392, 8, 1536, 16, torch.bfloat16, device))
        cases.append(_scan_case(4, 1024, 192, 16, torch.float32, device))
    return list(_differences(cases))


def correlation_differences(device: torch.device, *, small: bool = False) -> list[Difference]:
    """The local correlation: maps and the gradient of the features, with both borders.

    Args:
        device: as for `scan_differences`.
        small: sizes for the interpreter.
    """
    cases = []
    for dtype in OUTPUT_TOLERANCE:
        shape = (1, 2, 2, 3, 3) if small else (1, 3, 5, 6, 7)
        cases.append(_correlation_case(shape, dtype, device, window=3 if small else WINDOW))
    cases.append(_correlation_case(shape, torch.float32, device, window=3, border="replicate"))
    if not small:
        cases.append(_correlation_case((2, 8, 64, 14, 14), torch.bfloat16, device, window=WINDOW))
    return list(_differences(cases))


def attention_differences(device: torch.device, *, small: bool = False) -> list[Difference]:
    """The attention that says what each key received: output and scores; it has no gradient.

    Args:
        device: as for `scan_differences`.
        small: sizes for the interpreter.
    """
    cases = [_attention_case((4, 2, 16, 5, 21), dtype, device) for dtype in OUTPUT_TOLERANCE]
    if not small:
        cases += [_attention_case((14, 2, 64, 196, 1100), dtype, device) for dtype in OUTPUT_TOLERANCE]
        cases.append(_attention_case((16, 8, 128, 196, 1100), torch.bfloat16, device))
    return list(_differences(cases))


PARITY: Mapping[str, Callable[..., list[Difference]]] = {
    "selective_scan": scan_differences,
    "local_correlation": correlation_differences,
    "attention_mass": attention_differences,
}
"""Op -> its differences."""


def _scan_case(
    tracks: int,
    steps: int,
    channels: int,
    state_size: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    plain: bool = False,
) -> Case:
    generator = torch.Generator().manual_seed(SEED)
    tensors = sample_scan(tracks, steps, channels, device, dtype, generator=generator, state_size=state_size)
    if plain:
        tensors = {name: tensors[name] for name in ("u", "delta", "A", "B", "C")}
    else:
        tensors["state"] = torch.randn(tracks, channels, state_size, generator=generator).to(device)
    grad_y = torch.randn(tracks, steps, channels, generator=generator).to(device, dtype)
    grad_state = torch.randn(tracks, channels, state_size, generator=generator).to(device)

    def run(backend: Any) -> list[Result]:
        leaves: Tensors = {name: _wide(x, backend).requires_grad_() for name, x in tensors.items()}
        y, state = selective_scan(**leaves, backend=backend)  # type: ignore[arg-type]
        gradients = torch.autograd.grad([y, state], list(leaves.values()), [_like(grad_y, y), _like(grad_state, state)])
        of_inputs = [(f"gradient of {name}", grad) for name, grad in zip(leaves, gradients, strict=True)]
        return [("y", y.detach()), ("last state", state.detach()), *of_inputs]

    without = ", without the optional inputs" if plain else ""
    return f"{tracks} x {steps} x {channels} x {state_size}, {_name(dtype)}{without}", run


def _correlation_case(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, window: int, border: Any = "zeros"
) -> Case:
    generator = torch.Generator().manual_seed(SEED)
    features = torch.randn(shape, generator=generator).to(device, dtype)
    batch, frames, _, height, width = shape
    grad = torch.randn(batch, frames, len(OFFSETS), window**2, height, width, generator=generator).to(device, dtype)

    def run(backend: Any) -> list[Result]:
        leaf = _wide(features, backend).requires_grad_()
        maps = local_correlation(leaf, OFFSETS, window, border, backend)
        (gradient,) = torch.autograd.grad(maps, leaf, _like(grad, maps))
        return [("maps", maps.detach()), ("gradient of the features", gradient)]

    return f"{' x '.join(map(str, shape))}, window {window}, {border}, {_name(dtype)}", run


def _attention_case(shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device) -> Case:
    tensors = sample_attention(*shape, device, dtype, generator=torch.Generator().manual_seed(SEED))

    def run(backend: Any) -> list[Result]:
        queries, keys, values = (_wide(x, backend) for x in tensors)
        output, scores = attention_mass(queries, keys, values, backend=backend)
        return [("output", output), ("scores", scores)]

    heads, key_heads, head_dim, num_queries, num_keys = shape
    return f"{heads} on {key_heads} heads of {head_dim}, {num_queries} queries, {num_keys} keys, {_name(dtype)}", run


def _differences(cases: list[Case]) -> Iterator[Difference]:
    """Of every case, also after one that fails."""
    for case, run in cases:
        try:
            found = run("triton")
        except Exception as error:  # whatever compilers, drivers and kernels raise is what this is to find
            yield Difference(case=case, problem=typed_line(error))
            continue
        for (result, ours), (_, exact) in zip(found, run("reference"), strict=True):
            # Everything is computed in float32 from the same rounded inputs: only a result's own rounding counts.
            tolerance = (GRADIENT_TOLERANCE if "gradient" in result else OUTPUT_TOLERANCE)[ours.dtype]
            yield Difference(case=case, result=result, error=relative_error(ours, exact), tolerance=tolerance)


def _wide(tensor: Tensor, backend: str) -> Tensor:
    return tensor.detach().double() if backend == "reference" else tensor.detach().clone()


def _like(grad: Tensor, output: Tensor) -> Tensor:
    return grad.to(output.dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
