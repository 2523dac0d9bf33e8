import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kinescan.errors import CheckpointError, ConfigError, ShapeError
from kinescan.inference.formats import FORMATS, FormatName, Precision, Runner
from kinescan.models.classifier import VideoClassifier
from kinescan.preprocessing import Preprocessing
from kinescan.settings import build_settings
from kinescan.shapes import Clip, Logits

RECORD_FILE = "export.json"


@dataclass(frozen=True, kw_only=True)
class ExportRecord:
    """What stands beside an exported model: all that is needed to use it, with kinescan or without.

    Attributes:
        kinescan_version: version that wrote it.
        model: name in the zoo of what was exported.
        format: kind of file.
        file: the file that is opened.
        files: every file of the export, this record apart.
        labels: class names in the order of the logits; None where nobody knew them.
        preprocessing: how pixels become a clip.
        batch: clips that go in at once; None: any number.
        num_frames: frames of a clip; fixed, as is the size.
        size: side of a frame in pixels.
        precision: what it computes in; inputs and logits are float32 always.
        num_classes: number of logits; None in records of before, which have labels.
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
    check: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


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
        ...     exported = load_exported(folder)
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
        self.record = record
        self._run = run
        self.eval()

    def forward(self, clip: Clip) -> Logits:
        """Logits [B, K] of clips [B, T, 3, H, W], T and H = W as they were exported.

        With a fixed batch, clips go in piece by piece; the last piece is filled up with zeros.

        Raises:
            ShapeError: the clip has another size or number of frames than the file takes.
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
            return self._run(clip)
        size = self.config.batch
        filled = F.pad(clip, (0, 0) * 4 + (0, -clip.shape[0] % size))
        return torch.cat([self._run(part) for part in filled.split(size)])[: clip.shape[0]]

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
    return (Path(folder) / RECORD_FILE).is_file()


def read_record(folder: str | Path) -> ExportRecord:
    """What stands beside an exported model.

    Raises:
        CheckpointError: it is missing or damaged, or one of the files is missing.
    """
    path = Path(folder) / RECORD_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {RECORD_FILE}. Give a folder that `kinescan export` wrote.")
    try:
        record = build_settings(ExportRecord, json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{path} is damaged ({error}). Export the model again.") from error
    lacking = [name for name in record.files if not (path.parent / name).is_file()]
    if lacking:
        raise CheckpointError(f"{folder} lacks {', '.join(lacking)}. Copy the whole folder, or export the model again.")
    return record


def load_exported(
    folder: str | Path, *, precision: Precision | None = None, num_threads: int | None = None
) -> ExportedModel:
    """An exported model with its labels and preprocessing, ready to run on the CPU.

    Args:
        folder: as `kinescan export` wrote it.
        precision: compute in this one instead of that of the export (OpenVINO only).
        num_threads: how many threads to use; by default torch's number. The torch format follows torch itself.

    Raises:
        CheckpointError: the folder is none, or damaged.
        ConfigError: the format cannot compute in that precision.
        DependencyError: the package that runs the file is not installed.
    """
    record = read_record(folder)
    kind = FORMATS[record.format]
    chosen = precision or record.precision
    check_precision(record.format, chosen)
    run = kind.open(Path(folder) / record.file, chosen, num_threads or torch.get_num_threads())
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
