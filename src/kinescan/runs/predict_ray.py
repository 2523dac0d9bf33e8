"""Predictions for a long list of videos by Ray Data, in parts that are written once."""

import csv
import hashlib
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kinescan.data.clips import video_files
from kinescan.data.video import Limits
from kinescan.errors import ConfigError, DependencyError
from kinescan.inference.batch_predictor import BatchPredictor
from kinescan.models.still import SkipUnchanged
from kinescan.runs.folder import model_folder
from kinescan.runs.limits import chosen_limits
from kinescan.runs.overrides import take_table
from kinescan.runs.predict import LIST_SUFFIXES, PredictSettings, chosen_views
from kinescan.runs.ray_cluster import EXTRA, RaySettings, check_room, check_versions, start
from kinescan.runs.still import skip_in, still_settings
from kinescan.runtime.addresses import address_of
from kinescan.runtime.atomic_write import atomic_write, write_text
from kinescan.runtime.counter import Counter
from kinescan.runtime.files import read_json_object, read_text
from kinescan.runtime.optional_package import optional_package
from kinescan.runtime.output_folder import prepare_output
from kinescan.runtime.own_modules import import_own_module
from kinescan.runtime.urls import mask_urls
from kinescan.version import __version__

logger = logging.getLogger(__name__)

JOB_FILE, WEIGHTS = "job.json", "weights"
_PART = re.compile(r"part-(\d{6,})\.parquet")
_MOST_BYTES = 4 * 2**30
_MOST_RETRIES, _MOST_FAILED_PARTS = 3, 8
"""How often a part is begun anew whose worker ended, and how many parts may come to nothing before the others stop."""


@dataclass(frozen=True, kw_only=True)
class RayReport:
    """What was predicted.

    Attributes:
        folder: of the Parquet files.
        num_rows: in all.
        num_failed: rows with a reason instead of a prediction.
        num_parts: files.
        num_skipped: parts that were there already.
        seconds: how long it took.
    """

    folder: str
    num_rows: int
    num_failed: int
    num_parts: int
    num_skipped: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)


def listed_paths(paths: Sequence[str | Path]) -> list[str]:
    """The videos that are named: files, folders of them, and lists with a path a line (.txt, .csv, .tsv).

    Of a list, every line that is not empty and no remark is a row, whatever is wrong with it; of several columns the
    one called path, video or file counts, or the first. Relative paths are relative to the list.

    Raises:
        ConfigError: a list cannot be read, or nothing is named.
    """
    found: list[str] = []
    for path in paths:
        if Path(path).suffix.lower() in LIST_SUFFIXES:
            found += _of_list(path)
        else:
            found += map(str, video_files(path))
    if not found:
        raise ConfigError("the list names no video. Write one path a line.")
    return found


def _of_list(path: str | Path) -> Iterator[str]:
    file = Path(path)
    text = read_text(path, max_bytes=_MOST_BYTES).replace("\0", "")
    # only these end a line: a name may hold what str.splitlines takes for an end, too, such as a form feed
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    kept = (line for line in lines if line.strip() and not line.startswith("#"))
    delimiter = {".csv": ",", ".tsv": "\t"}.get(file.suffix.lower())
    column, folder = 0, file.parent
    for number, line in enumerate(kept):
        row = line.split("\t")[:1] if delimiter is None else _cells(line, delimiter)
        names = [cell.strip().lower() for cell in row]
        known = [index for index, name in enumerate(names) if name in ("path", "video", "file", "filename")]
        if number == 0 and known:
            column = known[0]
            continue
        name = row[column].strip() if column < len(row) else ""
        beside = str(folder / name)
        yield name if "://" in name or not name else address_of(beside) or beside


