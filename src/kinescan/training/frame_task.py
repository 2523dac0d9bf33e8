"""What a model is trained to say of every frame."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kinescan.data.frame_labels import IGNORED

MOST_WEIGHT = 20.0
"""Of a frame: beyond it, a few frames would rule every step."""


@dataclass(frozen=True, kw_only=True)
class FrameTask:
    """Loss and accuracy of logits [B, T, K] for labels of every frame; frames labelled IGNORED count nothing.

    Attributes:
        overlapping: labels are [B, T, K] for a sigmoid each; otherwise [B, T], for a softmax with class 0 as
            background.
        label_smoothing: fraction of the target spread over all classes.
        event_weight: weight of a frame in which something happens.
        background_weight: weight of any other frame.
    """

    overlapping: bool = False
    label_smoothing: float = 0.0
    event_weight: float = 1.0
    background_weight: float = 1.0

    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The mean over clips of their frames' mean loss, and [B], the fraction of each clip's frames that is right.

        Args:
            logits: [B, T, K], float32.
            labels: [B, T], or [B, T, K].
        """
        counted = self._counted(labels)
        losses = self._losses(logits, labels)
        busy = (labels > 0).any(dim=2) if self.overlapping else labels > 0
        weights = torch.where(busy, self.event_weight, self.background_weight)
        per_clip = counted.sum(dim=1).clamp(min=1)
        loss = (losses * weights * counted).sum(dim=1) / per_clip
        right = (self._right(logits.detach(), labels) * counted).sum(dim=1) / per_clip
        return loss.mean(), right

    def tally(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[2, C] int64: how many frames of each class were right, and how many there were.

        Of overlapping classes, frames with and without a class are two: C = 2 K.
        """
        # Sums of masks: picking frames by a mask would wait for the device.
        counted = self._counted(labels)[..., None]
        if self.overlapping:
            kept, truth = logits > 0, labels > 0
            there = torch.cat([truth, ~truth], dim=2) & counted
            right = torch.cat([kept & truth, ~kept & ~truth], dim=2) & counted
        else:
            there = (labels[..., None] == torch.arange(logits.shape[2], device=labels.device)) & counted
            right = there & (logits.argmax(dim=2) == labels)[..., None]
        return torch.stack([right.sum((0, 1)), there.sum((0, 1))])

    def num_tallied(self, num_classes: int) -> int:
        """C of `tally`."""
        return 2 * num_classes if self.overlapping else num_classes

    def _counted(self, labels: Tensor) -> Tensor:
        """[B, T] bool."""
        return labels[..., 0] != IGNORED if self.overlapping else labels != IGNORED

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[B, T]."""
        if not self.overlapping:
            flat = F.cross_entropy(
                logits.flatten(0, 1),
                labels.flatten(),
                reduction="none",
                ignore_index=IGNORED,
                label_smoothing=self.label_smoothing,
            )
            return flat.view(labels.shape)
        smooth = labels.clamp(min=0) * (1 - self.label_smoothing) + self.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(dim=2)

    def _right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[B, T] float: whether a frame is right; of overlapping classes, how many of them."""
        if self.overlapping:
            return ((logits > 0) == (labels > 0)).float().mean(dim=2)
        return (logits.argmax(dim=2) == labels).float()


def balanced_weights(event_fraction: float, event_ratio: float) -> tuple[float, float]:
    """Weights of frames with an event and without, so that events weigh `event_ratio` of all.

    Args:
        event_fraction: of the frames.
        event_ratio: wanted, in (0, 1).

    Example:
        >>> balanced_weights(0.1, 0.5)
        (5.0, 0.5555555555555556)
        >>> balanced_weights(0.0, 0.5)
        (1.0, 1.0)
    """
    if not 0 < event_fraction < 1:
        return 1.0, 1.0
    weights = event_ratio / event_fraction, (1 - event_ratio) / (1 - event_fraction)
    return min(weights[0], MOST_WEIGHT), min(weights[1], MOST_WEIGHT)


def balanced_accuracy(sums: Sequence[float]) -> float:
    """The mean over classes that occur of the fraction of their frames that is right; `tally`, flattened."""
    half = len(sums) // 2
    recalls = [right / count for right, count in zip(sums[:half], sums[half:], strict=True) if count]
    return sum(recalls) / len(recalls) if recalls else 0.0
