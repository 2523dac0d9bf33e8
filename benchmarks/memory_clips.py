"""What the benchmarks that train on clips in memory share: the clips, their task, and how a small VideoMamba starts."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinescan.data.loader import Batch
from kinescan.data.synthetic.motion import MotionConfig, render_motion
from kinescan.models.videomamba.videomamba import VideoMamba
from kinescan.training.optim import OptimConfig

BATCH = 16
STEP_SIZES = (0.01, 0.5)
MEAN, STD = 0.45, 0.225
"""Of `to_clips`, for each colour."""


class MemoryClips:
    """Clips in memory as a source for `fit`: pixels [n, T, 3, H, W] uint8, labels [n]."""

    def __init__(self, pixels: Tensor, labels: Tensor, *, num_classes: int, seed: int, batch_size: int = BATCH) -> None:
        self.pixels, self.labels, self.num_classes, self.seed = pixels, labels, num_classes, seed
        self.batch_size = batch_size
        self.num_batches = len(labels) // batch_size

    def path(self, item_index: int) -> str:
        return f"clip {item_index}"

    def batches(self, epoch: int, first_batch: int) -> Iterable[Batch]:
        generator = torch.Generator().manual_seed(1000 * self.seed + epoch)
        order = torch.randperm(len(self.labels), generator=generator)
        for index in range(first_batch, self.num_batches):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
            yield Batch(
                clips=to_clips(self.pixels[chosen]), labels=self.labels[chosen], item_indices=chosen, unreadable=[]
            )


def to_clips(pixels: Tensor) -> Tensor:
    return (pixels.float() / 255 - MEAN) / STD


def render_motion_pairs(
    config: MotionConfig, pairs: tuple[str, ...], split: Any, per_class: int, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Clips of each pair and the same backwards, which have the same frames; labels 2 k and 2 k + 1."""
    pixels, labels = [], []
    for k, pair in enumerate(pairs):
        for index in range(first, first + per_class):
            clip = render_motion(config, split, pair, index)
            pixels += [clip, clip.flip(0)]
            labels += [2 * k, 2 * k + 1]
    return torch.stack(pixels), torch.tensor(labels)


def of_one_kind(logits: Tensor, labels: Tensor, num_motions: int) -> Tensor:
    """Logits [B, K] with the looks shut out for a motion, and the motions, which are the first, for a look."""
    is_motion = torch.arange(logits.shape[1]) < num_motions
    return logits.masked_fill(is_motion != (labels < num_motions)[:, None], float("-inf"))


def two_kinds(logits: Tensor, labels: Tensor, num_motions: int) -> tuple[Tensor, Tensor]:
    """The task of a base's training: the mean loss, and which clips are right among classes of their kind."""
    logits = of_one_kind(logits, labels, num_motions)
    return F.cross_entropy(logits, labels), logits.argmax(dim=1) == labels


@torch.no_grad()
def start_like_mamba(model: VideoMamba) -> None:
    """Matrices as torch draws them, step sizes log-uniform in `STEP_SIZES`, positions that can be told apart."""
    for block in model.blocks:
        mixer = block.mixer
        for matrix in (mixer.in_proj, mixer.x_proj, mixer.x_proj_b):
            matrix.reset_parameters()
        for projection in (mixer.dt_proj, mixer.dt_proj_b):
            projection.weight.uniform_(-(mixer.dt_rank**-0.5), mixer.dt_rank**-0.5)
            low, high = (math.log(size) for size in STEP_SIZES)
            step_sizes = torch.exp(torch.empty(mixer.inner_width).uniform_(low, high))
            projection.bias.copy_(step_sizes + torch.log(-torch.expm1(-step_sizes)))  # inverse softplus
    for positions in (model.pos_embed, model.temporal_pos_embedding):
        nn.init.normal_(positions, std=0.2)


def optim(rate: float, epochs: int, *, batch: int = BATCH, warmup: float = 1.0) -> OptimConfig:
    return OptimConfig(
        lr=rate, lr_batch_size=batch, epochs=epochs, warmup_epochs=warmup, layer_decay=1.0, label_smoothing=0.0
    )