def _cells(line: str, delimiter: str) -> list[str]:
    """Of one line alone: a quote that is not closed takes no lines after it."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:  # a cell longer than the module takes
        return line.split(delimiter)


def predict_by_ray(
    paths: Sequence[str | Path],
    output: str | Path,
    predictor: BatchPredictor,
    settings: RaySettings | None = None,
    *,
    skip: SkipUnchanged | None = None,
    modules: Sequence[str] = (),
) -> RayReport:
    """Predicts all videos by Ray Data, and writes Parquet files of number, path, labels, scores and error.

    The list is cut into parts; each is predicted by one worker and written as one file, aside and then renamed. So a
    worker that is killed is replaced and its part done again, and a second call with the same list, model and settings
    does only the parts that are not there. A row is the same whoever predicts it.

    Args:
        paths: see `listed_paths`.
        output: folder of the files, on this machine; workers send their rows here.
        predictor: what is asked; its model is read by every worker.
        settings: of Ray.
        skip: set on every worker's model: patches that stand still are not computed again.
        modules: of one's own, imported by every worker first.

    Raises:
        DependencyError: ray or pyarrow is not installed.
        ConfigError: nothing is named; the folder holds another job, or predictions of other weights; the cluster is not
            there, has another version of kinescan, or no room for a worker; workers fail for another reason.
    """
    settings, started = settings or RaySettings(), time.monotonic()
    parquet = optional_package("pyarrow.parquet", EXTRA)
    optional_package("ray.data", EXTRA)
    listed = listed_paths(paths)
    folder = prepare_output(output)
    parts = [listed[first : first + settings.part_rows] for first in range(0, len(listed), settings.part_rows)]
    weights = _claim(folder, listed, predictor, settings, skip)
    done = {int(match[1]) for file in folder.iterdir() if (match := _PART.fullmatch(file.name))}
    left = [number for number in range(len(parts)) if number not in done]
    if len(left) < len(parts):
        logger.info("%s: %d of %d parts are there already", folder, len(parts) - len(left), len(parts))
    if left:
        # Ray says on standard output which workers ended; that is for results
        with Counter("predicting", "parts") as progress, redirect_stdout(sys.stderr):
            asked = {number: parts[number] for number in left}
            for number, rows, of_weights in _predicted(asked, (predictor, skip, modules), settings):
                weights = _same_weights(folder, weights, of_weights)
                _write_part(folder, number, number * settings.part_rows, rows)
                done.add(number)
                progress.update(len(done), len(parts))
    missing = set(range(len(parts))) - done
    if missing:
        lost = ", ".join(
            f"{number * settings.part_rows} to {number * settings.part_rows + len(parts[number]) - 1}"
            for number in sorted(missing)
        )
        raise ConfigError(
            f"each worker that was given one of these {len(missing)} parts ended: rows {lost} of the list. What is "
            "done is kept. Where memory is short, ask for fewer ray.workers and run the same command again; else find "
            "the video with kinescan data check, and take it out of the list."
        )
    failed = sum(
        parquet.read_table(folder / _part_name(number), columns=["error"])["error"].drop_null().length()
        for number in range(len(parts))
    )
    return RayReport(
        folder=str(folder),
        num_rows=len(listed),
        num_failed=failed,
        num_parts=len(parts),
        num_skipped=len(parts) - len(left),
        seconds=round(time.monotonic() - started, 2),
    )


def predict_paths(
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    model: str | None = None,
    overrides: Sequence[str] = (),
    top: int = 5,
    device: str = "auto",
    allow_short: bool = False,
    modules: Sequence[str] = (),
) -> RayReport:
    """`predict_by_ray` as the command line asks for it.

    Args:
        paths: see `listed_paths`.
        output: see `predict_by_ray`.
        model: a run's folder, a saved model, or a hub name; None for the newest run, or else
            the motion model that comes with the package.
        overrides: "ray.workers=2" and the like, and those of `kinescan.runs.predict.prepare_prediction` but those of
            events.
        top: how many classes to name.
        device: "auto" or the name of one.
        allow_short: use what can be decoded of cut or damaged files.
        modules: see `predict_by_ray`.

    Raises:
        ConfigError, DependencyError: as for `predict_by_ray`, or a setting is wrong.
    """
    settings, others = take_table("ray", RaySettings, overrides)
    of_model, others = take_table("predict", PredictSettings, others)
    skip, others = still_settings(others)
    if of_model.videos_per_batch != 1:
        raise ConfigError(
            "with --engine each video goes through the model alone, so that its row does not depend on the others. "
            "Leave predict.videos_per_batch out."
        )
    of_views = [override for override in others if override.partition("=")[0] == "evaluation.views"]
    limits = chosen_limits([override for override in others if override not in of_views])
    folder = model_folder(model, hint="--model RUN", or_shipped=True)
    predictor = BatchPredictor(
        os.path.abspath(folder) if os.path.exists(folder) else folder,
        views=chosen_views(of_views),
        top=top,
        device=device,
        limits=limits,
        allow_short=allow_short,
        precision=of_model.precision,
    )
    return predict_by_ray(paths, output, predictor, settings, skip=skip, modules=modules)


def _claim(
    folder: Path,
    listed: Sequence[str],
    predictor: BatchPredictor,
    settings: RaySettings,
    skip: SkipUnchanged | None = None,
) -> str | None:
    """Writes what the folder is for, or compares it with what is wanted.

    Returns:
        Which weights predicted what is there; None where nothing is, or its job does not say.

    Raises:
        ConfigError: it is for something else.
    """
    job = {
        "kinescan": __version__,
        "rows": len(listed),
        "list": hashlib.sha256("\n".join(listed).encode("utf-8", "surrogateescape")).hexdigest(),
        "model": str(predictor.model),
        "views": predictor.views,
        "top": predictor.top,
        "allow_short": predictor.allow_short,
        "limits": asdict(predictor.limits or Limits()),
        "precision": predictor.precision,
        "still": None if skip is None else asdict(skip),
        "part_rows": settings.part_rows,
    }
    file = folder / JOB_FILE
    if not any(_PART.fullmatch(entry.name) for entry in folder.iterdir()):
        # whatever was begun there came to nothing
        write_text(file, json.dumps(job, indent=1) + "\n")
        return None
    if not file.exists():
        raise ConfigError(f"{folder} holds Parquet files of an unknown job. Choose another --output.")
    # older folders have none of these
    older = {"limits": asdict(Limits()), "precision": "float32", "still": None}
    before: dict[str, Any] = {**older, **read_json_object(file)}
    other = [name for name in job if before.get(name) != job[name]]
    if other:
        said = ", ".join(f"{name} was {before.get(name)!r}" for name in other)
        raise ConfigError(f"{folder} holds predictions of another job ({said}). Choose another --output.")
    weights: str | None = before.get(WEIGHTS)
    return weights


def _same_weights(folder: Path, before: str | None, found: str) -> str:
    """Passes weights like those of all other rows; the first are written into the job.

    Raises:
        ConfigError: they are others: the model was trained on, or lies differently on some machine.
    """
    if before is None:
        file = folder / JOB_FILE
        write_text(file, json.dumps({**read_json_object(file), WEIGHTS: found}, indent=1) + "\n")
    elif before != found:
        raise ConfigError(
            f"{folder} holds predictions of other weights: the model has changed since, or is not the same on every "
            "machine. Choose another --output, or give every machine the same model."
        )
    return found


def _part_name(number: int) -> str:
    return f"part-{number:06d}.parquet"


def _write_part(folder: Path, number: int, first: int, rows: Sequence[dict[str, Any]]) -> None:
    arrow, parquet = optional_package("pyarrow", EXTRA), optional_package("pyarrow.parquet", EXTRA)
    texts, numbers = arrow.list_(arrow.string()), arrow.list_(arrow.float64())
    schema = {"number": arrow.int64(), "path": arrow.string(), "labels": texts, "scores": numbers}
    schema["error"] = arrow.string()
    columns = {"number": [first + index for index in range(len(rows))]}
    columns |= {name: [_plain(row[name]) for row in rows] for name in ("path", "labels", "scores", "error")}
    table = arrow.table(columns, schema=arrow.schema(list(schema.items())))
    with atomic_write(folder / _part_name(number)) as aside:
        parquet.write_table(table, aside)


def _plain(value: Any) -> Any:
    """Names may hold bytes that are not UTF-8, which Parquet's texts cannot."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


