from typing import Literal

import torch
from torch import Tensor

AverageKind = Literal["mean", "exponential"]


def running_average(
    frames: Tensor, average: Tensor | None, frames_seen: int, *, kind: AverageKind, rate: float
) -> Tensor:
    """The average after each frame, in float32 at least: in bfloat16, steps of 1 / t are soon rounded away.

    Args:
        frames: [B, T, E], the next ones.
        average: [B, E], that of the frames before; None at the start.
        frames_seen: how many these were.
        kind: "mean" of all frames, or "exponential".
        rate: weight of the newest frame, for "exponential".

    Returns:
        [B, T, E].

    Example:
        >>> running_average(torch.tensor([[[1.0], [3.0]]]), None, 0, kind="mean", rate=0.1).flatten().tolist()
        [1.0, 2.0]
    """
    averages = []
    wide = frames.to(torch.promote_types(frames.dtype, torch.float32))
    for t, frame in enumerate(wide.unbind(dim=1), start=frames_seen + 1):
        if average is None:
            average = frame
        else:
            average = average + (frame - average) * (rate if kind == "exponential" else 1.0 / t)
        averages.append(average)
    return torch.stack(averages, dim=1)
