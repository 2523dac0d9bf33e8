"""In which precision a model computes: the names, what a device has, and the block that computes so."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

import torch

from kinescan.errors import ConfigError

logger = logging.getLogger(__name__)

Autocast = Literal["no", "bf16", "fp16"]
"""As accelerate calls them: float32, or autocast to bfloat16 or float16."""
DTYPES: Mapping[Autocast, torch.dtype] = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Precision = Literal["float32", "tf32", "bf16", "fp16"]
"""As reports call them: "tf32" is float32 whose products are rounded to TF32 on NVIDIA GPUs since Ampere."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
AskedPrecision = Literal["auto", "float32", "tf32", "bf16", "fp16"]
"""What a setting may say; "auto" is the precision of the training."""


def precision_of(autocast: str, *, tf32: bool = False) -> Precision:
    """What reports call the precision of a training.

    Args:
        autocast: as accelerate calls it.
        tf32: whether float32 products were rounded to TF32.

    Example:
        >>> precision_of("bf16"), precision_of("no"), precision_of("no", tf32=True)
        ('bf16', 'float32', 'tf32')
    """
    if autocast == "bf16":
        return "bf16"
    if autocast == "fp16":
        return "fp16"
    return "tf32" if tf32 else "float32"


def choose_precision(asked: AskedPrecision, trained_in: Precision | None, device: torch.device) -> Precision:
    """The precision to evaluate in.

    Args:
        asked: of the user; "auto" for that of the training.
        trained_in: of the training; None where it is not known: float32.
        device: that the model computes on.

    Returns:
        What was asked for. With "auto", where this device cannot compute as the training did, float32; the log says so.

    Raises:
        ConfigError: the device cannot compute as asked.

    Example:
        >>> choose_precision("auto", "bf16", torch.device("cpu")), choose_precision("auto", None, torch.device("cpu"))
        ('bf16', 'float32')
    """
    wanted = (trained_in or "float32") if asked == "auto" else asked
    obstacle = _obstacle(wanted, device)
    if obstacle is None:
        return wanted
    if asked == "auto":
        logger.warning("the model was trained in %s, and %s: evaluated in float32", wanted, obstacle)
        return "float32"
    allowed = ", ".join(name for name in PRECISIONS if _obstacle(name, device) is None)
    raise ConfigError(f"precision {asked!r}: {obstacle}. Allowed on {device}: auto, {allowed}.")


def _obstacle(precision: Precision, device: torch.device) -> str | None:
    """Why a device does not compute so; None where it does. TF32 elsewhere is plain float32."""
    if precision == "fp16" and device.type not in ("cuda", "mps"):
        return f"float16 is for GPUs, and the device is {device}"
    # Before Ampere, CUDA emulates bfloat16, which is slower than float32.
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return f"{device} has no bfloat16"
    return None


@contextmanager
def computing_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Within the block, models on `device` compute in this precision.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> with computing_in("bf16", torch.device("cpu")):
        ...     layer(torch.zeros(1, 2)).dtype
        torch.bfloat16
    """
    with float32_products(tf32=precision == "tf32"):
        if precision == "bf16" or precision == "fp16":
            with torch.autocast(device.type, dtype=DTYPES[precision]):
                yield
        else:
            yield


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Float32 products of matrices and convolutions in TF32, where asked for; afterwards as before."""
    if not tf32:
        yield
        return
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
