from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kinescan.errors import ConfigError
from kinescan.models.size_limits import check_at_most
from kinescan.models.videomamba.tuned import TunedVideoMamba, Tuner, join_frames, split_frames
from kinescan.models.videomamba.videomamba import VideoMambaConfig
from kinescan.settings import accept_old_names


@accept_old_names
@dataclass(frozen=True, kw_only=True)
class VPTConfig(VideoMambaConfig):
    """A frozen VideoMamba with learned tokens appended to every time step.

    Attributes:
        num_prompts: tokens of a time step.
        deep: prompts of its own before every block, which replace the previous block's outputs at these tokens; false:
            prompts before the first block only ("shallow").
    """

    num_prompts: int = 10
    deep: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_most(self, "num_prompts")
        if self.num_prompts < 1:
            raise ConfigError(
                f"num_prompts must be at least 1, got {self.num_prompts}. For no prompts take linear_probe_videomamba."
            )


class VisualPrompts(Tuner):
    """Learned tokens, the same for every clip.

    Args:
        config: of the model.

    Source: VPT (arXiv 2203.12119), eq. 4-7.
    Differs: the tokens stand after the patches of their time step, since in a scan the position matters.
    """

    def __init__(self, config: VPTConfig) -> None:
        super().__init__()
        self.config = config
        blocks = config.depth if config.deep else 1
        self.prompts = nn.Parameter(torch.empty(blocks, config.num_steps, config.num_prompts, config.width))
        nn.init.trunc_normal_(self.prompts, std=0.02)

    def begin(self, hidden: Tensor) -> Tensor:
        """[B, 1 + T * (N + P), W]: the first block's P prompts after the N patches of every time step."""
        class_token, frames = split_frames(hidden, self.config)
        return join_frames(class_token, self._with(frames, 0))

    def enter(self, index: int, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[B, 1 + T * (N + P), W]: the block's own prompts replace the previous block's outputs at its prompts."""
        if index == 0 or not self.config.deep:
            return hidden, residual
        assert residual is not None
        class_token, frames = split_frames(hidden, self.config)
        hidden = join_frames(class_token, self._with(frames[:, :, : self.config.num_patches], index))
        summed_class, sums = split_frames(residual, self.config)
        kept = sums[:, :, : self.config.num_patches]
        # The residual stream at the prompts becomes zero: the block sees its own prompts and nothing else there.
        return hidden, join_frames(summed_class, nn.functional.pad(kept, (0, 0, 0, self.config.num_prompts)))

    def _with(self, patches: Tensor, index: int) -> Tensor:
        prompts = self.prompts[index].to(patches.dtype).expand(patches.shape[0], -1, -1, -1)
        return torch.cat([patches, prompts], dim=2)


class VPTVideoMamba(TunedVideoMamba):
    """A frozen VideoMamba with visual prompts, deep or shallow."""

    config_class = VPTConfig
    config: VPTConfig

    def make_tuner(self) -> Tuner:
        """The prompts."""
        return VisualPrompts(self.config)
