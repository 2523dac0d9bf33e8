"""Models from clips to class logits, their weights, and the zoo that makes them by name.

Each name is loaded when it is first used.
"""

from typing import TYPE_CHECKING

from kinescan.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from kinescan.models.classifier import VideoClassifier
    from kinescan.models.pks4 import PKS4
    from kinescan.models.pks4_config import PKS4Config
    from kinescan.models.pks4_state import PKS4State
    from kinescan.models.registry import list_models, register_model
    from kinescan.models.videomamba.tuned import TunedVideoMamba
    from kinescan.models.videomamba.tuners.ssp import SSPConfig, SSPVideoMamba
    from kinescan.models.videomamba.videomamba import VideoMamba, VideoMambaConfig
    from kinescan.models.vit.vit import VisionTransformer
    from kinescan.models.vit.vit_config import ViTConfig
    from kinescan.models.weights.checkpoint_file import read_checkpoint
    from kinescan.models.weights.load_report import LoadReport
    from kinescan.models.zoo import create_model, from_pretrained

__all__ = [
    "PKS4",
    "LoadReport",
    "PKS4Config",
    "PKS4State",
    "SSPConfig",
    "SSPVideoMamba",
    "TunedVideoMamba",
    "ViTConfig",
    "VideoClassifier",
    "VideoMamba",
    "VideoMambaConfig",
    "VisionTransformer",
    "create_model",
    "from_pretrained",
    "list_models",
    "read_checkpoint",
    "register_model",
]

__getattr__ = lazy_names(
    __name__,
    {
        "kinescan.models.classifier": ["VideoClassifier"],
        "kinescan.models.pks4": ["PKS4", "PKS4Config", "PKS4State"],
        "kinescan.models.videomamba.tuned": ["TunedVideoMamba"],
        "kinescan.models.videomamba.tuners.ssp": ["SSPConfig", "SSPVideoMamba"],
        "kinescan.models.videomamba.videomamba": ["VideoMamba", "VideoMambaConfig"],
        "kinescan.models.vit.vit": ["VisionTransformer", "ViTConfig"],
        "kinescan.models.weights.load_report": ["LoadReport"],
        "kinescan.models.weights.checkpoint_file": ["read_checkpoint"],
        "kinescan.models.registry": ["list_models", "register_model"],
        "kinescan.models.zoo": ["create_model", "from_pretrained"],
    },
    ("catalog", "saving"),
)
