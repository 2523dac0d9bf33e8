"""The events of whole files."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kinescan.data.clips import video_files
from kinescan.data.video import Limits
from kinescan.errors import VideoError
from kinescan.events.decoding import DecodingRules, decode_events
from kinescan.events.detector import detect_updates
from kinescan.events.rules import EventRules
from kinescan.events.told import Told
from kinescan.inference.event_rules import model_rules
from kinescan.inference.frame_predictor import predict_frames, require_frames
from kinescan.inference.model_source import ModelSource, resolve_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VideoEvents:
    """What happens in one file.

    Attributes:
        path: the file.
        events: a record for each event, told at its end, in the order of their starts.
        end_seconds: length of the video; None where it could not be read.
        error: why it could not be read, or None.
    """

    path: str
    events: tuple[Told, ...]
    end_seconds: float | None = None
    error: str | None = None

    def to_plain(self) -> dict[str, Any]:
        """As JSON-like values; events are the records that streams tell."""
        return {
            "path": self.path,
            "end_seconds": None if self.end_seconds is None else round(self.end_seconds, 6),
            "events": [told.to_plain() for told in self.events],
            "error": self.error,
        }


def predict_events(
    model: ModelSource,
    paths: str | Path | Sequence[str | Path],
    *,
    rules: EventRules | None = None,
    decoding: DecodingRules | None = None,
    device: str | torch.device | None = None,
    limits: Limits | None = None,
    allow_short: bool = False,
    on_video: Callable[[VideoEvents], None] | None = None,
) -> list[VideoEvents]:
    """What happens in video files, from when to when.

    A file that cannot be read is listed with its reason and stops none of the others.

    Args:
        model: one that answers for every frame, as for `predict_frames`.
        paths: video files; a folder stands for the video files in it and below, in order of their names.
        rules: thresholds and times; None are those that are saved with the model, or the defaults (see `model_rules`).
        decoding: decide each frame with those before and after it (`decode_events`), instead of telling what a stream
            would have told by `rules`.
        device: where to compute.
        limits: what one file may take.
        allow_short: take what can be decoded of cut or damaged files.
        on_video: called with the events of each file as they are known.

    Returns:
        One entry a file, in the order of `paths`. Ids are the same each time for the same path.

    Raises:
        ConfigError: the model answers for whole clips, no path was given, a folder holds no video, or the rules name
            an unknown class.
        CheckpointError: `model` is a folder or name that holds no saved model.
        NonFiniteError: the model gives NaN or infinity for a file, which is named.
    """
    resolved = require_frames(resolve_model(model, device))
    if rules is None:
        rules = model_rules(resolved)
    rules.check_classes(resolved.class_names)
    found = []
    for file in video_files(paths):
        try:
            predictions = predict_frames(resolved, file, video_id=str(file), limits=limits, allow_short=allow_short)
        except VideoError as error:
            logger.warning("left out, cannot be read: %s", error)
            found.append(VideoEvents(path=str(file), events=(), error=error.reason))
        else:
            if decoding is None:
                ends = [update for update in detect_updates(predictions, rules) if update.kind == "end"]
                ends.sort(key=lambda update: (update.event.start_seconds, update.event.label))
            else:
                ends = decode_events(predictions, decoding)
            events = [Told(update=end, source=str(file), sequence=number) for number, end in enumerate(ends, 1)]
            found.append(VideoEvents(path=str(file), events=tuple(events), end_seconds=predictions.end_seconds))
        if on_video is not None:
            on_video(found[-1])
    return found
