"""Frames of whole videos, decided with what comes before and after each of them: for files, not for streams."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kinescan.errors import ConfigError
from kinescan.events.detector import Event, EventUpdate, stream_id_of
from kinescan.events.predictions import FramePredictions, runs_of
from kinescan.fields import check_types
from kinescan.shapes import BACKGROUND

_LEAST = 1e-6
"""No score is less: one frame that is sure and wrong must not forbid a class."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DecodingRules:
    """What `decode_frames` assumes of time.

    Attributes:
        mean_seconds: how long a class lasts on average before it changes.
        correlation_seconds: frames within this time count as one: neighbours show nearly the same, and are wrong
            together. 0 counts each frame in full.

    Raises:
        ConfigError: mean_seconds is not above 0, or a time is negative or not finite.

    Example:
        >>> DecodingRules(mean_seconds=4.0).correlation_seconds
        0.25
    """

    mean_seconds: float = 2.0
    correlation_seconds: float = 0.25

    def __post_init__(self) -> None:
        check_types(self)
        if not (math.isfinite(self.mean_seconds) and self.mean_seconds > 0):
            raise ConfigError(f"decoding.mean_seconds must be more than 0 seconds, got {self.mean_seconds}.")
        if not (math.isfinite(self.correlation_seconds) and self.correlation_seconds >= 0):
            raise ConfigError(
                f"decoding.correlation_seconds must be a number of seconds, 0 or more, got {self.correlation_seconds}."
            )


def decode_frames(predictions: FramePredictions, rules: DecodingRules | None = None) -> FramePredictions:
    """The probability of each class at each frame, given the scores of all frames of the video.

    Scores of single frames flicker; classes last. The forward-backward algorithm of a hidden Markov model puts both
    together. Its states are the classes (of classes that may overlap, each has a model of its own, with the states
    there and not there). Between frames d seconds apart a state changes with the probability 1 - exp(-d /
    `mean_seconds`), to each of the others alike. The scores are what is observed, to the power of
    min(1, d / `correlation_seconds`). What comes later counts, too, so that a stream cannot do this.

    Args:
        predictions: of a whole video, in the order of time; time and memory grow linearly with its frames.
        rules: times.

    Returns:
        The same frames with other scores, [T, K] float32; of classes of which one is there, they add up to 1.

    Source: Rabiner, A Tutorial on Hidden Markov Models (1989), eqs. 19 to 27.
    Differs: scores take the place of likelihoods, without dividing by the classes' frequencies (training balances
        them), and the exponent, as speech recognisers weigh their acoustic scores.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]], dtype=np.float32)
        >>> found = decode_frames(FramePredictions(video_id="a", seconds=np.arange(5) / 2, scores=scores,
        ...                                        classes=("background", "fall"), end_seconds=2.5))
        >>> found.scores.argmax(axis=1).tolist()
        [0, 1, 1, 1, 1]
    """
    rules = rules or DecodingRules()
    scores = np.maximum(predictions.scores.astype(np.float64), _LEAST)
    if not len(scores):
        return predictions
    distances = np.diff(predictions.seconds)
    usual = float(np.median(distances)) if distances.any() else math.inf
    weights = _weights(np.concatenate([[usual], distances]), rules.correlation_seconds)[:, None]
    changes = -np.expm1(-distances / rules.mean_seconds)
    if predictions.has_background:
        found = _posterior((scores**weights)[:, None], changes)[:, 0]
    else:
        absent = np.maximum(1 - scores, _LEAST)
        found = _posterior(np.stack([absent**weights, scores**weights], axis=2), changes)[..., 1]
    return replace(predictions, scores=found.astype(np.float32))


def _weights(distances: Floats, correlation_seconds: float) -> Floats:
    """How much each frame counts, [T], in [0, 1]; a frame at the time of the one before counts nothing."""
    if not correlation_seconds:
        return np.ones(len(distances))
    return np.minimum(1.0, distances / correlation_seconds)


def _posterior(observed: Floats, changes: Floats) -> Floats:
    """Probabilities of the states given all frames.

    Args:
        observed: [T, chains, states], more than 0: how well each frame fits each state.
        changes: [T - 1], the probability of a change between neighbouring frames.

    Returns:
        [T, chains, states].
    """
    forward, others = np.empty_like(observed), max(1, observed.shape[2] - 1)
    state = np.full(observed.shape[1:], 1 / observed.shape[2])
    for index, frame in enumerate(observed):
        if index:
            state = _changed(state, changes[index - 1], others)
        state = state * frame
        state = state / state.sum(axis=1, keepdims=True)
        forward[index] = state
    later = np.ones(observed.shape[1:])
    for index in range(len(observed) - 2, -1, -1):
        later = _changed(later * observed[index + 1], changes[index], others)
        later = later / later.sum(axis=1, keepdims=True)
        both = forward[index] * later
        forward[index] = both / both.sum(axis=1, keepdims=True)
    return forward


def _changed(state: Floats, change: float, others: int) -> Floats:
    """[chains, states] after a step in which a state stays, or becomes each of the others alike."""
    return (1 - change) * state + change / others * (state.sum(axis=1, keepdims=True) - state)


def decode_events(predictions: FramePredictions, rules: DecodingRules | None = None) -> list[EventUpdate]:
    """What happens in a whole video, each frame decided with all others: ends of events, in the order of their starts.

    A frame has the class that is likeliest of it (`decode_frames`), of classes that may overlap each that is likelier
    there than not; an event is a run of frames of a class, background left out. It ends at the first frame of another
    class, or with the video.

    Args:
        predictions: of one video.
        rules: times.

    Returns:
        Updates that are told at the end of the video; ids are the same in every call.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]], dtype=np.float32)
        >>> predictions = FramePredictions(video_id="a", seconds=np.arange(5) / 2, scores=scores,
        ...                                classes=("background", "fall"), end_seconds=2.5)
        >>> [(one.event.label, one.event.start_seconds, one.event.end_seconds) for one in decode_events(predictions)]
        [('fall', 0.5, 2.5)]
    """
    decoded = decode_frames(predictions, rules)
    stream_id = stream_id_of(predictions.video_id)
    told_at = max(predictions.end_seconds, *decoded.seconds[-1:].tolist(), 0.0)
    edges = [*decoded.seconds.tolist(), told_at]
    found = [
        (edges[first], decoded.classes[column], edges[behind], decoded.scores[first:behind, column])
        for column, first, behind in _runs(decoded)
    ]
    return [
        EventUpdate(
            kind="end",
            event=Event(
                id=f"{stream_id}-{number}",
                label=label,
                start_seconds=start,
                end_seconds=end,
                peak_score=float(scores.max()),
                mean_score=float(scores.mean()),
            ),
            told_at_seconds=told_at,
        )
        for number, (start, label, end, scores) in enumerate(sorted(found, key=lambda one: one[:3]), 1)
    ]


def _runs(decoded: FramePredictions) -> Iterator[tuple[int, int, int]]:
    """Class, first frame and the frame behind the last one, of every run of frames of a class."""
    if decoded.has_background:
        there = decoded.scores.argmax(axis=1)[:, None] == np.arange(len(decoded.classes))
    else:
        there = decoded.scores > 0.5
    for column, label in enumerate(decoded.classes):
        if label == BACKGROUND:
            continue
        for first, behind in zip(*(edges.tolist() for edges in runs_of(there[:, column])), strict=True):
            yield column, first, behind
