from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kinescan.errors import ConfigError
from kinescan.layers.prompts import (
    ImportanceScope,
    IntraFrameGathering,
    PromptAttention,
    check_heads,
    frame_importance,
)
from kinescan.models.size_limits import check_at_most, check_sizes
from kinescan.models.videomamba.tuned import TunedVideoMamba, Tuner, join_frames, split_frames
from kinescan.models.videomamba.videomamba import VideoMambaConfig
from kinescan.settings import accept_old_names


@accept_old_names
@dataclass(frozen=True, kw_only=True)
class SSPConfig(VideoMambaConfig):
    """A frozen VideoMamba tuned by state-space prompts.

    Attributes:
        num_prompts: tokens appended to every time step.
        inner_width: channels inside intra-frame gathering.
        attention_width: channels inside the attention over frames; a multiple of attention_heads.
        attention_heads: heads of that attention.
        importance_scope: where a frame's entropy is compared: "sample" within its clip, so that results do not depend
            on the clips beside it; "batch" as in the published code.

    Source: SSP (arXiv 2510.12160), section 3.
    """

    num_prompts: int = 3
    inner_width: int = 384
    attention_width: int = 256
    attention_heads: int = 8
    importance_scope: ImportanceScope = "sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_most(self, "num_prompts", "attention_width", "attention_heads")
        if self.num_prompts < 1:
            raise ConfigError(
                f"num_prompts must be at least 1, got {self.num_prompts}: without prompts nothing spreads between "
                "frames. For the bare base take a videomamba or linear_probe_videomamba model."
            )
        check_sizes(self, "inner_width")
        check_heads(self.attention_width, self.attention_heads)


class StateSpacePrompts(Tuner):
    """Prompts that gather what is in a frame and spread it between frames, before every block.

    Args:
        config: of the model.

    Source: SSP (arXiv 2510.12160), section 3.
    Differs: `importance_scope`; parameter names are those of the published code.
    """

    def __init__(self, config: SSPConfig) -> None:
        super().__init__()
        self.config = config
        self.inner_prompt = IntraFrameGathering(config.width, config.inner_width, grid=config.grid)
        self.dynamic_scales = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in range(config.depth - 1))
        self.prompt_attentions = nn.ModuleList(
            PromptAttention(config.width, config.attention_width, heads=config.attention_heads)
            for _ in range(config.num_prompts)
        )

    def begin(self, hidden: Tensor) -> Tensor:
        """[B, 1 + T * (N + P), W]: zeros for the P prompts after the N patches of every time step."""
        class_token, frames = split_frames(hidden, self.config)
        return join_frames(class_token, nn.functional.pad(frames, (0, 0, 0, self.config.num_prompts)))

    def enter(self, index: int, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Adds what is gathered within frames; from the second block on, what spreads between frames becomes prompts.

        Sequences are [B, 1 + T * (N + P), W]; else as in `Tuner.enter`.
        """
        class_token, frames = split_frames(hidden, self.config)
        patches, prompts = frames.tensor_split([self.config.num_patches], dim=2)
        gathered, gate = self.inner_prompt(patches)
        if index > 0:
            weights = frame_importance(gathered, scope=self.config.importance_scope)
            scaled = self.dynamic_scales[index - 1] * weights[:, :, None]
            summary = patches[:, :, -1] * (1 + scaled).to(patches.dtype)  # [B, T, W], the last patch seen
            prompts = torch.stack([attention(summary) * gate for attention in self.prompt_attentions], dim=2)
        frames = torch.cat([patches + gathered, prompts.to(patches.dtype)], dim=2)
        return join_frames(class_token, frames), residual


class SSPVideoMamba(TunedVideoMamba):
    """A frozen VideoMamba with state-space prompts: 2.4 million parameters are trained of 76.

    Args are those of `VideoClassifier`: config, name, labels and preprocessing.

    Source: SSP (arXiv 2510.12160).

    Example:
        >>> config = SSPConfig(image_size=32, width=32, depth=2, num_frames=4, num_classes=5)
        >>> model = SSPVideoMamba(config, name="ssp_videomamba_tiny")
        >>> model(torch.zeros(1, 4, 3, 32, 32)).shape, model.cls_token.requires_grad
        (torch.Size([1, 5]), False)
    """

    config_class = SSPConfig
    config: SSPConfig

    def make_tuner(self) -> Tuner:
        """State-space prompts."""
        return StateSpacePrompts(self.config)
