"""Frames of several streams through one model at once."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from kinescan.errors import KinescanError
from kinescan.inference.exported import CausalModel, ExportedStep
from kinescan.inference.stream import StreamPrediction, StreamSession
from kinescan.inference.turns import Turn
from kinescan.layers.running_average import running_average
from kinescan.models.pks4 import PKS4
from kinescan.models.pks4_state import PKS4State
from kinescan.models.still import SkipUnchanged
from kinescan.models.stream_step import StreamStep

T = TypeVar("T")


class StreamBatch:
    """Feeds a frame of each of several sessions to the model that they share, in one pass.

    Streams may be of any age, and each pass may be of other sessions. Predictions and states are those that
    `StreamSession.push` gives, up to rounding. An exported step with a fixed number of streams takes so many
    at once, filled up with zeros.

    Args:
        model: of every session.
        skip_unchanged: of every session.
    """

    def __init__(self, model: CausalModel, *, skip_unchanged: SkipUnchanged | None = None) -> None:
        self._step = StreamStep(model, skip_unchanged=skip_unchanged) if isinstance(model, PKS4) else model

    def push(self, sessions: Sequence[StreamSession], turns: Sequence[Turn]) -> list[StreamPrediction | KinescanError]:
        """One prediction for each session, or the error of that one; a turn that is a cut restarts its session."""
        for session, turn in zip(sessions, turns, strict=True):
            if turn.is_cut:
                session.restart()
        if len(sessions) == 1:
            return [_or_error(partial(_push_alone, *pair)) for pair in zip(sessions, turns, strict=True)]
        found: list[StreamPrediction | KinescanError | None] = [None] * len(sessions)
        clips: dict[int, Tensor] = {}
        for index, (session, turn) in enumerate(zip(sessions, turns, strict=True)):
            clip = _or_error(partial(session.prepare, turn.pixels, turn.frame_index))
            if isinstance(clip, Tensor):
                clips[index] = clip
            else:
                found[index] = clip
        if clips:
            states = [sessions[index].state for index in clips]
            if isinstance(self._step, StreamStep):
                answers = self._answer(self._step, list(clips.values()), states)
            else:
                answers = _answer_exported(self._step, list(clips.values()), states)
            for (index, clip), answer in zip(clips.items(), answers, strict=True):
                found[index] = _or_error(partial(_take, sessions[index], turns[index], clip, *answer))
        return [entry for entry in found if entry is not None]

    def _answer(
        self, step: StreamStep, clips: Sequence[Tensor], states: Sequence[PKS4State]
    ) -> list[tuple[Tensor, Tensor, PKS4State]]:
        """Of each stream, logits [K] as `forward_stream` and as `stream_frames` gives them, and the state."""
        model, config = step.model, step.model.config
        with torch.no_grad():
            packed = zip(*(step.pack(state) for state in states), strict=True)
            state = step.unpack([torch.cat(tensors) for tensors in packed], 1)
            if step.repeats_first and state.kinematic is not None:
                first = [not one.frames_seen for one in states]
                state.kinematic.fresh = torch.tensor(first, device=clips[0].device)
            frames, after = model.represent(torch.cat(list(clips)), state, keep_state=True)
            alone = model.head(frames[:, 0])
            named = after.tensors()
            tensors = [shape.stacked(named[shape.name]) for shape in step.states]
            answers = []
            for row, before in enumerate(states):
                # a view would keep the whole batch alive as long as a slow stream's state
                own_tensors = [tensor[row : row + 1].clone() for tensor in tensors]
                next_state = replace(step.unpack(own_tensors, before.frames_seen + 1), recent=before.recent)
                own = alone[row]
                if not model.answers_frames:
                    averages = running_average(
                        frames[row : row + 1],
                        before.average,
                        before.frames_seen,
                        kind=config.average,
                        rate=config.average_rate,
                    )
                    next_state = replace(next_state, average=averages[:, -1].clone())
                    own = model.head(averages[0, -1].to(frames.dtype))
                answers.append((own, alone[row], next_state))
        return answers


def _answer_exported(
    step: ExportedStep, clips: Sequence[Tensor], states: Sequence[PKS4State]
) -> list[tuple[Tensor, Tensor, PKS4State]]:
    """As `StreamBatch._answer`, of a step whose averages are of logits."""
    packed = zip(*(step.pack(state) for state in states), strict=True)
    first = torch.tensor([float(not state.frames_seen) for state in states])
    logits, tensors = step.take(
        torch.cat([clip[:, 0] for clip in clips]), [torch.cat(one) for one in packed], first=first
    )
    answers = []
    for row, before in enumerate(states):
        alone = logits[row]
        own_tensors = [tensor[row : row + 1].clone() for tensor in tensors]
        next_state = replace(step.unpack(own_tensors, before.frames_seen + 1), recent=before.recent)
        own = alone
        if not step.answers_frames:
            kind, rate = step.config.average, step.config.average_rate
            averages = running_average(alone[None, None], before.average, before.frames_seen, kind=kind, rate=rate)
            next_state, own = replace(next_state, average=averages[:, -1].clone()), averages[0, -1]
        answers.append((own, alone, next_state))
    return answers


def _or_error(call: Callable[[], T]) -> T | KinescanError:
    try:
        return call()
    except KinescanError as error:
        return error


def _push_alone(session: StreamSession, turn: Turn) -> StreamPrediction:
    return session.push(turn.pixels, frame_index=turn.frame_index, seconds=turn.seconds)


def _take(
    session: StreamSession, turn: Turn, clip: Tensor, own: Tensor, alone: Tensor, state: PKS4State
) -> StreamPrediction:
    answer = own if session.has_own_average else alone
    return session.take(clip, answer, state, frame_index=turn.frame_index, seconds=turn.seconds)
