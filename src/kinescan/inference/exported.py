import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kinescan.errors import CheckpointError, ConfigError, KinescanError, ShapeError
from kinescan.inference.export_formats import FORMATS, FormatName, Precision, Runner, first_line
from kinescan.models.classifier import VideoClassifier
from kinescan.models.saving.location import EXPORT_FILE
from kinescan.models.timing import FrameTiming
from kinescan.preprocessing import MAX_CLIP_PIXELS, Preprocessing
from kinescan.runtime.files import inside, read_json_object
from kinescan.settings import build_settings
from kinescan.shapes import Clip, Logits

RECORD_FILE = EXPORT_FILE
_MAX_THREADS = 4096


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


@dataclass(frozen=True, kw_only=True)
class ExportedConfig:
    """Sizes of an exported model.

    Attributes:
        num_classes: number of logits.
        image_size: side of a frame in pixels.
        num_frames: frames of a clip.
        batch: clips that go in at once; None: any number.
    """

    num_classes: int
    image_size: int
    num_frames: int
    batch: int | None


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
        )
        super().__init__(config, name=record.model, labels=record.labels, preprocessing=record.preprocessing)
        self.record, self.timing = record, record.timing
        self._run = run
        self.eval()

    def forward(self, clip: Clip) -> Logits:
        """Logits [B, K] of clips [B, T, 3, H, W], T and H = W as they were exported.

        With a fixed batch, clips go in piece by piece; the last piece is filled up with zeros.

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
        clip = clip.detach().float().cpu()
        if self.config.batch is None:
            return self._checked(clip)
        size = self.config.batch
        filled = F.pad(clip, (0, 0) * 4 + (0, -clip.shape[0] % size))
        return torch.cat([self._checked(part) for part in filled.split(size)])[: clip.shape[0]]

    def _checked(self, clip: Tensor) -> Tensor:
        """What the file gives, which may be any file."""
        try:
            logits = self._run(clip)
        # Each runtime has its own errors.
        except Exception as error:
            raise CheckpointError(
                f"the exported {self.name} ({self.record.file}) fails on a clip {list(clip.shape)}: "
                f"{first_line(error)} Export the model again."
            ) from error
        if logits.dtype != torch.float32 or logits.shape != (len(clip), self.config.num_classes):
            raise CheckpointError(
                f"the exported {self.name} ({self.record.file}) gives {logits.dtype} {list(logits.shape)} where "
                f"float32 {[len(clip), self.config.num_classes]} belongs. It is another model's; export it again."
            )
        return logits

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
        run = kind.open(path, chosen, num_threads or torch.get_num_threads())
    except KinescanError:
        raise
    # Each runtime has its own errors for a damaged file.
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be opened ({first_line(error)}). It is damaged; export the model again."
        ) from error
    return ExportedModel(record, run)


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
        clips: where they came from: files, or "drawn".
        largest_logit: largest absolute logit of the model.
        largest_difference: largest absolute difference of a logit.
        allowed_difference: what was allowed.
        same_top1: on how many clips the best class is the same.
        single_clip: whether clips were also given one by one (with any number at once).
    """

    clips: tuple[str, ...]
    largest_logit: float
    largest_difference: float
    allowed_difference: float
    same_top1: int
    single_clip: bool

    @property
    def passed(self) -> bool:
        """Whether no logit is too far off and every best class is the same."""
        return self.largest_difference <= self.allowed_difference and self.same_top1 == len(self.clips)
