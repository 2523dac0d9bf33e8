"""The one training loop, its optimizer settings and its checkpoints."""

from kinescan.training.engine import TrainConfig
from kinescan.training.loop import ClipSource, FitResult, fit
from kinescan.training.optim import OptimConfig

__all__ = ["ClipSource", "FitResult", "OptimConfig", "TrainConfig", "fit"]
