"""What stands beside an exported model, in its folder: export.json."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kinescan.errors import CheckpointError, ConfigError
from kinescan.inference.export_formats import CLIP, FORMATS, LOGITS, FormatName, Precision, Shape, Signature
from kinescan.layers.running_average import AverageKind
from kinescan.models.saving.location import EXPORT_FILE
from kinescan.models.saving.saved_model import MOST_CLIPS
from kinescan.models.stream_step import FRAME, StateShape, step_inputs, step_outputs
from kinescan.models.symmetry import Symmetry, check_symmetries
from kinescan.models.timing import FrameTiming
from kinescan.preprocessing import MAX_CLIP_PIXELS, Preprocessing
from kinescan.runtime.files import inside, read_json_object
from kinescan.settings import build_settings

_MAX_STATE_VALUES = 2**28
"""Of one stream: a gigabyte; B/16 at 224 pixels has 6 million."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What an exported step of a stream takes and gives beside frames and logits.

    Attributes:
        states: the tensors of the state, in the order in which they go in and come out, after the frame and the rate.
        average: how the model averages frames, where it answers for clips.
        average_rate: weight of the newest frame, for `average="exponential"`.
        repeats_first: frames before a stream's first one repeat it, so that there is an input "first".
    """

    states: tuple[StateShape, ...]
    average: AverageKind = "mean"
    average_rate: float = 0.1
    repeats_first: bool = False

    def __post_init__(self) -> None:
        if any(size < 1 for state in self.states for size in (*state.shape, state.tracks)):
            raise ConfigError("sizes of states must be at least 1.")
        if sum(math.prod(state.shape) for state in self.states) > _MAX_STATE_VALUES:
            raise ConfigError(f"states must have at most {_MAX_STATE_VALUES} values for each stream.")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all that goes in, in order."""
        return step_inputs(self.states, repeats_first=self.repeats_first)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of all that comes out, in order."""
        return step_outputs(self.states)


@dataclass(frozen=True, kw_only=True)
class ExportRecord:
    """What stands beside an exported model: all that is needed to use it, with kinescan or without.

    Attributes:
        kinescan_version: version that wrote it.
        model: name in the zoo of what was exported.
        format: kind of file.
        file: the file that is opened.
        files: every file of the export, this record apart.
        labels: class names in the order of the logits; None where they are unknown.
        preprocessing: how pixels become a clip.
        batch: clips that go in at once; None: any number.
        num_frames: frames of a clip; fixed, as is the size.
        size: side of a frame in pixels.
        precision: what it computes in; inputs and logits are float32 always.
        num_classes: number of logits; None in older records, which have labels.
        causal: whether the model looks at no future frame; None for models where the question does not arise.
        timing: how far apart the frames of the training clips were; None where it is unknown.
        num_clips: clips of a video whose scores are averaged where nobody says which views.
        symmetries: changes of a clip whose answers are averaged with its own; see `VideoClassifier`.
        output: whether the logits answer for the clip or for every frame.
        overlapping: several classes may be true at once.
        weights: fingerprint of the weights, which rules of events and the file with a stream's state name.
        step: of one step of a stream, its state; None for whole clips.
        check: how it was compared with the model: clips, largest difference, what was allowed.
        versions: of the packages that wrote it.
    """

    kinescan_version: str
    model: str
    format: FormatName
    file: str
    files: tuple[str, ...]
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing
    batch: int | None
    num_frames: int
    size: int
    precision: Precision
    num_classes: int | None = None
    causal: bool | None = None
    timing: FrameTiming | None = None
    num_clips: int = 1
    symmetries: tuple[Symmetry, ...] = ()
    output: Literal["clip", "frames"] = "clip"
    overlapping: bool = False
    weights: str | None = None
    step: StepRecord | None = None
    check: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        most = MAX_CLIP_PIXELS // (self.preprocessing.num_frames * self.preprocessing.size**2)
        if self.batch is not None and not 1 <= self.batch <= most:
            raise ConfigError(f"batch must be 1 to {most} for such clips, got {self.batch}.")
        if (self.num_frames, self.size) != (self.preprocessing.num_frames, self.preprocessing.size):
            raise ConfigError("num_frames and size must be those of preprocessing.")
        if not 1 <= self.num_clips <= MOST_CLIPS:
            raise ConfigError(f"num_clips must be 1 to {MOST_CLIPS}, got {self.num_clips}.")
        count = len(self.labels or ()) if self.num_classes is None else self.num_classes
        check_symmetries(self.symmetries, count, answers_frames=self.output == "frames")
        if count < 1 or (self.labels is not None and len(set(self.labels)) != count):
            raise ConfigError("labels must be one for each of num_classes, and differ from each other.")

    @property
    def signature(self) -> Signature:
        """What the file takes and gives."""
        if self.step is None:
            return Signature(inputs={CLIP: (self.batch, self.num_frames, 3, self.size, self.size)}, outputs=(LOGITS,))
        shapes: dict[str, Shape] = {FRAME: (self.batch, 3, self.size, self.size)}
        shapes |= {state.name: (self.batch, *state.shape) for state in self.step.states}
        return Signature(
            inputs={name: shapes.get(name, (self.batch,)) for name in self.step.inputs}, outputs=self.step.outputs
        )


@dataclass(frozen=True, kw_only=True)
class ExportCheck:
    """How an exported file compares with the model on clips.

    Attributes:
        clips: where they came from: files, or "synthetic: MOTION".
        largest_logit: largest absolute logit of the model.
        largest_difference: largest absolute difference of a logit.
        allowed_difference: what was allowed.
        same_top1: on how many clips the best class is the same.
        single_clip: whether clips were also given one by one (with any number at once).
        num_steps: frames of each clip, one after the other, for a step of a stream; else None.
    """

    clips: tuple[str, ...]
    largest_logit: float
    largest_difference: float
    allowed_difference: float
    same_top1: int
    single_clip: bool
    num_steps: int | None = None

    @property
    def passed(self) -> bool:
        """Whether no logit is too far off and every best class is the same."""
        return self.largest_difference <= self.allowed_difference and self.same_top1 == len(self.clips)


def is_exported(folder: str | Path) -> bool:
    """Whether a folder holds an exported model."""
    return os.path.isfile(Path(folder) / EXPORT_FILE)


def read_record(folder: str | Path) -> ExportRecord:
    """What stands beside an exported model.

    Raises:
        CheckpointError: it is missing or damaged, names files elsewhere, or one of the files is missing.
    """
    path = Path(folder) / EXPORT_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {EXPORT_FILE}. Give a folder that `kinescan export` wrote.")
    content = read_json_object(inside(folder, EXPORT_FILE, error=CheckpointError), error=CheckpointError)
    try:
        record = build_settings(ExportRecord, content)
    except ConfigError as error:
        raise CheckpointError(f"{path} is damaged: {error} Export the model again.") from error
    usual = FORMATS[record.format].file
    if record.file != usual:
        raise CheckpointError(f"{path} is damaged: its file must be {usual!r}, not {record.file!r}. Export it again.")
    files = {name: inside(folder, name, error=CheckpointError) for name in (record.file, *record.files)}
    lacking = [name for name in record.files if not files[name].is_file()]
    if lacking:
        raise CheckpointError(f"{folder} lacks {', '.join(lacking)}. Copy the whole folder, or export the model again.")
    return record


def check_precision(name: FormatName, precision: Precision) -> None:
    """Passes what the format can compute in.

    Raises:
        ConfigError: it cannot.
    """
    allowed = FORMATS[name].precisions
    if precision not in allowed:
        raise ConfigError(
            f"{name} computes in {' or '.join(allowed)}, not in {precision}. For bfloat16 export to openvino."
        )
