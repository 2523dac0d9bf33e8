"""Events of files, printed and written."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from kinescan.data.video import Limits
from kinescan.errors import ConfigError
from kinescan.events.decoding import DecodingRules
from kinescan.events.rules import EventRules
from kinescan.events.sinks import CsvFile, JsonLines
from kinescan.inference.event_rules import model_rules
from kinescan.inference.event_strips import draw_events
from kinescan.inference.frame_predictor import require_frames
from kinescan.inference.predictor import make_explain_folder
from kinescan.inference.segments import VideoEvents, predict_events
from kinescan.models.classifier import VideoClassifier
from kinescan.runs.events import EventPlan
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.escaping import to_json

_LINES = {".jsonl": JsonLines, ".csv": CsvFile}


def find_events(
    model: VideoClassifier,
    folder: str | Path,
    files: Sequence[Path],
    plan: EventPlan,
    *,
    decoding: DecodingRules | None = None,
    output: str | Path | None = None,
    explain_folder: str | Path | None = None,
    limits: Limits | None = None,
    allow_short: bool = False,
    on_video: Callable[[VideoEvents], None] | None = None,
) -> list[VideoEvents]:
    """The events of each file, also written to `output`.

    Args:
        model: one that answers for every frame.
        folder: the folder that it came from.
        files: to look at.
        plan: rules.
        decoding: see `predict_events`.
        output: FILE.csv or FILE.jsonl, written event by event, or FILE.json, written at the end; one that is there and
            holds events is replaced.
        explain_folder: where a picture of each event is drawn; made if need be. See `draw_events`.
        limits: what one file may take.
        allow_short: use what can be decoded of cut or damaged files.
        on_video: called with the events of each file as they are known.

    Raises:
        ConfigError: the model answers for whole clips or cannot be explained, a setting is wrong, or the output cannot
            be written.
    """
    rules = EventRules() if decoding else rules_of(require_frames(model), folder, plan)
    pictures = None if explain_folder is None else make_explain_folder(explain_folder, model)
    written: list[VideoEvents] = []
    write = None if output is None else _writer(Path(output))

    def done(video: VideoEvents) -> None:
        written.append(video)
        if write is not None:
            write(video)
        if pictures is not None and video.events:
            folder_of_pictures, explained = pictures
            number = len(written) - 1
            draw_events(explained, video, folder_of_pictures, number=number, limits=limits, allow_short=allow_short)
        if on_video is not None:
            on_video(video)

    try:
        return predict_events(
            model, files, rules=rules, decoding=decoding, limits=limits, allow_short=allow_short, on_video=done
        )
    finally:
        if output is not None and Path(output).suffix.lower() == ".json":
            write_text(output, to_json([video.to_plain() for video in written], indent=1) + "\n")


def rules_of(model: VideoClassifier, folder: str | Path, plan: EventPlan) -> EventRules:
    """The rules that a plan leads to for a model; see `model_rules`."""
    return model_rules(model, folder, content=plan.rules, where=plan.where, changes=plan.changes)


def check_output(output: str | Path) -> None:
    """Refuses an output that cannot be written, before anything is computed.

    Raises:
        ConfigError: its name does not end in .csv, .json or .jsonl, or it holds something other than events.
    """
    path = Path(output)
    suffix = path.suffix.lower()
    if suffix not in (*_LINES, ".json"):
        raise ConfigError(f"--output {path}: its name must end in .csv, .json or .jsonl.")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is not a folder, so {path} cannot be written. Make the folder.")
    if suffix in _LINES:
        _LINES[suffix](path)


def _writer(path: Path) -> Callable[[VideoEvents], None] | None:
    kind = _LINES.get(path.suffix.lower())
    if kind is None:
        return None
    # it holds events, or is new: `check_output` has looked
    with suppress(FileNotFoundError):
        path.unlink()
    file = kind(path)

    def write(video: VideoEvents) -> None:
        for told in video.events:
            try:
                file.deliver(told)
            except OSError as error:
                raise ConfigError(
                    f"{path} cannot be written ({error.strerror or error}). Free space, or choose another folder."
                ) from None

    return write