class _PartPredictor:
    """What a worker of Ray does: the model is opened when it starts, and parts are predicted one by one."""

    def __init__(self, predictor: BatchPredictor, skip: SkipUnchanged | None, modules: Sequence[str]) -> None:
        for module in modules:
            import_own_module(module)
        model = predictor.load()
        skip_in(model, skip)
        self._predictor, self._weights = predictor, model.weights_fingerprint()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        numbers, texts = [], []
        for number, paths in zip(batch["part"], batch["paths"], strict=True):
            numbers.append(int(number))
            texts.append(json.dumps(self._predictor.rows(json.loads(paths))))
        return {"part": numbers, "rows": texts, WEIGHTS: [self._weights] * len(texts)}


def _predicted(
    parts: dict[int, list[str]], arguments: tuple[Any, ...], settings: RaySettings
) -> Iterator[tuple[int, list[dict[str, Any]], str]]:
    """Parts as Ray gives them back, each once: number, rows, and which weights predicted them.

    Args:
        parts: number -> paths.
        arguments: of `_PartPredictor`.
        settings: of Ray.
    """
    ray, data = optional_package("ray", EXTRA), optional_package("ray.data", EXTRA)
    owned = not ray.is_initialized()
    try:
        if owned:
            start(ray, settings)
        check_versions(ray)
        check_room(ray, settings)
        with warnings.catch_warnings():
            # its first use sets options of its own that it calls deprecated
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\.data\.context")
            context = data.DataContext.get_current()
        context.enable_progress_bars = False
        # a video that ends every worker which reads it stops none of the others
        context.max_errored_blocks = _MOST_FAILED_PARTS
        entries = [{"part": number, "paths": json.dumps(paths)} for number, paths in parts.items()]
        # a part a block, and one at a time for each worker: no more than that is lost with it
        parts_of_list = data.from_items(entries, override_num_blocks=len(entries))
        with warnings.catch_warnings():
            # until Ray 2.64 there is no other way to say how often; by its text: other deprecations are to be seen
            warnings.filterwarnings("ignore", message="`ray_remote_args", category=DeprecationWarning)
            answers = parts_of_list.map_batches(
                _PartPredictor,
                fn_constructor_args=arguments,
                batch_size=1,
                compute=data.ActorPoolStrategy(size=settings.workers, max_tasks_in_flight_per_actor=1),
                num_cpus=settings.cpus,
                num_gpus=settings.gpus or None,
                max_task_retries=_MOST_RETRIES,
            )
        seen: set[int] = set()
        for row in answers.iter_rows():
            number = int(row["part"])
            if number not in seen:
                seen.add(number)
                yield number, json.loads(row["rows"]), row[WEIGHTS]
    except (ConfigError, DependencyError):
        raise
    except ray.exceptions.RayError as error:
        said = mask_urls(str(getattr(error, "cause", None) or error).strip().splitlines()[-1])
        raise ConfigError(
            f"Ray's workers failed: {said[:500]}. What is done is kept: correct it and run the same command again."
        ) from error
    finally:
        if owned and ray.is_initialized():
            ray.shutdown()
