from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kinescan.data.clips import video_files, video_inputs
from kinescan.data.video import Limits
from kinescan.data.video.given import input_name
from kinescan.errors import ConfigError
from kinescan.events.decoding import DecodingRules
from kinescan.fields import check_types
from kinescan.inference.model_source import resolve_model
from kinescan.inference.precision import Precision
from kinescan.inference.predictor import Prediction, predict_iter
from kinescan.inference.segments import VideoEvents
from kinescan.models.classifier import VideoClassifier
from kinescan.runs.events import EventPlan, plan_events
from kinescan.runs.folder import model_folder
from kinescan.runs.limits import chosen_limits
from kinescan.runs.overrides import take_table
from kinescan.runs.segments import find_events
from kinescan.runs.still import skip_in, still_settings
from kinescan.runtime.device import choose_device
from kinescan.runtime.urls import mask_url

DECODED = "events=decoded"
"""The override that asks for `decode_events`."""
LIST_SUFFIXES = (".txt", ".csv", ".tsv")
"""Of lists of videos; see `kinescan.runs.predict_ray.listed_paths`."""


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """How videos go through the model.

    Attributes:
        precision: "bfloat16" or "float16" computes under autocast.
        videos_per_batch: how many videos are read before their views go through the model together.
    """

    precision: Precision = "float32"
    videos_per_batch: int = 1

    def __post_init__(self) -> None:
        check_types(self)
        if self.videos_per_batch < 1:
            raise ConfigError(f"predict.videos_per_batch must be at least 1, got {self.videos_per_batch}.")


@dataclass(frozen=True, kw_only=True)
class PredictionJob:
    """A model and the files to predict, found and opened before the first prediction.

    Attributes:
        model: on its device.
        files: in the order of their predictions.
        limits: what one file may take.
        folder: where the model came from.
        views: frames x clips x crops to average over; None for those of the model.
        plan: what was reported about the rules of events.
        decoding: what is assumed of time where whole videos are decoded; None where they are not.
        settings: how videos go through the model.
    """

    model: VideoClassifier
    files: list[str]
    limits: Limits
    folder: str = ""
    views: str | None = None
    plan: EventPlan = field(default_factory=EventPlan)
    decoding: DecodingRules | None = None
    settings: PredictSettings = field(default_factory=PredictSettings)

    @property
    def names(self) -> list[str]:
        """What the files are called in results."""
        return [input_name(file) for file in self.files]

    def run(
        self,
        *,
        top: int = 5,
        explain_folder: str | Path | None = None,
        allow_short: bool = False,
    ) -> Iterator[Prediction]:
        """One prediction a file, as it is made; see `predict` for the arguments and what is raised."""
        return predict_iter(
            self.model,
            self.files,
            views=self.views,
            top=top,
            explain_folder=explain_folder,
            limits=self.limits,
            allow_short=allow_short,
            precision=self.settings.precision,
            videos_per_batch=self.settings.videos_per_batch,
        )

    def find_events(
        self,
        *,
        output: str | Path | None = None,
        explain_folder: str | Path | None = None,
        allow_short: bool = False,
        on_video: Callable[[VideoEvents], None] | None = None,
    ) -> list[VideoEvents]:
        """The events of each file; see `kinescan.runs.segments.find_events` for the arguments and what is raised."""
        return find_events(
            self.model,
            self.folder,
            [Path(file) for file in self.files],
            self.plan,
            decoding=self.decoding,
            output=output,
            explain_folder=explain_folder,
            limits=self.limits,
            allow_short=allow_short,
            on_video=on_video,
        )


def chosen_views(overrides: Sequence[str]) -> str | None:
    """Frames x clips x crops that `--set evaluation.views=...` says.

    Args:
        overrides: those of `evaluation.views` alone; the last one counts.

    Returns:
        None where there is none: the model's own views are taken, as wherever else it predicts.
    """
    return overrides[-1].partition("=")[2] if overrides else None


