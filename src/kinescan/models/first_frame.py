"""A causal model after one frame: what its state looks like, and whether it starts from zeros."""

from typing import Any

import torch
from torch import Tensor

from kinescan.models.classifier import VideoClassifier
from kinescan.models.mode import evaluation_view
from kinescan.models.pks4_state import PKS4State


def after_a_frame(
    model: VideoClassifier, num_streams: int = 1, state: PKS4State | None = None
) -> tuple[Tensor, PKS4State]:
    """What a model in evaluation mode gives for one frame, the same for all streams, and the state after it.

    Every tensor of the state has the size that it keeps for the rest of the stream.

    Args:
        model: a causal `PKS4`, or an exported step of one.
        num_streams: how many streams take the frame.
        state: of these streams before the frame; None at their start.

    Returns:
        Logits [streams, 1, K] and the state, without gradients.
    """
    size, dtype = model.preprocessing.size, next((one.dtype for one in model.parameters()), torch.float32)
    frame = torch.linspace(-1, 1, 3 * size * size, device=model.device, dtype=dtype).view(1, 1, 3, size, size)
    streams: Any = evaluation_view(model)
    with torch.no_grad():
        logits, after = streams.forward_stream(frame.expand(num_streams, -1, -1, -1, -1), state)
    return logits, after
