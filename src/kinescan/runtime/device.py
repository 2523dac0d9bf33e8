import functools
import logging

import torch

from kinescan.errors import ConfigError
from kinescan.settings import closest

logger = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "mps", "cuda")
UNUSED = {"xpu": "Intel GPU", "npu": "Ascend NPU", "mtia": "MTIA"}
"""Accelerators that torch knows and this package was never tried on."""


def choose_device(device: str, *, setting: str = "train.device") -> torch.device:
    """The device that `TrainConfig.device` or a --device flag means.

    Args:
        device: its name, or "auto".
        setting: what it is given as, for errors.

    Raises:
        ConfigError: it is not there.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    kind = device.partition(":")[0]
    if kind in UNUSED:
        raise ConfigError(
            f"device {device!r}: kinescan was never tried on {UNUSED[kind]}s and does not use them. Allowed: "
            f"{', '.join(DEVICES)}."
        )
    if kind not in DEVICES:
        raise ConfigError(f"unknown device {device!r}. {closest(device, DEVICES)}")
    check_device(kind, setting=setting)
    if device != "auto":
        return torch.device(device)
    available = [name for name, there in _available().items() if there and name != "auto"]
    if available[-1] == "cpu":
        _say_what_is_not_used()
    return torch.device(available[-1])


@functools.cache
def _say_what_is_not_used() -> None:
    for kind in unused_devices():
        logger.warning(
            "this machine has an %s (%s), which kinescan does not use: computing on the CPU", UNUSED[kind], kind
        )


def widest_float(device: torch.device) -> torch.dtype:
    """The dtype in which sums are kept on a device: float64, where it has that.

    Example:
        >>> widest_float(torch.device("cpu")), widest_float(torch.device("mps"))
        (torch.float64, torch.float32)
    """
    return torch.float32 if device.type == "mps" else torch.float64


def unused_devices() -> list[str]:
    """Kinds of accelerators that are here and that this package does not compute on."""
    found = ((kind, getattr(torch, kind, None)) for kind in UNUSED)
    return [kind for kind, backend in found if backend is not None and backend.is_available()]


def _available() -> dict[str, bool]:
    """Devices from the slowest to the fastest."""
    return {"auto": True, "cpu": True, "mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available()}


def check_device(device: str, *, setting: str = "train.device") -> None:
    """Passes for a device that is here.

    Args:
        device: its kind.
        setting: what it is given as, for errors.

    Raises:
        ConfigError: it is not; the message says which are.
    """
    available = _available()
    if not available[device]:
        here = ", ".join(name for name, there in available.items() if there)
        raise ConfigError(f"{setting} {device!r} is not available here. Available: {here}.")
