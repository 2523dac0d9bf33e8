from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from kinescan.errors import ConfigError
from kinescan.fields import check_most
from kinescan.layers.bimamba import BidirectionalMamba, MixerChanges
from kinescan.models.size_limits import check_sizes
from kinescan.models.videomamba.tuned import TunedVideoMamba, Tuner
from kinescan.models.videomamba.videomamba import VideoMamba, VideoMambaConfig
from kinescan.settings import accept_old_names, closest

PROJECTIONS: dict[str, tuple[str, ...]] = {
    "in_proj": ("in_proj",),
    "x_proj": ("x_proj", "x_proj_b"),
    "out_proj": ("out_proj",),
}
"""What `targets` may name -> the projections of a block."""


@accept_old_names
@dataclass(frozen=True, kw_only=True)
class LoRAConfig(VideoMambaConfig):
    """A frozen VideoMamba with low-rank updates of its projections.

    Attributes:
        rank: of every update.
        scale: factor of the updates (alpha / rank in the papers); positive.
        targets: projections that get one: "in_proj", "x_proj" (to step sizes, write and read vectors, in both
            directions), "out_proj".
    """

    rank: int = 8
    scale: float = 1.0
    targets: tuple[str, ...] = ("in_proj", "x_proj", "out_proj")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "rank")
        check_most(self, scale=1e6)
        if not self.scale > 0:
            raise ConfigError(f"scale must be positive, got {self.scale}. 1.0 adds the updates as they are.")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ConfigError(f"targets must name at least one projection, each once, got {list(self.targets)}.")
        for target in self.targets:
            if target not in PROJECTIONS:
                raise ConfigError(f"targets: unknown projection {target!r}. {closest(target, PROJECTIONS)}")


class LowRankUpdate(nn.Module):
    """up(down(x)) * scale, beside a projection; nothing at the start.

    Args:
        projection: what it goes beside.
        rank: channels in between.
        scale: factor of the result.

    Source: LoRA (arXiv 2106.09685), section 4.1.
    """

    def __init__(self, projection: nn.Linear, *, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(projection.in_features, rank, bias=False)
        self.up = nn.Linear(rank, projection.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """What is added to the projection of tokens [..., in]: [..., out]."""
        out: Tensor = self.up(self.down(tokens)) * self.scale
        return out

    def weight(self) -> Tensor:
        """The same as a matrix [out, in], to be added to the projection's."""
        return self.scale * (self.up.weight @ self.down.weight)


class LowRankUpdates(Tuner):
    """One update for every projection that is named, in every block.

    Args:
        config: of the model.
        mixers: of the base, for the sizes of their projections.

    Source: Parameter Efficient Mamba Tuning (arXiv 2411.15224), section 3: what transfers is in the projections.
    Differs: plain low-rank updates, not the paper's diagonal-centric ones; `x_proj` is among them.
    """

    def __init__(self, config: LoRAConfig, mixers: list[BidirectionalMamba]) -> None:
        super().__init__()
        names = [name for target in config.targets for name in PROJECTIONS[target]]
        self.updates = nn.ModuleList(
            nn.ModuleDict(
                {name: LowRankUpdate(getattr(mixer, name), rank=config.rank, scale=config.scale) for name in names}
            )
            for mixer in mixers
        )

    def block(self, index: int) -> nn.ModuleDict:
        """The updates of block `index`, by the names of its projections."""
        updates = self.updates[index]
        assert isinstance(updates, nn.ModuleDict)
        return updates

    def inside(self, index: int) -> MixerChanges:
        """The block's updates, beside its projections."""
        return MixerChanges(**dict(self.block(index).items()))


class LoRAVideoMamba(TunedVideoMamba):
    """A frozen VideoMamba with low-rank updates of its projections, which can be merged into it.

    Example:
        >>> config = LoRAConfig(image_size=32, width=32, depth=2, num_frames=4, num_classes=5)
        >>> model = LoRAVideoMamba(config, name="lora_videomamba_tiny")
        >>> merged = model.merged()
        >>> merged.name, merged.num_parameters < model.num_parameters
        ('videomamba_tiny', True)
    """

    config_class = LoRAConfig
    config: LoRAConfig
    tuner: LowRankUpdates

    def make_tuner(self) -> Tuner:
        """Low-rank updates."""
        return LowRankUpdates(self.config, [block.mixer for block in self.blocks])

    @torch.no_grad()
    def merged(self) -> VideoMamba:
        """A plain VideoMamba with the updates added to its weights: the same logits without their cost.

        Returns:
            A model of its own, on this one's device, in its mode. Save it with `save_pretrained`: it needs no base.
        """
        own = {field.name for field in fields(VideoMambaConfig)}
        config = VideoMambaConfig(**{name: value for name, value in vars(self.config).items() if name in own})
        model = VideoMamba(
            config, name=self.name.removeprefix("lora_"), labels=self.labels, preprocessing=self.preprocessing
        )
        weights = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("tuner.")}
        for index in range(len(self.blocks)):
            for projection, update in self.tuner.block(index).items():
                assert isinstance(update, LowRankUpdate)
                name = f"layers.{index}.mixer.{projection}.weight"
                weights[name] = weights[name] + update.weight()
        model.to(self.device, self.cls_token.dtype).load_state_dict(weights)
        model.timing, model.num_clips, model.symmetries = self.timing, self.num_clips, self.symmetries
        return model.train(self.training)
