from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kinescan import runs
from kinescan.cli.options import json_option, settings_option
from kinescan.cli.output import FAILED, JsonList, print_json, reported
from kinescan.cli.own_modules import OwnModules, import_own_modules
from kinescan.cli.terminal import Table, line_limit, print_text, shown_length
from kinescan.errors import ConfigError
from kinescan.runtime.counter import Counter
from kinescan.runtime.quantities import percent
from kinescan.runtime.signals import Interruption

if TYPE_CHECKING:
    from kinescan.inference.predictor import Prediction
    from kinescan.inference.segments import VideoEvents
    from kinescan.models.classifier import VideoClassifier
    from kinescan.runs.predict import PredictionJob

EXAMPLES = (
    "kinescan predict a.mp4 --model runs/own_videos_cpu",
    "kinescan predict a.mp4 folder/ --model runs/own_videos_cpu --top 5 --json",
    "kinescan predict recordings/ --segments --output events.csv",
)
HEADER = ("file", "class", "score", "time")
EVENT_HEADER = ("file", "class", "start", "end", "peak")
EVENT_WIDTHS = (len("10000.00 s"), len("10000.00 s"), len("100.0 %"))
"""Of start, end and peak."""
WIDTHS = (len("100.0 %"), len("10.00 s"))
"""Of score and time."""

Model = Annotated[
    str | None,
    typer.Option(
        help="A run's folder, a saved or exported model, a hub name, or motion. By default the newest run or else "
        "motion, which comes with kinescan."
    ),
]


@reported
def command(
    paths: Annotated[
        list[str], typer.Argument(help="Video files, folders of them, and addresses (https://..., s3://...).")
    ],
    model: Model = None,
    settings: Annotated[
        list[str],
        settings_option(
            "data.max_pixels or data.timeout_seconds of a file; evaluation.views=8x2x3 (frames x clips x crops); "
            "predict.precision=bfloat16, predict.videos_per_batch=4; "
            "still.pixel_threshold=4 (patches that stand still are not computed again); "
            "events.on=0.6, events.least_seconds=0.5, ... or events=RULES.toml; events=decoded decides each frame of a "
            "file with those before and after it, without thresholds (decoding.mean_seconds=5)."
        ),
    ] = [],  # noqa: B006
    top: Annotated[int, typer.Option(help="How many classes to name.")] = 5,
    views: Annotated[str | None, typer.Option(hidden=True, help="As --set evaluation.views.")] = None,
    segments: Annotated[
        bool, typer.Option("--segments", help="Name what happens from when to when; for models that answer for frames.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="With --segments: a file to write, too: .csv, .json or .jsonl. With --engine: the folder of results."
        ),
    ] = None,
    engine: Annotated[
        Literal["ray"] | None,
        typer.Option(
            help="ray: predict lists (a path a line) and folders by Ray Data, into Parquet files in --output; "
            "--set ray.workers=8, ray.address=auto, ray.cpus=2, ray.gpus=1."
        ),
    ] = None,
    explain: Annotated[Path | None, typer.Option(help="Folder for pictures of what moved and what changed.")] = None,
    allow_short: Annotated[
        bool, typer.Option("--allow-short", help="Use what can be decoded of cut or damaged files.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Open a model of torch.export (.pt2), which may run code of its own.")
    ] = False,
    modules: OwnModules = [],  # noqa: B006
    as_json: Annotated[bool, json_option("Print predictions as JSON.")] = False,
) -> None:
    """Name the classes of video files; each prediction is printed as soon as it is made."""
    import_own_modules(modules)
    if views is not None:
        settings = [*settings, f"evaluation.views={views}"]
    if engine is not None:
        _by_ray(
            paths,
            output,
            model=model,
            overrides=settings,
            top=top,
            device=device,
            allow_short=allow_short,
            modules=modules,
            unusable={"--segments": segments, "--explain": explain is not None, "--allow-code": allow_code},
            as_json=as_json,
        )
        return
    if output is not None:
        if not segments:
            raise ConfigError("--output is for events: give --segments, too. For predictions redirect --json.")
        runs.segments.check_output(output)
    job = runs.predict.prepare_prediction(
        paths, model=model, overrides=settings, device=device, allow_code=allow_code, segments=segments
    )
    # SIGTERM ends it as Ctrl-C does: with whole lines
    with Interruption() as stop:
        stop.immediate = True
        with JsonList() if as_json else nullcontext() as entries, Counter("predicting", "videos") as counter:
            counter.update(0, len(job.files))
            if segments:
                errors = _show_events(job, entries, counter, output=output, explain=explain, allow_short=allow_short)
            else:
                errors = _show_classes(job, entries, counter, top=top, explain=explain, allow_short=allow_short)
    _end_with(errors)


