"""Pure functions on tensors, each with a readable reference and fast backends of the same values and gradients."""

from kinescan.ops.local_correlation import local_correlation

__all__ = ["local_correlation"]
