from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kinescan.data.clips import video_files
from kinescan.data.video import Limits
from kinescan.inference.model_source import resolve_model
from kinescan.inference.predictor import Prediction, predict
from kinescan.models.classifier import VideoClassifier
from kinescan.runs.folder import model_folder
from kinescan.runs.limits import chosen_limits
from kinescan.runtime.device import choose_device


@dataclass(frozen=True, kw_only=True)
class PredictionJob:
    """A model and the files to predict, found and opened before the first prediction.

    Attributes:
        model: on its device.
        files: in the order of their predictions.
        limits: what one file may take.
    """

    model: VideoClassifier
    files: list[Path]
    limits: Limits

    def run(
        self,
        *,
        views: str | None = None,
        top: int = 5,
        explain_folder: str | Path | None = None,
        allow_short: bool = False,
        on_prediction: Callable[[Prediction], None] | None = None,
    ) -> list[Prediction]:
        """One prediction a file; see `predict` for the arguments and what is raised."""
        return predict(
            self.model,
            self.files,
            views=views,
            top=top,
            explain_folder=explain_folder,
            limits=self.limits,
            allow_short=allow_short,
            on_prediction=on_prediction,
        )


def prepare_prediction(
    paths: Sequence[str | Path],
    *,
    model: str | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    allow_code: bool = False,
) -> PredictionJob:
    """Opens the model and finds the files.

    Args:
        paths: video files, and folders of them.
        model: a run's folder, a saved or exported model, or a hub name; None for the newest run.
        overrides: see `chosen_limits`.
        device: "auto" or the name of one.
        allow_code: open an exported file that may run code of its own; see `load_exported`.

    Raises:
        ConfigError: no model was given, no path, no such device, or a setting is wrong.
        CheckpointError: the model cannot be read.
    """
    limits = chosen_limits(overrides)
    resolved = resolve_model(model_folder(model, hint="--model RUN"), choose_device(device), allow_code=allow_code)
    return PredictionJob(model=resolved, files=video_files(paths), limits=limits)
