import importlib.util
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, get_args

import torch
from torch import Tensor

from kinescan.data.video import probe_decoders
from kinescan.errors import BackendError
from kinescan.ops import attention_mass, local_correlation, selective_scan
from kinescan.profiling.environment import describe_environment
from kinescan.runs.gpu_check import LastGpuCheck, last_gpu_check
from kinescan.runtime.backend_names import Backend
from kinescan.runtime.device import unused_devices
from kinescan.runtime.error_text import typed_line

OPTIONAL = (
    "transformers",
    "onnx",
    "onnxruntime",
    "openvino",
    "torchvision",
    "torchcodec",
    "triton",
    "tensorboard",
    "wandb",
)
TOLERANCE = 1e-4
SECONDS_TO_IMPORT = 120


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was tried.

    Attributes:
        what: such as "selective_scan on cpu with numba".
        works: whether it did.
        note: why not, or what was seen.
        difference: largest difference from the reference's result; None where there is no result.
    """

    what: str
    works: bool
    note: str = ""
    difference: float | None = None


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What works on this machine.

    Attributes:
        environment: versions, hardware, commit.
        optional: version of each optional package, or None where it is not installed.
        devices: kinds of devices that are used.
        unused_devices: kinds that are here, which this package was never tried on and does not use, such as "xpu".
        backends: every op with every backend on every device: tried out, and compared with the reference.
        decoders: what can decode videos.
        gpu_check: what the last check of a GPU found.
        problems: what should be repaired, each with how; empty when all is well.
    """

    environment: dict[str, Any]
    optional: dict[str, str | None]
    devices: tuple[str, ...]
    unused_devices: tuple[str, ...]
    backends: tuple[Finding, ...]
    decoders: dict[str, Any]
    gpu_check: LastGpuCheck
    problems: tuple[str, ...]


def diagnose() -> Diagnosis:
    """Tries out what this package needs here; takes a few seconds and changes nothing."""
    devices = ["cpu"]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    devices += ["cuda"] if torch.cuda.is_available() else []
    tried = [
        _try(name, op, device, backend)
        for name, op in (("selective_scan", _scan), ("local_correlation", _correlation), ("attention_mass", _attention))
        for device in devices
        for backend in get_args(Backend)
    ]
    backends = [found for found in tried if found is not None]
    wrong = [f"{found.what}: {found.note}" for found in backends if not found.works and found.difference is not None]
    checked = last_gpu_check()
    # A check of another device or version is told, and is nothing to repair here.
    failed = [] if checked.changed else [f"GPU check: {problem}" for problem in checked.problems]
    return Diagnosis(
        environment=asdict(describe_environment()),
        optional={name: _version(name) for name in OPTIONAL},
        devices=tuple(devices),
        unused_devices=tuple(unused_devices()),
        backends=tuple(backends),
        decoders=probe_decoders(),
        gpu_check=checked,
        problems=tuple(wrong + broken_torchvision() + failed),
    )


def _try(name: str, op: Callable[[str, Backend], Tensor], device: str, backend: Backend) -> Finding | None:
    """What came of it; None where the op has no such backend."""
    what = f"{name} on {device} with {backend}"
    try:
        result = op(device, backend).cpu()
    except BackendError as error:
        return Finding(what=what, works=False, note=error.reason) if error.is_offered else None
    except Exception as error:  # what a broken compiler, driver or package raises is what this is to find
        return Finding(what=what, works=False, note=typed_line(error))
    difference = (result - op("cpu", "reference")).abs().max().item()
    if not difference <= TOLERANCE:
        note = f"differs from the reference by {difference:.1e}"
        return Finding(what=what, works=False, note=note, difference=difference)
    note = f"largest difference from the reference {difference:.1e}"
    return Finding(what=what, works=True, note=note, difference=difference)


def _scan(device: str, backend: Backend) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    tracks, steps, width, states = 3, 5, 16, 16
    u, delta = (torch.randn(tracks, steps, width, generator=generator).to(device) for _ in range(2))
    write, read = (torch.randn(tracks, steps, states, generator=generator).to(device) for _ in range(2))
    decay = -torch.rand(width, states, generator=generator).to(device)
    y, _ = selective_scan(u, delta, decay, write, read, backend=backend)
    return y


def _correlation(device: str, backend: Backend) -> Tensor:
    features = torch.randn(1, 3, 8, 6, 6, generator=torch.Generator().manual_seed(0)).to(device)
    return local_correlation(features, window=5, backend=backend)


def _attention(device: str, backend: Backend) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(1, 4, 3, 16, generator=generator).to(device)
    keys, values = (torch.randn(1, 2, 9, 16, generator=generator).to(device) for _ in range(2))
    _, scores = attention_mass(queries, keys, values, backend=backend)
    return scores


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def broken_torchvision() -> list[str]:
    """A torchvision that does not load, with how to repair it: transformers imports it wherever it is installed."""
    if importlib.util.find_spec("torchvision") is None:
        return []
    tried = _import_apart("import torchvision")
    if tried is None:
        return []
    breaks = ""
    if find_transformers() and _import_apart("from transformers import CLIPModel"):
        breaks = ", and transformers cannot import its models while it is there"
    return [
        f"torchvision {_version('torchvision')} does not load beside torch {torch.__version__}{breaks} ({tried}). "
        "kinescan does not need it: pip uninstall torchvision, or install the build that matches this torch."
    ]


def find_transformers() -> bool:
    """Whether transformers is installed; it is not imported."""
    return importlib.util.find_spec("transformers") is not None


def _import_apart(statement: str) -> str | None:
    """The last line of what an import says when it fails in a process of its own; None when it works."""
    try:
        run = subprocess.run(
            [sys.executable, "-c", statement], capture_output=True, text=True, timeout=SECONDS_TO_IMPORT, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {SECONDS_TO_IMPORT} s"
    lines = run.stderr.strip().splitlines() or [f"exit code {run.returncode}"]
    return None if run.returncode == 0 else lines[-1]
