"""Ways to tune a VideoMamba, to compare with state-space prompts: one file each."""

from kinescan.models.videomamba.tuners.adapter import AdapterVideoMamba
from kinescan.models.videomamba.tuners.full import FullVideoMamba
from kinescan.models.videomamba.tuners.head_only import HeadOnlyVideoMamba
from kinescan.models.videomamba.tuners.st_adapter import STAdapterVideoMamba
from kinescan.models.videomamba.tuners.vpt import VPTVideoMamba

__all__ = ["AdapterVideoMamba", "FullVideoMamba", "HeadOnlyVideoMamba", "STAdapterVideoMamba", "VPTVideoMamba"]
