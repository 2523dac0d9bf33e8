import torch

from kinescan.errors import ConfigError
from kinescan.settings import closest

DEVICES = ("auto", "cpu", "mps", "cuda")


def choose_device(device: str) -> torch.device:
    """The device that `TrainConfig.device` or a --device flag means.

    Raises:
        ConfigError: it is not there.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    kind = device.partition(":")[0]
    if kind not in DEVICES:
        raise ConfigError(f"unknown device {device!r}. {closest(device, DEVICES)}")
    check_device(kind)
    if device != "auto":
        return torch.device(device)
    available = [name for name, there in _available().items() if there and name != "auto"]
    return torch.device(available[-1])


def _available() -> dict[str, bool]:
    """Devices from the slowest to the fastest."""
    return {"auto": True, "cpu": True, "mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available()}


def check_device(device: str) -> None:
    """Passes for a device that is here.

    Raises:
        ConfigError: it is not; the message says which are.
    """
    available = _available()
    if not available[device]:
        here = ", ".join(name for name, there in available.items() if there)
        raise ConfigError(f"train.device {device!r} is not available here. Available: {here}.")
