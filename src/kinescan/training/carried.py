"""The state that goes from window to window of the same video while a causal model is trained."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kinescan.errors import CheckpointError, ConfigError
from kinescan.models.classifier import VideoClassifier
from kinescan.models.first_frame import after_a_frame
from kinescan.models.pks4 import PKS4
from kinescan.models.pks4_state import PKS4State

_TOLERANCE = 1e-4
"""Between a start with a state of zeros and one without a state."""
_FRESH = "fresh"
"""Rows that have had no frame yet, among the saved tensors; only where frames before the first one repeat it."""


class StatefulForward(nn.Module):
    """A causal model whose `forward` is its `forward_stream`: what is wrapped for devices and processes calls that.

    Args:
        model: the model itself.
    """

    def __init__(self, model: VideoClassifier) -> None:
        super().__init__()
        assert isinstance(model, PKS4)
        self.model = model

    def forward(self, clip: Tensor, state: PKS4State) -> tuple[Tensor, PKS4State]:
        """Logits [B, T, K], and the state after the last frame."""
        return self.model.forward_stream(clip, state)


class CarriedState:
    """The states of the rows of a batch; gradients stop between two windows.

    A row whose video begins has a state of zeros, which is what a model without a state starts from.

    Args:
        model: causal, with `output="frames"`.
        num_rows: rows of this process's batches.

    Raises:
        ConfigError: the model carries no state, does not answer for frames, or does not start from zeros.
    """

    def __init__(self, model: VideoClassifier, num_rows: int) -> None:
        if not isinstance(model, PKS4) or not model.config.causal or not model.answers_frames:
            raise ConfigError(
                f"train.carry_state needs a causal PKS4 that answers for frames, and {model.name} is none. Set "
                "model.options.causal = true, or train.carry_state = false: windows at random positions."
            )
        self._num_rows = num_rows
        _, self._example = after_a_frame(model)
        # Frames before the first one repeat it, so that zeros by themselves do not say where a row begins.
        self._repeats_first = model.kinematic is not None and model.config.border == "replicate"
        _check_zeros(model, self._example, repeats_first=self._repeats_first)
        self._tensors = {
            name: torch.zeros(num_rows * tensor.shape[0], *tensor.shape[1:], dtype=tensor.dtype, device=tensor.device)
            for name, tensor in self._example.tensors().items()
        }
        self._is_fresh = torch.ones(num_rows, dtype=torch.bool)

    def take(self, positions: Sequence[int] | None, starts: Sequence[bool], device: torch.device) -> PKS4State:
        """The state that a batch continues from.

        Args:
            positions: rows of the batch that are there; None: all of them.
            starts: of each of these, whether its video begins.
            device: where the batch is.
        """
        rows = list(range(self._num_rows)) if positions is None else list(positions)
        begun = {row for row, start in zip(rows, starts, strict=True) if start}
        starting = torch.tensor([row in begun for row in range(self._num_rows)])
        begins = starting.to(device, non_blocking=True)
        chosen_rows = torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)
        chosen = {}
        for name, tensor in self._tensors.items():
            by_row = tensor.to(device, non_blocking=True).unflatten(0, (self._num_rows, -1))
            mask = begins.view(-1, *[1] * (by_row.dim() - 1))
            chosen[name] = by_row.masked_fill(mask, 0)[chosen_rows].flatten(0, 1)
        state = self._example.with_tensors(chosen)
        if self._repeats_first and state.kinematic is not None:
            state.kinematic.fresh = (starting | self._is_fresh)[rows].to(device, non_blocking=True)
        return state

    def put(self, positions: Sequence[int] | None, state: PKS4State) -> None:
        """Keeps the state after a batch; rows that were not there begin anew, since a part of their video is missing.

        Args:
            positions: as for `take`.
            state: what the model gave.
        """
        self._is_fresh = torch.tensor([positions is not None and row not in positions for row in range(self._num_rows)])
        for name, tensor in state.tensors().items():
            after = tensor.detach()
            if positions is not None:
                by_row = after.unflatten(0, (len(positions), -1))
                whole = by_row.new_zeros(self._num_rows, *by_row.shape[1:])
                whole[torch.tensor(list(positions)).to(whole.device, non_blocking=True)] = by_row
                after = whole.flatten(0, 1)
            self._tensors[name] = after

    def forget(self) -> None:
        """All rows begin anew: the batch had no clip."""
        self._tensors = {name: torch.zeros_like(tensor) for name, tensor in self._tensors.items()}
        self._is_fresh = torch.ones(self._num_rows, dtype=torch.bool)

    def tensors(self) -> dict[str, Tensor]:
        """All states by name, on the CPU."""
        own = {name: tensor.cpu() for name, tensor in self._tensors.items()}
        return own | ({_FRESH: self._is_fresh} if self._repeats_first else {})

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up what `tensors` gave.

        Raises:
            CheckpointError: it belongs to another model or to another number of rows.
        """
        own = {name: tensor.shape for name, tensor in self.tensors().items()}
        if {name: tensor.shape for name, tensor in tensors.items()} != own:
            raise CheckpointError("the state that it carries belongs to another model or another batch size")
        self._tensors = {name: tensor.clone() for name, tensor in tensors.items() if name != _FRESH}
        if self._repeats_first:
            self._is_fresh = tensors[_FRESH].to(torch.bool)


def _check_zeros(model: PKS4, example: PKS4State, *, repeats_first: bool) -> None:
    """Passes where a state of zeros is the start, and its parts have an axis of streams first."""
    zeros = example.with_tensors({name: torch.zeros_like(tensor) for name, tensor in example.tensors().items()})
    if repeats_first and zeros.kinematic is not None:
        zeros.kinematic.fresh = torch.ones(1, dtype=torch.bool, device=model.device)
    logits, after = after_a_frame(model, state=zeros)
    fresh, plain = after_a_frame(model)
    pairs = [(logits, fresh), *zip(after.tensors().values(), plain.tensors().values(), strict=True)]
    if not all(torch.allclose(one, other, atol=_TOLERANCE, rtol=_TOLERANCE) for one, other in pairs):
        raise ConfigError(
            f"train.carry_state: {model.name} starts from another state than zeros. Let its scanner take zeros for "
            "the start, or set train.carry_state = false."
        )
    two = after_a_frame(model, 2)[1].tensors()
    if any(two[name].shape != (2 * tensor.shape[0], *tensor.shape[1:]) for name, tensor in example.tensors().items()):
        raise ConfigError(
            f"train.carry_state: a state of {model.name} does not grow with the number of videos on its first axis. "
            "Let its scanner keep the videos there, or set train.carry_state = false."
        )
