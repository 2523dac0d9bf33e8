"""Ways to tune a VideoMamba, to compare with state-space prompts: one file each."""

from kinescan.models.tuners.adapter import AdapterVideoMamba
from kinescan.models.tuners.full import FullVideoMamba
from kinescan.models.tuners.head_only import HeadOnlyVideoMamba
from kinescan.models.tuners.st_adapter import STAdapterVideoMamba
from kinescan.models.tuners.vpt import VPTVideoMamba

__all__ = ["AdapterVideoMamba", "FullVideoMamba", "HeadOnlyVideoMamba", "STAdapterVideoMamba", "VPTVideoMamba"]
