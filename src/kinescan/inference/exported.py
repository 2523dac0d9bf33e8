import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kinescan.errors import CheckpointError, ConfigError, KinescanError, ShapeError
from kinescan.inference.export_formats import (
    CLIP,
    FORMATS,
    LOGITS,
    FormatName,
    Precision,
    Runner,
    Shape,
    Signature,
    first_line,
)
from kinescan.inference.state_tensors import state_of
from kinescan.layers.running_average import AverageKind, running_average
from kinescan.models.classifier import VideoClassifier
from kinescan.models.pks4 import PKS4, PKS4State
from kinescan.models.saving.location import EXPORT_FILE
from kinescan.models.stream_step import FIRST, FRAME, StateShape, step_inputs, step_outputs
from kinescan.models.timing import FrameTiming
from kinescan.preprocessing import MAX_CLIP_PIXELS, Preprocessing
from kinescan.runtime.files import inside, read_json_object
from kinescan.settings import build_settings
from kinescan.shapes import Clip, FrameLogits, Logits

RECORD_FILE = EXPORT_FILE
_MAX_THREADS = 4096
_KEPT_OUTSIDE = ("average", "recent")
"""Of a stream's state, what is not the file's: averages of logits."""
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
        num_classes: number of logits; None in records of before, which have labels.
        causal: whether the model looks at no future frame; None for models where the question does not arise.
        timing: how far apart the frames of the training clips were; None where it is unknown.
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
        count = len(self.labels or ()) if self.num_classes is None else self.num_classes
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
class ExportedConfig:
    """Sizes of an exported model.

    Attributes:
        num_classes: number of logits.
        image_size: side of a frame in pixels.
        num_frames: frames of a clip.
        batch: clips that go in at once; None: any number.
        causal: whether it is a step of a stream.
        output: whether the logits answer for the clip or for every frame.
        overlapping: several classes may be true at once.
        average: how a step's model averages frames.
        average_rate: weight of the newest frame, for `average="exponential"`.
    """

    num_classes: int
    image_size: int
    num_frames: int
    batch: int | None
    causal: bool = False
    output: Literal["clip", "frames"] = "clip"
    overlapping: bool = False
    average: AverageKind = "mean"
    average_rate: float = 0.1


