from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kinescan.errors import CheckpointError, ConfigError, KinescanError, ShapeError
from kinescan.inference.export_formats import (
    FORMATS,
    Precision,
    Runner,
)
from kinescan.inference.export_record import ExportRecord, check_precision, read_record
from kinescan.inference.state_tensors import state_of
from kinescan.layers.running_average import AverageKind, running_average
from kinescan.models.classifier import VideoClassifier
from kinescan.models.pks4 import PKS4
from kinescan.models.pks4_state import PKS4State
from kinescan.models.saving.saved_model import read_rules
from kinescan.models.stream_step import FIRST, FRAME
from kinescan.runtime.error_text import first_line
from kinescan.shapes import Clip, FrameLogits, Logits

_MAX_THREADS = 4096
_KEPT_OUTSIDE = ("average", "recent")
"""Of a stream's state, what is not the file's: averages of logits."""


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
        self.num_clips, self.symmetries = record.num_clips, record.symmetries
        self._run = run
        self.eval()

    def forward(self, clip: Clip) -> Logits | FrameLogits:
        """Logits [B, K] (or [B, T, K]) of clips [B, T, 3, H, W], T and H = W as they were exported.

        With a fixed batch, clips go in chunk by chunk; the last chunk is filled up with zeros.

        Raises:
            ShapeError: the clip has another size or number of frames than the file takes.
            CheckpointError: the file fails, or gives something other than logits of these classes.
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
            CheckpointError: the file fails, or gives something other than logits and a state; the state is another
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
    found = ExportedModel(record, run) if record.step is None else ExportedStep(record, run)
    found.saved_rules = read_rules(Path(folder))
    return found
