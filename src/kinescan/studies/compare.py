"""Any number of finished runs side by side: those that differ in their seed alone are one row."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinescan.config import RunConfig, flat_settings
from kinescan.data.provenance import RunVideos, read_run_videos
from kinescan.errors import ConfigError
from kinescan.evaluation.temporal.report import TASK
from kinescan.profiling.cost import training_flops
from kinescan.runs.folder import recipe_of
from kinescan.runtime.escaping import to_json
from kinescan.runtime.files import read_json_object
from kinescan.runtime.output_folder import prepare_output
from kinescan.runtime.run_folder import REPORT_FILE, RunFolder
from kinescan.runtime.urls import refuse_url
from kinescan.settings import to_plain
from kinescan.studies.curves import read_curves
from kinescan.studies.job import DONE, RunRecord
from kinescan.studies.plan import NEUTRAL
from kinescan.studies.result import StudyResult
from kinescan.studies.result_files import save_result
from kinescan.studies.study import DataEntry, Row, Study

_MOST_NAMED = 3
_LETTERS = 80
_SCORES = ("top1", "top5", "mean_class_accuracy", "calibration_error", "loss")


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A finished run, as its folder holds it."""

    folder: Path
    config: RunConfig
    report: Mapping[str, Any]
    videos: RunVideos | None
    pool: str
    settings: Mapping[str, Any]


def compare_runs(runs: Sequence[str | Path], *, output: str | Path | None = None) -> StudyResult:
    """The final reports of runs, as the table of a study: a row for the runs that differ in their seed alone.

    A row is named by the settings in which it differs from the others; the first run's row is the base. Runs on other
    videos stand in a table of their own.

    Args:
        runs: folders of runs.
        output: folder for study.json, study.md, the tables and curves.png; by default nothing is written.

    Raises:
        ConfigError: a folder holds no run, or one without a report; two runs have the same settings and seed; or the
            output cannot be written.
    """
    if not runs:
        raise ConfigError("no run was named. Name folders of runs: kinescan compare RUN RUN ...")
    found = [_read(Path(run)) for run in runs]
    rows = _rows(found)
    data = _data(found)
    _refuse_twice(found, rows)
    settings = {name: run.settings for run in found for name in [rows[_key(run.settings)]]}
    different = _different([run.settings for run in found])
    study = Study(
        name="comparison",
        title=f"{len(found)} runs",
        recipe={"model": found[0].config.model.name},
        rows=tuple(
            Row(name=name, settings={key: own[key] for key in different if own.get(key) is not None})
            for name, own in settings.items()
        ),
        seeds=tuple(sorted({run.config.seed for run in found})),
        data=tuple(DataEntry(name=name) for name in data.values()) if len(data) > 1 else (),
    )
    records = [_record(run, rows[_key(run.settings)], data[run.pool] if len(data) > 1 else "") for run in found]
    result = StudyResult(
        study=study,
        output=Path(output or "."),
        code=", ".join(dict.fromkeys(record.code for record in records)),
        runs=tuple(records),
        num_planned=len(records),
        failed={},
        notes=tuple(_notes(found)),
    )
    if output is not None:
        prepare_output(output)
        save_result(result)
    return result


def _read(folder: Path) -> _Run:
    run = RunFolder(folder)
    refuse_url(folder, "Copy the run's folder to this machine.")
    if not run.recipe.is_file():
        raise ConfigError(f"{folder} is not the folder of a run: it holds no {run.recipe.name}. Name runs.")
    file = folder / REPORT_FILE
    if not file.is_file():
        raise ConfigError(
            f"{folder} holds no {REPORT_FILE}: the run is not finished. Continue it (kinescan train {folder} --resume) "
            "or leave it out."
        )
    config = recipe_of(folder)
    if config is None:
        raise ConfigError(f"{run.recipe} is empty, so that the run's settings are not known. Leave it out.")
    videos = read_run_videos(folder)
    flat = flat_settings(to_plain(config))
    settings = {key: value for key, value in flat.items() if key not in (*NEUTRAL, "seed")}
    return _Run(
        folder=folder,
        config=config,
        report=read_json_object(file),
        videos=videos,
        pool=config.data.train if videos is None else _pool(videos),
        settings=settings,
    )


def _pool(videos: RunVideos) -> str:
    """A digest of all videos of a run, however they are divided."""
    everything = sorted(
        (video.video_id, video.fingerprint) for video in (*videos.train, *videos.validation, *videos.held_out)
    )
    return hashlib.sha256(to_json(everything).encode()).hexdigest()[:16]


def _key(settings: Mapping[str, Any]) -> str:
    return to_json(sorted((key, to_json(value)) for key, value in settings.items()))


