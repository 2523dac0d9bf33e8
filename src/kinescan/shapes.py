"""The one vocabulary of axes and tensor types.

Axes:
    B clips, T frames (or steps), H W pixels or patch rows and columns, N = Hp * Wp patches of a frame,
    C channels of a map, W_ backbone width, E embedding width, K classes (or frame offsets, where said),
    R = B * N trajectories, D scanner width, S state size, L sequence length, Q queries, V views.
"""

from jaxtyping import Float, Int, UInt8
from torch import Tensor

Pixels = UInt8[Tensor, "T 3 H W"]
"""Decoded frames, RGB."""
Clip = Float[Tensor, "B T 3 H W"]
"""Frames as a model takes them, normalised."""
FrameIndices = Int[Tensor, "V T"]
"""Which frames of a video each view shows."""
Tokens = Float[Tensor, "B T N W_"]
"""Patch tokens of every frame."""
ClassTokens = Float[Tensor, "B T W_"]
"""One class token a frame."""
FrameTokens = Float[Tensor, "F N W_"]
"""Tokens of frames folded into the batch, F = B * T; the class token first where there is one."""
FrameMaps = Float[Tensor, "B T C H W"]
"""Feature maps of every frame."""
CorrelationMaps = Float[Tensor, "B T K M H W"]
"""For each of K frame offsets, M = window * window similarities at each patch."""
Tracks = Float[Tensor, "R T D"]
"""One sequence over time for every trajectory."""
TrackMatrix = Float[Tensor, "R T S"]
"""Input-dependent write (B) or read (C) vectors of the scan."""
State = Float[Tensor, "R D S"]
"""The scan's state."""
Logits = Float[Tensor, "B K"]
"""Scores before softmax."""
FrameLogits = Float[Tensor, "B T K"]
"""Scores of every frame, before softmax or sigmoid."""

BACKGROUND = "background"
"""Class 0 along K where every frame has one class: nothing happens."""
