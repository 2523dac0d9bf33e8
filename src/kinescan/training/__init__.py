"""The one training loop, its optimizer settings and its checkpoints."""

from kinescan.training.accelerator import TrainConfig
from kinescan.training.callbacks import Callback
from kinescan.training.clips import ClipSource
from kinescan.training.loop import fit
from kinescan.training.optim import OptimConfig
from kinescan.training.result import FitResult

__all__ = ["Callback", "ClipSource", "FitResult", "OptimConfig", "TrainConfig", "fit"]