def _different(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings in which runs differ, in the order of the recipe."""
    keys = dict.fromkeys(key for own in settings for key in own)
    return [key for key in keys if len({to_json(own.get(key)) for own in settings}) > 1]


def _rows(runs: Sequence[_Run]) -> dict[str, str]:
    """Settings -> the name of their row; each name once."""
    different = _different([run.settings for run in runs])
    names: dict[str, str] = {}
    for run in runs:
        key = _key(run.settings)
        if key not in names:
            names[key] = _unique(_named(run, different), names.values())
    return names


def _named(run: _Run, different: Sequence[str]) -> str:
    if not different:
        return run.config.model.name
    told = [f"{key.rpartition('.')[2]}={_shown(run.settings.get(key))}" for key in different]
    more = f" and {len(told) - _MOST_NAMED} more" if len(told) > _MOST_NAMED else ""
    return f"{', '.join(told[:_MOST_NAMED])}{more}"[:_LETTERS]


def _shown(value: Any) -> str:
    return "default" if value is None else value if isinstance(value, str) else to_json(value)


def _unique(name: str, taken: Any) -> str:
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name} ({number})"
    return found


def _data(runs: Sequence[_Run]) -> dict[str, str]:
    """Videos -> what they are called; each name once."""
    names: dict[str, str] = {}
    for run in runs:
        if run.pool not in names:
            names[run.pool] = _unique(str(run.report.get("data", run.config.data.train))[:_LETTERS], names.values())
    return names


def _refuse_twice(runs: Sequence[_Run], rows: Mapping[str, str]) -> None:
    """Passes where each run has a seed of its own within its row and data.

    Raises:
        ConfigError: two runs have the same settings, videos and seed.
    """
    seen: dict[tuple[str, str, int], Path] = {}
    for run in runs:
        same = (rows[_key(run.settings)], run.pool, run.config.seed)
        if same in seen:
            raise ConfigError(
                f"{seen[same]} and {run.folder} have the same settings, videos and seed ({run.config.seed}): they "
                "count once. Leave one out."
            )
        seen[same] = run.folder


def _record(run: _Run, row: str, data: str) -> RunRecord:
    report, curves = run.report, read_curves(run.folder)
    environment, cost = report.get("environment"), report.get("cost")
    known: dict[str, Any] = {}
    if isinstance(cost, dict) and run.videos is not None and report.get("task") != TASK:
        macs = cost.get("macs_with_attention")
        known = {"macs": macs, "num_parameters": cost.get("num_parameters"), "num_trained": cost.get("num_trained")}
        if isinstance(macs, int):
            num_clips = len(run.videos.train) * run.config.data.passes(len(run.videos.train))
            known["training_flops"] = training_flops(macs, num_clips=num_clips, num_epochs=len(curves.epochs))
    environment = environment if isinstance(environment, dict) else {}
    return RunRecord(
        row=row,
        data=data,
        seed=run.config.seed,
        status=DONE,
        scores=_scores(report),
        folder=str(run.folder),
        key=hashlib.sha256(_key(run.settings).encode()).hexdigest()[:8],
        code=str(environment.get("commit") or environment.get("kinescan") or "unknown"),
        data_digest=run.pool,
        num_training=0 if run.videos is None else len(run.videos.train),
        train_seconds=round(curves.seconds, 3),
        epochs=len(curves.epochs),
        environment=environment,
        notes=[str(note) for note in report.get("notes", [])],
        **known,
    )


def _scores(report: Mapping[str, Any]) -> dict[str, float]:
    if report.get("task") == TASK:
        frames, alarms = report.get("frames", {}), report.get("alarms", {})
        decoded = (report.get("decoded") or {}).get("segmentation") or {}  # reports of older versions have none
        f1 = decoded.get("f1", {}).get("50")
        found = {
            "frame_map": frames.get("map"),
            "calibrated_frame_map": frames.get("calibrated_map"),
            "decoded_f1_at_50": f1 / 100 if isinstance(f1, int | float) else None,
            "missed_ratio": alarms.get("missed_ratio"),
            "false_alarms_per_hour": alarms.get("false_alarms_per_hour"),
        }
    else:
        found = {name: report.get(name) for name in _SCORES}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def _notes(runs: Sequence[_Run]) -> Iterator[str]:
    views = {str(run.report.get("views")) for run in runs}
    if len(views) > 1:
        yield f"The runs were scored with different views ({', '.join(sorted(views))}): part of a gap may be theirs."
    held_out: dict[str, dict[frozenset[str], list[int]]] = defaultdict(dict)
    for run in runs:
        if run.videos is not None:
            ids = frozenset(video.video_id for video in run.videos.held_out)
            held_out[run.pool].setdefault(ids, []).append(run.config.seed)
    if any(len(sets) > 1 for sets in held_out.values()):
        shared = [seed for sets in held_out.values() for seeds in sets.values() for seed in set(seeds)]
        by_seed = len(shared) == len(set(shared))
        yield (
            "Runs of different seeds held out different videos: the spread over seeds holds that of the videos, too."
            if by_seed
            else "The runs held out different videos of the same data: part of a gap may come from them."
        )