def prepare_prediction(
    paths: Sequence[str | Path],
    *,
    model: str | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    allow_code: bool = False,
    segments: bool = False,
) -> PredictionJob:
    """Opens the model and finds the files.

    Args:
        paths: video files, folders of them, and addresses.
        model: a run's folder, a saved or exported model, or a hub name; None for the newest run, or else
            the motion model that comes with the package.
        overrides: see `chosen_limits`; "evaluation.views=8x2x3"; and for events "events.on=0.6" and the like, or
            "events=FILE" with a file of rules, or "events=decoded" for `decode_events`, with
            "decoding.mean_seconds=5" and the like, for `DecodingRules`; "still.pixel_threshold=4" and the like, for
            `kinescan.models.still.SkipUnchanged`; "predict.precision=bfloat16" and the like, for `PredictSettings`.
        device: "auto" or the name of one.
        allow_code: open an exported file that may run code of its own; see `load_exported`.
        segments: the files are for `find_events`, which fetches none.

    Raises:
        ConfigError: no model was given, no path, no such device, or a setting is wrong.
        CheckpointError: the model cannot be read.
    """
    settings, overrides = take_table("predict", PredictSettings, overrides)
    skip, overrides = still_settings(overrides)
    decoding, overrides = _decoding(overrides)
    lists = [str(path) for path in paths if Path(str(path)).suffix.lower() in LIST_SUFFIXES]
    if lists:
        raise ConfigError(
            f"{mask_url(lists[0])} is a list, not a video. Predict its videos with --engine ray --output FOLDER "
            "(pip install 'kinescan[ray]'), also on this machine alone; or name their folder."
        )
    # "events=FILE" beside "events.on=0.6" is not a nested mapping
    of_events = [override for override in overrides if override.partition("=")[0].split(".")[0] == "events"]
    of_views = [override for override in overrides if override.partition("=")[0] == "evaluation.views"]
    if not segments and (of_events or decoding):
        raise ConfigError("settings of events are for what happens from when to when: give --segments, too.")
    limits = chosen_limits([override for override in overrides if override not in (*of_events, *of_views)])
    files = [value for key, _, value in (override.partition("=") for override in of_events) if key == "events"]
    plan = plan_events(files, [override for override in of_events if override.startswith("events.")])
    if plan.files or plan.webhooks:
        raise ConfigError(
            f"{plan.where}: files and webhooks are told by kinescan stream; here --output FILE is written."
        )
    folder = model_folder(model, hint="--model RUN", or_shipped=True)
    resolved = resolve_model(folder, choose_device(device), allow_code=allow_code)
    skip_in(resolved, skip)
    views = chosen_views(of_views)
    found = [str(file) for file in video_files(paths)] if segments else [str(video) for _, video in video_inputs(paths)]
    return PredictionJob(
        model=resolved,
        files=found,
        limits=limits,
        folder=folder,
        views=views,
        plan=plan,
        decoding=decoding,
        settings=settings,
    )


def _decoding(overrides: Sequence[str]) -> tuple[DecodingRules | None, list[str]]:
    """The times of `events=decoded`, where it was given, and the overrides that belong to others.

    Raises:
        ConfigError: there are thresholds beside it, times without it, or a time makes no sense.
    """
    rules, others = take_table("decoding", DecodingRules, overrides)
    left = [override for override in others if override.replace(" ", "") != DECODED]
    if len(left) == len(others):
        if len(others) < len(overrides):
            raise ConfigError(f"settings of decoding go with --set {DECODED}. Give that, too, or leave them out.")
        return None, others
    of_rules = [override for override in left if override.partition("=")[0].split(".")[0].strip() == "events"]
    if of_rules:
        raise ConfigError(
            f"{DECODED} looks at no thresholds, so that {of_rules[0]} changes nothing. Leave one of them out; its own "
            "settings are decoding.mean_seconds and decoding.correlation_seconds."
        )
    return rules, left
