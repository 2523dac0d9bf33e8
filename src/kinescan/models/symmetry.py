"""Changes of a clip that change a model's answer in a known way, and answers that follow them exactly."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kinescan.errors import ConfigError
from kinescan.fields import check_types


@dataclass(frozen=True, kw_only=True)
class Symmetry:
    """A change of a clip, and what the changed clip shows.

    Attributes:
        classes: for each class, in the order of the logits, the class that the changed clip shows.
        mirrored: left and right are exchanged.
        reversed: the frames come in the opposite order.

    Raises:
        ConfigError: nothing is changed, a class is named twice, never, or does not exist, or the change made twice
            names another class than that of the clip itself.

    Example:
        >>> Symmetry(classes=(1, 0, 2), mirrored=True).reversed
        False
    """

    classes: tuple[int, ...]
    mirrored: bool = False
    reversed: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if not (self.mirrored or self.reversed):
            raise ConfigError("a symmetry changes a clip: mirrored or reversed must be true.")
        if sorted(self.classes) != list(range(len(self.classes))):
            raise ConfigError(f"classes must name each class from 0 to K - 1 once, got {list(self.classes)}.")
        for index, other in enumerate(self.classes):
            if self.classes[other] != index:
                raise ConfigError(
                    f"a change made twice gives the clip itself, but classes lead from {index} to {other} to "
                    f"{self.classes[other]}. Let each class name one that names it back."
                )

    def changed(self, clips: Tensor) -> Tensor:
        """Clips [B, T, 3, H, W] with the change."""
        return clips.flip([dim for dim, is_flipped in ((-1, self.mirrored), (1, self.reversed)) if is_flipped])


def check_symmetries(symmetries: Sequence[Symmetry], num_classes: int, *, answers_frames: bool) -> None:
    """Passes where they are those of a model of so many classes.

    Args:
        symmetries: of the model.
        num_classes: of the model.
        answers_frames: the model answers for every frame, whose answers are never averaged over changed clips.

    Raises:
        ConfigError: one names more or fewer classes, two change a clip alike, or the model answers for frames.
    """
    if symmetries and answers_frames:
        raise ConfigError(
            "symmetries are of models that answer for clips; this one answers for frames. Leave them out."
        )
    for one in symmetries:
        if len(one.classes) != num_classes:
            raise ConfigError(f"a symmetry names {len(one.classes)} classes, the model has {num_classes}.")
    if len({(one.mirrored, one.reversed) for one in symmetries}) < len(symmetries):
        raise ConfigError("two symmetries change a clip alike. Give each change once.")


def clip_logits(model: nn.Module, clips: Tensor, symmetries: Sequence[Symmetry]) -> Tensor:
    """[B, K] logits of clips [B, T, 3, H, W], float64 on the CPU; probabilities are averaged over the changed clips.

    Each changed clip is asked, too, and its answer counts for the classes that the clip itself then shows. Where the
    symmetries and the clip as it is are a group (mirrored, reversed, both), a changed clip gets exactly the changed
    answer. Without symmetries these are the model's logits.

    Args:
        model: answers for clips.
        clips: normalised.
        symmetries: of the model.
    """
    logits = model(clips).cpu().double()
    if not symmetries:
        return logits
    probabilities = logits.softmax(1)
    for one in symmetries:
        found = model(one.changed(clips)).cpu().double().softmax(1)
        probabilities = probabilities + found[:, list(one.classes)]
    total = probabilities / (len(symmetries) + 1)
    averaged = torch.where(total > 0, total, torch.finfo(total.dtype).tiny).log()
    # where a logit is not finite it stays so: whoever asks has to be told, and of that clip alone
    return torch.where(total.isfinite(), averaged, total)
