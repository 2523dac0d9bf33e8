"""Pure functions on tensors, each with a readable reference and fast backends of the same values and gradients."""

from kinescan.ops.attention_mass import attention_mass
from kinescan.ops.local_correlation import local_correlation
from kinescan.ops.selective_scan import selective_scan, selective_scan_step

__all__ = ["attention_mass", "local_correlation", "selective_scan", "selective_scan_step"]
