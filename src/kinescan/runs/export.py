from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kinescan.errors import ConfigError
from kinescan.inference.export import export
from kinescan.inference.export_record import ExportRecord
from kinescan.runs.folder import model_folder


def export_model(
    model: str,
    folder: str | Path,
    *,
    to: str,
    batch: int | str = "dynamic",
    num_frames: int | None = None,
    precision: str = "float32",
    videos: Sequence[str | Path] = (),
    tolerance: float | None = None,
    step: bool = False,
) -> ExportRecord:
    """Writes a model for deployment, checked against the model itself; see `kinescan.inference.export.export`.

    Args:
        model: a run's folder, a saved model or a hub name.
        folder: a new one, or that of an earlier export.
        to: "onnx", "openvino", "torch" or "transformers".
        batch: clips that go in at once, also as text; or "dynamic".
        num_frames: of a clip; by default the model's.
        precision: what the file computes in.
        videos: files or folders to compare on.
        tolerance: how far logits may be off, as a fraction of the largest.
        step: export one step of a stream, with its state as inputs and outputs.

    Raises:
        ConfigError: an argument is wrong.
        ExportError: the model cannot be exported, or the file differs from it.
        CheckpointError: the model cannot be read.
        DependencyError: a package is not installed.
    """
    # Names of formats and precisions are checked by `export`, which says what there is.
    options: Any = {"to": to, "batch": _batch(batch), "precision": precision}
    found = model_folder(model, hint="kinescan export RUN FOLDER")
    return export(found, folder, num_frames=num_frames, videos=videos, tolerance=tolerance, step=step, **options)


def _batch(given: int | str) -> int | str:
    if isinstance(given, int) or given == "dynamic":
        return given
    if not given.isdecimal():
        raise ConfigError(f"batch must be 1 or more, or 'dynamic', got {given!r}.")
    return int(given)
