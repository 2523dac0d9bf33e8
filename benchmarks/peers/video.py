"""What the video peers share: an image ViT that is loaded as PKS4's is, and a head on one embedding."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from kinescan.errors import ConfigError
from kinescan.models.classifier import VideoClassifier
from kinescan.models.vit.vit import VisionTransformer
from kinescan.models.vit.vit_config import ViTConfig
from kinescan.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True)
class PeerConfig(ViTConfig):
    """An image ViT made a video model.

    Attributes:
        num_classes: of the head.
        num_frames: of a clip; embeddings of time are learned for each.
    """

    num_classes: int = 400
    num_frames: int = 8


class VideoPeer(VideoClassifier):
    """A classifier on the ViT `vit`, whose weights load under PKS4's names; subclasses write `forward`."""

    config_class = PeerConfig
    config: PeerConfig

    def __init__(
        self,
        config: PeerConfig,
        *,
        name: str,
        labels: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        if config.num_registers:
            raise ConfigError("the peers take no registers: set num_registers = 0.")
        if preprocessing is None:
            preprocessing = Preprocessing(size=config.image_size, num_frames=config.num_frames)
        super().__init__(config, name=name, labels=labels, preprocessing=preprocessing)
        self.vit = VisionTransformer(config)
        self.head = nn.Linear(config.embed_dim or config.width, config.num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    @property
    def num_layers(self) -> int:
        return self.vit.num_layers

    def layer_depths(self) -> dict[str, int]:
        return self.vit.layer_depths(prefix="vit.")
