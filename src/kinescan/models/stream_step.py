from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kinescan.errors import ConfigError
from kinescan.layers.carried import shaped_like
from kinescan.models.first_frame import after_a_frame
from kinescan.models.mode import evaluation_view
from kinescan.models.pks4 import PKS4
from kinescan.models.pks4_state import STILL, PKS4State
from kinescan.models.still import SkipUnchanged

FRAME, FIRST, LOGITS = "frame", "first", "logits"
_AVERAGE = "average"


@dataclass(frozen=True, kw_only=True)
class StateShape:
    """One tensor of a stream's state.

    Attributes:
        name: as in `PKS4State.tensors`.
        shape: of one stream, without the axis of streams.
        tracks: how many rows of the model's own tensor belong to one stream; 1 where it has one for each stream.
    """

    name: str
    shape: tuple[int, ...]
    tracks: int = 1

    def stacked(self, tensor: Tensor) -> Tensor:
        """The model's tensor [streams * tracks, ...] with an axis of its own for the streams."""
        return tensor if self.tracks == 1 else tensor.unflatten(0, (-1, self.tracks))

    def flat(self, tensor: Tensor) -> Tensor:
        """The inverse of `stacked`: [streams, tracks, ...] as [streams * tracks, ...]."""
        return tensor if self.tracks == 1 else tensor.flatten(0, 1)


def step_inputs(states: Sequence[StateShape], *, repeats_first: bool) -> tuple[str, ...]:
    """Names of what goes into a step, in order (see `StreamStep`)."""
    return (FRAME, *([FIRST] if repeats_first else []), *(state.name for state in states))


def step_outputs(states: Sequence[StateShape]) -> tuple[str, ...]:
    """Names of what comes out of a step, in order (see `StreamStep`)."""
    return (LOGITS, *(f"next.{state.name}" for state in states))


class StreamStep(nn.Module):
    """One step of a stream as a function of tensors: frame and state in, logits and the next state out.

    What an exported step holds, and what several streams of different age share. A stream starts with a state of zeros.
    The logits are those of `PKS4.stream_frames`: of the frame by itself, given those before it. The head is
    linear, so that who wants scores of several frames averages their logits.

    Args:
        model: a causal PKS4; it is used in evaluation mode and left as it is.
        skip_unchanged: of the streams; a step with it is not to be exported, as what it computes depends on the frame.

    Attributes:
        name: of the model.
        states: the tensors of the state, in order.
        inputs: names of what goes in, in order: "frame" [B, 3, H, W]; "first" [B], 1 for streams that see their first
            frame, else 0, only where frames before the first one repeat it (`border="replicate"`); then the state.
        outputs: "logits" [B, K], then the state, each tensor under "next." and its name.

    Raises:
        ConfigError: the model is not causal, or its state is not one for each stream.
    """

    def __init__(self, model: PKS4, *, skip_unchanged: SkipUnchanged | None = None) -> None:
        super().__init__()
        if not model.config.causal:
            raise ConfigError(
                f"{model.name} looks at future frames, so it has no step of a stream. Train it with causal = true "
                "(kinescan train --set model.options.causal=true)."
            )
        self.name = model.name
        self.model = evaluation_view(model)
        self.model.skip_unchanged = skip_unchanged
        self._example, self.states = _state_shapes(self.model)
        self.repeats_first = model.kinematic is not None and model.config.border == "replicate"
        self.inputs = step_inputs(self.states, repeats_first=self.repeats_first)
        self.outputs = step_outputs(self.states)

    def start(self, num_streams: int) -> list[Tensor]:
        """The state of streams before their first frame: zeros [num_streams, ...] for each of `states`."""
        return self._zeros(num_streams, self.states)

    def pack(self, state: PKS4State) -> list[Tensor]:
        """The tensors of one stream's state, [1, ...] each, as `forward` takes them."""
        if not state.frames_seen:
            return self.start(1)
        named = state.tensors()
        if state.still is None:  # the stream was begun without skipping what stands still
            own = [shape for shape in self.states if shape.name.startswith(f"{STILL}.")]
            named |= {shape.name: zeros for shape, zeros in zip(own, self._zeros(1, own), strict=True)}
        return [shape.stacked(named[shape.name]) for shape in self.states]

    def unpack(self, tensors: Sequence[Tensor], frames_seen: int) -> PKS4State:
        """The inverse of `pack`: tensors [1, ...] as a state after `frames_seen` frames."""
        named = {shape.name: shape.flat(tensor) for shape, tensor in zip(self.states, tensors, strict=True)}
        scanner = shaped_like(self._example, named, "scanner")
        return PKS4State.from_tensors(named, frames_seen, scanner=scanner)

    def _zeros(self, num_streams: int, states: Sequence[StateShape]) -> list[Tensor]:
        device = next(self.model.parameters()).device
        return [torch.zeros(num_streams, *state.shape, device=device) for state in states]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Logits [B, K] and the next state, in the order of `outputs`, of what `inputs` names."""
        given = dict(zip(self.inputs, inputs, strict=True))
        state = self.unpack([given[shape.name] for shape in self.states], 1)
        if self.repeats_first and state.kinematic is not None:
            state.kinematic.fresh = given[FIRST] > 0
        frames, after = self.model.represent(given[FRAME][:, None], state, keep_state=True)
        logits: Tensor = self.model.head(frames[:, 0])
        tensors = after.tensors()
        return (logits, *(shape.stacked(tensors[shape.name]) for shape in self.states))


def _state_shapes(model: PKS4) -> tuple[Any, tuple[StateShape, ...]]:
    """A scanner's state after a frame, and the shapes of the tensors of the model's whole state.

    Raises:
        ConfigError: a tensor does not have the same rows for each stream.
    """
    one, two = (after_a_frame(model, num_streams)[1].tensors() for num_streams in (1, 2))
    shapes = []
    for name, tensor in one.items():
        if name == _AVERAGE:
            continue
        if two[name].shape != (2 * tensor.shape[0], *tensor.shape[1:]):
            raise ConfigError(
                f"{model.name}: {name} of the state is {list(tensor.shape)} for one stream and "
                f"{list(two[name].shape)} for two. Give it the streams as its first axis (see PKS4.make_scanner)."
            )
        tracks = tensor.shape[0]
        shape = tuple(tensor.shape[1:]) if tracks == 1 else tuple(tensor.shape)
        shapes.append(StateShape(name=name, shape=shape, tracks=tracks))
    return after_a_frame(model)[1].scanner, tuple(shapes)
