"""The one training loop, its optimizer settings and its checkpoints.

Each name is loaded when it is first used: settings alone need no loop.
"""

from typing import TYPE_CHECKING

from kinescan.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from kinescan.training.accelerator import TrainConfig
    from kinescan.training.callbacks import Callback
    from kinescan.training.clips import ClipSource
    from kinescan.training.loop import fit
    from kinescan.training.optim import OptimConfig
    from kinescan.training.result import FitResult

__all__ = ["Callback", "ClipSource", "FitResult", "OptimConfig", "TrainConfig", "fit"]

__getattr__ = lazy_names(
    __name__,
    {
        "kinescan.training.accelerator": ["TrainConfig"],
        "kinescan.training.callbacks": ["Callback"],
        "kinescan.training.clips": ["ClipSource"],
        "kinescan.training.loop": ["fit"],
        "kinescan.training.optim": ["OptimConfig"],
        "kinescan.training.result": ["FitResult"],
    },
)
