"""Ways to tune a VideoMamba, to compare with state-space prompts: one file each."""

import warnings

from kinescan.models.videomamba.tuners.adapter import AdapterVideoMamba
from kinescan.models.videomamba.tuners.full import FullVideoMamba
from kinescan.models.videomamba.tuners.linear_probe import LinearProbeVideoMamba
from kinescan.models.videomamba.tuners.lora import LoRAVideoMamba
from kinescan.models.videomamba.tuners.st_adapter import STAdapterVideoMamba
from kinescan.models.videomamba.tuners.state_offset import StateOffsetVideoMamba
from kinescan.models.videomamba.tuners.vpt import VPTVideoMamba

__all__ = [
    "AdapterVideoMamba",
    "FullVideoMamba",
    "LinearProbeVideoMamba",
    "LoRAVideoMamba",
    "STAdapterVideoMamba",
    "StateOffsetVideoMamba",
    "VPTVideoMamba",
]


def __getattr__(name: str) -> object:
    if name == "HeadOnlyVideoMamba":
        warnings.warn("HeadOnlyVideoMamba is deprecated. Use LinearProbeVideoMamba.", DeprecationWarning, stacklevel=2)
        return LinearProbeVideoMamba
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