def _show_events(
    job: "PredictionJob",
    entries: JsonList | None,
    counter: Counter,
    *,
    output: Path | None,
    explain: Path | None,
    allow_short: bool,
) -> list[str | None]:
    show = _EventRows(job.model, job.names).add

    def add(video: "VideoEvents") -> None:
        show(video) if entries is None else entries.add(video.to_plain())
        counter.update(counter.num_done + 1, len(job.files))

    videos = job.find_events(output=output, explain_folder=explain, allow_short=allow_short, on_video=add)
    return [video.error for video in videos]


def _show_classes(
    job: "PredictionJob",
    entries: JsonList | None,
    counter: Counter,
    *,
    top: int,
    explain: Path | None,
    allow_short: bool,
) -> list[str | None]:
    rows = _Rows(job.model, job.names)
    errors: list[str | None] = []
    for prediction in job.run(top=top, explain_folder=explain, allow_short=allow_short):
        if entries is None:
            rows.add(prediction)
        else:
            entries.add(asdict(prediction))
        errors.append(prediction.error)
        counter.update(len(errors), len(job.files))
    return errors


def _by_ray(
    paths: list[str],
    output: Path | None,
    *,
    unusable: dict[str, bool],
    as_json: bool,
    **options: Any,
) -> None:
    wrong = [flag for flag, is_given in unusable.items() if is_given]
    if wrong:
        raise ConfigError(f"--engine takes no {', '.join(wrong)}. Leave it out.")
    if output is None:
        raise ConfigError("--engine needs --output FOLDER, where its Parquet files go.")
    with Interruption() as stop:
        stop.immediate = True
        found = runs.predict_ray.predict_paths(paths, output, **options)
    if as_json:
        print_json(found.to_json())
    else:
        print_text(
            [
                f"{found.folder}: {found.num_rows} rows in {found.num_parts} files, {found.num_failed} of them with a "
                f"reason instead of a prediction, {found.seconds:.1f} s",
                *([f"{found.num_skipped} files were there already"] if found.num_skipped else []),
            ]
        )
    if found.num_failed == found.num_rows:
        raise typer.Exit(FAILED)


def _end_with(errors: list[str | None]) -> None:
    if all(error is not None for error in errors):
        raise typer.Exit(FAILED)


class _EventRows:
    """A table with a row an event, which grows with every file."""

    def __init__(self, model: "VideoClassifier", files: list[str]) -> None:
        longest = [max(map(shown_length, names)) for names in (files, model.class_names)]
        self._table = Table(EVENT_HEADER, (*longest, *EVENT_WIDTHS), limit=line_limit())
        self._begun = False

    def add(self, video: "VideoEvents") -> None:
        if not self._begun:
            self._table.print_header()
            self._begun = True
        if video.error:
            print_text([f"{video.path}: {video.error}"])
        elif not video.events:
            print_text([f"{video.path}: no events in {video.end_seconds:.2f} s"])
        for told in video.events:
            event = told.update.event
            times = f"{event.start_seconds:.2f} s", f"{event.end_seconds:.2f} s"
            self._table.print_row((video.path, event.label, *times, percent(event.peak_score)))


class _Rows:
    """A table that grows with every prediction."""

    def __init__(self, model: "VideoClassifier", files: list[str]) -> None:
        longest = [max(map(shown_length, names)) for names in (files, model.class_names)]
        self._table = Table(HEADER, (*longest, *WIDTHS), limit=line_limit())
        self._begun = False

    def add(self, prediction: "Prediction") -> None:
        if not self._begun:
            self._table.print_header()
            self._begun = True
        if prediction.error:
            print_text([f"{prediction.path}: {prediction.error}"])
        for label, score in zip(prediction.labels, prediction.scores, strict=True):
            self._table.print_row((prediction.path, label, f"{percent(score)}", f"{prediction.seconds:.2f} s"))