class ExportedModel(VideoClassifier):
    """An exported file as a classifier: `predict` and the evaluation take it like any other, on the CPU.

    Args:
        record: what stands beside the file.
        run: the function that runs the file.

    Attributes:
        record: what stands beside the file.

    Example:
        >>> import tempfile
        >>> from kinescan.inference.export import export
        >>> from kinescan.models.zoo import create_model
        >>> sizes = {"depth": 2, "image_size": 32, "insert_after": 1, "window": 3}
        >>> model = create_model("pks4_vit_ti16", labels=["left", "right"], preprocessing={"num_frames": 2}, **sizes)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     record = export(model, folder, to="torch")
        ...     exported = load_exported(folder, allow_code=True)
        >>> exported(torch.zeros(3, 2, 3, 32, 32)).shape, exported.labels
        (torch.Size([3, 2]), ('left', 'right'))
    """

    config: ExportedConfig

    def __init__(self, record: ExportRecord, run: Runner) -> None:
        config = ExportedConfig(
            num_classes=len(record.labels or ()) if record.num_classes is None else record.num_classes,
            image_size=record.size,
            num_frames=record.num_frames,
            batch=record.batch,
            causal=record.step is not None,
            output=record.output,
            overlapping=record.overlapping,
            average="mean" if record.step is None else record.step.average,
            average_rate=0.1 if record.step is None else record.step.average_rate,
        )
        super().__init__(config, name=record.model, labels=record.labels, preprocessing=record.preprocessing)
        self.record, self.timing = record, record.timing
        self._run = run
        self.eval()

    def forward(self, clip: Clip) -> Logits | FrameLogits:
        """Logits [B, K] (or [B, T, K]) of clips [B, T, 3, H, W], T and H = W as they were exported.

        With a fixed batch, clips go in chunk by chunk; the last chunk is filled up with zeros.

        Raises:
            ShapeError: the clip has another size or number of frames than the file takes.
            CheckpointError: the file fails, or gives something else than logits of these classes.
        """
        self.check_clip(clip)
        wanted = self.config.num_frames
        if clip.shape[1] != wanted:
            raise ShapeError(
                f"the exported {self.name} takes clips of {wanted} frames, got {clip.shape[1]}. "
                f"Sample {wanted} frames, or export the model once more with --frames {clip.shape[1]}."
            )
        return self._run_graph([clip])[0]

    def _run_graph(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """What the file gives for any number of rows; a fixed batch is filled up with zeros."""
        given = [tensor.detach().float().cpu() for tensor in inputs]
        rows, size = len(given[0]), self.config.batch
        if size is None:
            return self._checked(given)
        filled = [torch.cat([tensor, tensor.new_zeros(-rows % size, *tensor.shape[1:])]) for tensor in given]
        parts = [self._checked(part) for part in zip(*(tensor.split(size) for tensor in filled), strict=True)]
        return [torch.cat(outputs)[:rows] for outputs in zip(*parts, strict=True)]

    def _checked(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """What the file gives, which may be any file."""
        try:
            outputs = self._run(inputs)
        # Each runtime has its own errors.
        except Exception as error:
            shapes = ", ".join(str(list(tensor.shape)) for tensor in inputs[:3])
            raise CheckpointError(
                f"the exported {self.name} ({self.record.file}) fails on inputs {shapes}: {first_line(error)} Export "
                "the model again."
            ) from error
        wanted = self._output_shapes(inputs)
        if [tuple(tensor.shape) for tensor in outputs] != wanted or any(
            tensor.dtype != torch.float32 for tensor in outputs
        ):
            found = ", ".join(f"{tensor.dtype} {list(tensor.shape)}" for tensor in outputs[:3])
            raise CheckpointError(
                f"the exported {self.name} ({self.record.file}) gives {found} where float32 {list(wanted[0])} "
                "belongs. It is another model's; export it again."
            )
        return outputs

    def _output_shapes(self, inputs: Sequence[Tensor]) -> list[tuple[int, ...]]:
        rows, classes = len(inputs[0]), self.config.num_classes
        return [(rows, classes) if self.record.output == "clip" else (rows, self.config.num_frames, classes)]

    def weights_fingerprint(self) -> str:
        """That of the model that was exported; of older exports, which do not say it, one that no model has."""
        return self.record.weights or "unknown"

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def layer_depths(self) -> dict[str, int]:
        """None: an exported model cannot be trained."""
        return {}

    @property
    def num_layers(self) -> int:
        """None that could be told apart."""
        return 0

    def saved_part(self) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
        """Refuses: copy the folder instead.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(
            f"an exported {self.name} cannot be saved as a kinescan model. Copy its folder, or save the model that it "
            "was exported from."
        )


class ExportedStep(ExportedModel):
    """An exported step of a stream as a causal classifier: `stream` takes it, and whole clips go in frame by frame.

    Args:
        record: what stands beside the file, with its `step`.
        run: the function that runs the file.
    """

    def __init__(self, record: ExportRecord, run: Runner) -> None:
        assert record.step is not None
        super().__init__(record, run)
        self.step = record.step

    def forward(self, clip: Clip) -> Logits | FrameLogits:
        """Logits [B, K] of clips [B, T, 3, H, W], any T; of a model that answers for every frame, [B, T, K]."""
        logits, _ = self.forward_stream(clip)
        return logits if self.answers_frames else logits[:, -1]

    def forward_stream(self, clip: Clip, state: PKS4State | None = None) -> tuple[FrameLogits, PKS4State]:
        """Logits [B, T, K] of every prefix (or frame), and the next state; see `PKS4.forward_stream`.

        The state's average is one of logits [B, K], which the linear head makes of the model's own average.

        Raises:
            ShapeError: the clip has another size than the file takes.
            CheckpointError: the file fails, or gives something else than logits and a state; the state is another
                model's.
        """
        frames, averages, after = self._stream(clip, state)
        return frames if self.answers_frames else averages, after

    def stream_frames(self, clip: Clip, state: PKS4State | None = None) -> tuple[FrameLogits, PKS4State]:
        """Logits [B, T, K] of every frame by itself, and the next state; see `PKS4.stream_frames`.

        Raises:
            ShapeError: as for `forward_stream`.
            CheckpointError: as for `forward_stream`.
        """
        frames, _, after = self._stream(clip, state)
        return frames, after

    def _stream(self, clip: Tensor, state: PKS4State | None) -> tuple[Tensor, Tensor, PKS4State]:
        """Logits [B, T, K] of each frame and of each prefix, and the new state."""
        self.check_clip(clip)
        state = PKS4State() if state is None else state
        tensors = self.pack(state, len(clip))
        answers = []
        for index, frame in enumerate(clip.unbind(dim=1), start=state.frames_seen):
            logits, tensors = self.take(frame, tensors, first=torch.full((len(clip),), float(index == 0)))
            answers.append(logits)
        frames = torch.stack(answers, dim=1)
        after = self.unpack(tensors, state.frames_seen + clip.shape[1])
        if self.answers_frames:
            return frames, frames, after
        kind, rate = self.config.average, self.config.average_rate
        averages = running_average(frames, state.average, state.frames_seen, kind=kind, rate=rate)
        return frames, averages, replace(after, average=averages[:, -1].clone())

    def take(self, frames: Tensor, state: Sequence[Tensor], *, first: Tensor) -> tuple[Tensor, list[Tensor]]:
        """One step of B streams.

        Args:
            frames: [B, 3, H, W], normalised.
            state: as `start` or the step before gave it.
            first: [B], 1 where it is a stream's first frame, else 0.

        Returns:
            Logits [B, K] and the next state.
        """
        ruled = {FRAME: frames, FIRST: first}
        given = [ruled[name] for name in self.step.inputs if name in ruled]
        logits, *tensors = self._run_graph([*given, *state])
        return logits, tensors

    def start(self, num_streams: int) -> list[Tensor]:
        """The state of streams before their first frame."""
        return [torch.zeros(num_streams, *state.shape) for state in self.step.states]

    def pack(self, state: PKS4State, num_streams: int = 1) -> list[Tensor]:
        """The tensors of a state, as `take` wants them.

        Raises:
            CheckpointError: it is the state of another model.
        """
        if not state.frames_seen:
            return self.start(num_streams)
        named = {name: tensor for name, tensor in state.tensors().items() if name not in _KEPT_OUTSIDE}
        shapes = {shape.name: (num_streams, *shape.shape) for shape in self.step.states}
        found = dict.fromkeys(named, (num_streams, -1)) | {
            shape.name: tuple(shape.stacked(named[shape.name]).shape)
            for shape in self.step.states
            if shape.name in named
        }
        if found != shapes:
            wrong = min(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name))
            raise CheckpointError(
                f"the state does not fit the exported {self.name}: {wrong} is {found.get(wrong)}, the file takes "
                f"{shapes.get(wrong)}. Give the state of the same model, or start anew."
            )
        return [shape.stacked(named[shape.name]) for shape in self.step.states]

    def unpack(self, tensors: Sequence[Tensor], frames_seen: int) -> PKS4State:
        """The inverse of `pack`."""
        named = {shape.name: shape.flat(tensor) for shape, tensor in zip(self.step.states, tensors, strict=True)}
        return state_of(named, frames_seen)

    def _output_shapes(self, inputs: Sequence[Tensor]) -> list[tuple[int, ...]]:
        rows = len(inputs[0])
        return [(rows, self.config.num_classes), *((rows, *state.shape) for state in self.step.states)]


CausalModel = PKS4 | ExportedStep
"""What a stream runs on."""


def is_exported(folder: str | Path) -> bool:
    """Whether a folder holds an exported model."""
    return os.path.isfile(Path(folder) / RECORD_FILE)


def read_record(folder: str | Path) -> ExportRecord:
    """What stands beside an exported model.

    Raises:
        CheckpointError: it is missing or damaged, names files elsewhere, or one of the files is missing.
    """
    path = Path(folder) / RECORD_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {RECORD_FILE}. Give a folder that `kinescan export` wrote.")
    content = read_json_object(inside(folder, RECORD_FILE, error=CheckpointError), error=CheckpointError)
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


def load_exported(
    folder: str | Path,
    *,
    precision: Precision | None = None,
    num_threads: int | None = None,
    allow_code: bool = False,
) -> ExportedModel:
    """An exported model with its labels and preprocessing, ready to run on the CPU.

    Args:
        folder: as `kinescan export` wrote it.
        precision: compute in this one instead of that of the export (OpenVINO only).
        num_threads: how many threads to use; by default torch's number. The torch format follows torch itself.
        allow_code: open a file that may run code of its own, with the rights of this process: one of torch.export.
            For files of your own, and of those whom you would let run a program here.

    Raises:
        CheckpointError: the folder is none, or damaged, or its file may run code and `allow_code` is False.
        ConfigError: the format cannot compute in that precision, or num_threads is below 1.
        DependencyError: the package that runs the file is not installed.
    """
    record = read_record(folder)
    kind = FORMATS[record.format]
    chosen = precision or record.precision
    check_precision(record.format, chosen)
    if num_threads is not None and (type(num_threads) is not int or not 1 <= num_threads <= _MAX_THREADS):
        raise ConfigError(f"num_threads must be 1 to {_MAX_THREADS}, got {num_threads!r}.")
    path = Path(folder) / record.file
    if kind.runs_code and not allow_code:
        raise CheckpointError(
            f"{path} is a file of torch.export, which may carry code (as pickles) that runs when it is opened. It is "
            "opened only where you say so: allow_code=True, on the command line --allow-code. Say so for files of "
            "your own, or of people whose programs you would run. ONNX and OpenVINO files run no code."
        )
    try:
        run = kind.open(path, chosen, num_threads or torch.get_num_threads(), record.signature)
    except KinescanError:
        raise
    # Each runtime has its own errors for a damaged file.
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be opened ({first_line(error)}). It is damaged; export the model again."
        ) from error
    return ExportedModel(record, run) if record.step is None else ExportedStep(record, run)


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
        num_steps: frames of each clip, one behind the other, for a step of a stream; else None.
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
