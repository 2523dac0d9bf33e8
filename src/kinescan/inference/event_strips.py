"""Pictures of events: what the model saw move and change as each began."""

import logging
from pathlib import Path

from kinescan.data.timestamps import timed_frames
from kinescan.data.transforms import EvalTransform
from kinescan.data.video import Limits, VideoReader
from kinescan.inference import drawing
from kinescan.inference.explain import kinematic_maps
from kinescan.inference.frame_predictor import rate_of
from kinescan.inference.segments import VideoEvents
from kinescan.models.pks4 import PKS4
from kinescan.runtime.quantities import percent

logger = logging.getLogger(__name__)

MOST_PICTURES = 50
"""Events of one file; of more, the first ones are drawn."""
_FRAMES_BEFORE = 1


def draw_events(
    model: PKS4,
    video: VideoEvents,
    folder: str | Path,
    *,
    number: int = 0,
    limits: Limits | None = None,
    allow_short: bool = False,
) -> list[Path]:
    """Writes a PNG for each event of a file: frames from just before its start on, what moved, and what changed.

    A picture shows at most as many frames as the model was trained with, at the distance that it was trained with: one
    before the event, and those of the event up to one behind it; see `draw_strip`.

    Args:
        model: that found the events.
        video: the file with its events.
        folder: where pictures go, NUMBER_EVENT_NAME.png; it is there.
        number: of the file, since files of different folders may have the same name.
        limits: what the file may take.
        allow_short: use what can be decoded of a cut or damaged file.

    Returns:
        The pictures, in the order of the events.

    Raises:
        ConfigError: a picture cannot be written.
        VideoError: the file cannot be read.
    """
    if len(video.events) > MOST_PICTURES:
        logger.warning("%s: the first %d of %d events are drawn", video.path, MOST_PICTURES, len(video.events))
    settings, written = model.preprocessing, []
    transform = EvalTransform(settings, crops=1)
    with VideoReader(
        video.path, limits=limits, allow_short=allow_short, square_pixels=settings.square_pixels
    ) as reader:
        frames = timed_frames(reader, rate_of(model))
        for index, told in enumerate(video.events[:MOST_PICTURES]):
            event = told.update.event
            end = event.start_seconds if event.end_seconds is None else event.end_seconds
            first, last = frames.seconds.searchsorted([event.start_seconds - 1e-6, end])
            start = max(0, min(int(first), len(frames) - 1) - _FRAMES_BEFORE)
            stop = min(len(frames), start + settings.num_frames, int(last) + _FRAMES_BEFORE)
            # movement is between two frames
            start, stop = max(0, min(start, stop - 2)), max(stop, min(len(frames), start + 2))
            if stop - start < 2:
                logger.warning("%s: has one frame at the model's rate: there is no movement to draw", video.path)
                break
            clip = transform(reader.read(frames.positions[start:stop]).pixels)
            path = Path(folder) / f"{number:04d}_{index:03d}_{Path(video.path).stem}.png"
            drawing.draw_strip(
                clip[0],
                kinematic_maps(model, clip.to(model.device)),
                path,
                preprocessing=settings,
                title=f"{Path(video.path).name}: {event.label} from {event.start_seconds:.2f} s, "
                f"{percent(event.peak_score)}",
                seconds=frames.seconds[start:stop].tolist(),
            )
            written.append(path)
    return written
