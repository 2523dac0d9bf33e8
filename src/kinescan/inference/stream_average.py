"""What a stream of a clip classifier remembers: the average of its scores over the last seconds."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from kinescan.errors import ConfigError
from kinescan.inference.exported import CausalModel
from kinescan.settings import closest

AverageKind = Literal["exponential", "sliding", "mean"]
"""How frames count: less and less with their age; the last seconds alike; or all since the start alike."""

DEFAULT_KIND: AverageKind = "exponential"
CLIP_FRACTIONS: dict[AverageKind, float] = {"exponential": 0.25, "sliding": 0.5}
"""Of a training clip: the seconds of an average by default (docs/benchmarks/stream_average.md)."""
MOST_FRAMES = 4096
"""That a sliding average holds."""


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """How a stream remembers and what is named of it, as `--set stream.NAME=VALUE` says it.

    Attributes:
        top: how many classes to name.
        average: "exponential", "sliding" or "mean"; None: see `choose_average`.
        average_seconds: how far the average reaches, in seconds; None: see `choose_average`.
    """

    top: int = 1
    average: AverageKind | None = None
    average_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class StreamAverage:
    """An average of logits over time; what it has taken is a part of the stream's state.

    It is computed in float64 whatever the model computes in: in bfloat16, small steps would be rounded away. Since the
    head is linear, it is the head's answer to the average of the frames' representations.

    Attributes:
        kind: how frames count.
        seconds: "exponential": the age at which a frame counts 1 / e of the newest one; "sliding": the age at which it
            no longer counts; infinite for "mean".
        counts_frames: ages are numbers of frames, since it is unknown how far apart these are.

    Example:
        >>> average, taken = StreamAverage(kind="sliding", seconds=2.0), None
        >>> for logit in (1.0, 2.0, 6.0):
        ...     logits, taken = average.push(torch.tensor([logit]), 1.0, taken)
        >>> logits
        tensor([4.])
    """

    kind: AverageKind
    seconds: float
    counts_frames: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(AverageKind):
            raise ConfigError(f"unknown average {self.kind!r}. {closest(str(self.kind), get_args(AverageKind))}")
        if isinstance(self.seconds, bool) or not isinstance(self.seconds, int | float) or not self.seconds > 0:
            raise ConfigError(f"average_seconds must be a positive number of seconds, got {self.seconds!r}.")
        if math.isinf(self.seconds) != (self.kind == "mean"):
            raise ConfigError('average_seconds belongs to "exponential" and "sliding" and must be finite.')

    def push(self, logits: Tensor, elapsed_seconds: float, taken: Tensor | None) -> tuple[Tensor, Tensor]:
        """Takes a frame.

        Args:
            logits: [K], of the frame by itself.
            elapsed_seconds: since the frame before; of the first one it does not matter.
            taken: what came back with the frame before; None at the start. What another kind of average took will do.

        Returns:
            The averaged logits, [K] float32, and what was taken, [n, K + 2] float64: sums of weighted logits, of
            weights, and ages.
        """
        own = torch.cat([logits.detach().cpu().double(), torch.tensor([1.0, 0.0], dtype=torch.float64)])[None]
        elapsed = 1.0 if self.counts_frames else elapsed_seconds
        if taken is None:
            taken = own[:0]
        if self.kind == "sliding":
            taken = taken[-MOST_FRAMES + 1 :].clone()
            taken[:, -1] += elapsed
            # a frame's distance from rounded clocks must not decide whether the last one counts
            taken = torch.cat([taken[taken[:, -1] < self.seconds - 1e-3 * elapsed], own])
        else:
            keep = math.exp(-elapsed / self.seconds)
            own[0, :-1] += keep * taken[:, :-1].sum(dim=0)
            taken = own
        sums = taken[:, :-1].sum(dim=0)
        return (sums[:-1] / sums[-1]).float(), taken


def choose_average(model: CausalModel, kind: AverageKind | None, seconds: float | None) -> StreamAverage | None:
    """The average of a stream; None where the model's own is to be taken, or it answers for every frame.

    By default the label follows a change within the length of a training clip; a model that was trained with
    `average="exponential"`, which forgets, keeps that.

    Args:
        model: of the stream.
        kind: None chooses.
        seconds: see `StreamAverage`; None chooses.

    Raises:
        ConfigError: kind or seconds are wrong, or the model answers for every frame.
    """
    if model.answers_frames:
        if kind is not None or seconds is not None:
            raise ConfigError(
                f"{model.name} answers for every frame, so that a stream has nothing to average. Leave average and "
                "average_seconds out; rules of events can smooth (smooth_seconds)."
            )
        return None
    if kind is None and seconds is None and model.config.average == "exponential":
        return None
    if kind == "mean":
        if seconds is not None:
            raise ConfigError('average="mean" takes all frames alike. Leave average_seconds out.')
        return None if model.config.average == "mean" else StreamAverage(kind="mean", seconds=math.inf)
    if seconds is not None:
        return StreamAverage(kind=kind or DEFAULT_KIND, seconds=seconds)
    num_frames, distance = model.preprocessing.num_frames, model.frame_seconds
    kind = kind or DEFAULT_KIND
    # an unknown kind is refused by name
    length = CLIP_FRACTIONS.get(kind, 1.0) * num_frames
    if distance is None:
        return StreamAverage(kind=kind, seconds=length, counts_frames=True)
    return StreamAverage(kind=kind, seconds=length * distance)
