from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from kinescan.layers.carried import named_tensors, shaped_like
from kinescan.layers.kinematic import KinematicState
from kinescan.models.still import StillState

PREVIOUS, STILL = "previous", "still"
_ROUTE = "class_tokens."


@dataclass
class PKS4State:
    """All that a causal model carries from frame to frame; its size does not depend on how many frames there were.

    Attributes:
        frames_seen: how many frames went in.
        class_tokens: for each index of the route, the tokens of the last two frames.
        kinematic: reduced frames of the kinematic prior encoder.
        previous: [B, 4, H, W], the last frame, and ones that say that there was one; None without `difference`.
        scanner: state of the scan of every patch, and its convolution's tail; of another scanner (see
            `PKS4.make_scanner`), what that one gives.
        average: [B, E], the running average of the frames' representations; None in a model that answers for frames.
        recent: what the average of a stream's last seconds has taken (see `kinescan.inference.stream_average`); the
            model neither reads nor writes it.
        still: what is kept of patches that stand still, with `PKS4.skip_unchanged`.

    Source: PKS4 (arXiv 2604.26461), eq. 1-25, in their causal form (docs/decisions).
    """

    frames_seen: int = 0
    class_tokens: dict[int, Tensor] = field(default_factory=dict)
    previous: Tensor | None = None
    kinematic: KinematicState | None = None
    scanner: Any = None
    average: Tensor | None = None
    recent: Tensor | None = None
    still: StillState | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state by name."""
        named: dict[str, Tensor | None] = {f"{_ROUTE}{k}": tokens for k, tokens in self.class_tokens.items()}
        named[PREVIOUS] = self.previous
        if self.kinematic is not None:
            named["kinematic.correlation"] = self.kinematic.correlation
            named["kinematic.variation"] = self.kinematic.variation
        named |= named_tensors(self.scanner, "scanner")
        named |= {} if self.still is None else self.still.tensors(STILL)
        named["average"], named["recent"] = self.average, self.recent
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "PKS4State":
        """The same state with other tensors, under the names that `tensors` gives."""
        scanner = shaped_like(self.scanner, tensors, "scanner")
        return PKS4State.from_tensors(tensors, self.frames_seen, scanner=scanner)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], frames_seen: int, *, scanner: Any = None) -> "PKS4State":
        """The inverse of `tensors`.

        Args:
            tensors: by name; those of the scanner are not looked at.
            frames_seen: how many frames went in.
            scanner: its state.
        """
        routes = {name: name.removeprefix(_ROUTE) for name in tensors if name.startswith(_ROUTE)}
        return cls(
            frames_seen=frames_seen,
            class_tokens={int(index): tensors[name] for name, index in routes.items()},
            previous=tensors.get(PREVIOUS),
            kinematic=KinematicState(tensors.get("kinematic.correlation"), tensors.get("kinematic.variation")),
            scanner=scanner,
            average=tensors.get("average"),
            recent=tensors.get("recent"),
            still=StillState.from_tensors(tensors, STILL),
        )

    @property
    def num_streams(self) -> int | None:
        """B, where a part of the state tells it."""
        kinematic = self.kinematic or KinematicState()
        parts = [*self.class_tokens.values(), self.previous, kinematic.correlation, kinematic.variation, self.average]
        return next((part.shape[0] for part in parts if part is not None), None)

    def num_bytes(self) -> int:
        """Memory of the state's tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())
