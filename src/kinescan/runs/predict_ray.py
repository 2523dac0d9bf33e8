"""Predictions for a long list of videos by Ray Data, in parts that are written once."""

import csv
import hashlib
import importlib
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kinescan.config import parse_overrides
from kinescan.data.clips import video_files
from kinescan.data.video import Limits
from kinescan.errors import ConfigError, DependencyError
from kinescan.fields import check_types
from kinescan.inference.batch_predictor import BatchPredictor
from kinescan.runs.folder import model_folder
from kinescan.runs.limits import chosen_limits
from kinescan.runtime.atomic_write import atomic_write, write_text
from kinescan.runtime.counter import Counter
from kinescan.runtime.error_text import first_line
from kinescan.runtime.files import read_json_object, read_text
from kinescan.runtime.optional_package import optional_package
from kinescan.runtime.output_folder import prepare_output
from kinescan.runtime.urls import mask_urls
from kinescan.settings import build_settings
from kinescan.version import __version__

logger = logging.getLogger(__name__)

JOB_FILE = "job.json"
EXTRA = "ray"
LIST_SUFFIXES = (".txt", ".csv", ".tsv")
_PART = re.compile(r"part-(\d{6,})\.parquet")
_MOST_BYTES = 4 * 2**30
_KNOCK_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """How Ray is used.

    Attributes:
        address: of the cluster, as `ray.init` takes it; empty takes RAY_ADDRESS, or starts Ray on this machine.
        workers: processes that predict, each with the model.
        cpus: of each.
        gpus: of each; may be a fraction.
        part_rows: rows of a part: of what is predicted by one worker, written as one file, and done again where that
            worker is killed in its middle.

    Raises:
        ConfigError: a number is out of range.
    """

    address: str = ""
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    part_rows: int = 128

    def __post_init__(self) -> None:
        check_types(self)
        for name, least in (("workers", 1), ("part_rows", 1), ("cpus", 0), ("gpus", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"ray.{name} must be at least {least}, got {getattr(self, name)}.")


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
    column = 0
    for number, line in enumerate(kept):
        row = line.split("\t")[:1] if delimiter is None else _cells(line, delimiter)
        names = [cell.strip().lower() for cell in row]
        known = [index for index, name in enumerate(names) if name in ("path", "video", "file", "filename")]
        if number == 0 and known:
            column = known[0]
            continue
        name = row[column].strip() if column < len(row) else ""
        yield name if "://" in name or not name else str(file.parent / name)


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

    Raises:
        DependencyError: ray or pyarrow is not installed.
        ConfigError: nothing is named; the folder holds another job; the cluster is not there, or has another version of
            kinescan; workers fail for another reason.
    """
    settings, started = settings or RaySettings(), time.monotonic()
    parquet = optional_package("pyarrow.parquet", EXTRA)
    optional_package("ray.data", EXTRA)
    listed = listed_paths(paths)
    folder = prepare_output(output)
    parts = [listed[first : first + settings.part_rows] for first in range(0, len(listed), settings.part_rows)]
    _claim(folder, listed, predictor, settings)
    done = {int(match[1]) for file in folder.iterdir() if (match := _PART.fullmatch(file.name))}
    left = [number for number in range(len(parts)) if number not in done]
    if len(left) < len(parts):
        logger.info("%s: %d of %d parts are there already", folder, len(parts) - len(left), len(parts))
    if left:
        with Counter("predicting", "parts") as progress:
            for number, rows in _predicted({number: parts[number] for number in left}, predictor, settings):
                _write_part(folder, number, number * settings.part_rows, rows)
                done.add(number)
                progress.update(len(done), len(parts))
    missing = set(range(len(parts))) - done
    if missing:
        raise ConfigError(f"{len(missing)} parts did not come back from Ray. Run the same command again: it does them.")
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
) -> RayReport:
    """`predict_by_ray` as the command line asks for it.

    Args:
        paths: see `listed_paths`.
        output: see `predict_by_ray`.
        model: a run's folder, a saved model, or a hub name; None for the newest run, or else
            the motion model that comes with the package.
        overrides: "ray.workers=2" and the like, "evaluation.views=8x2x3", and those of `chosen_limits`.
        top: how many classes to name.
        device: "auto" or the name of one.
        allow_short: use what can be decoded of cut or damaged files.

    Raises:
        ConfigError, DependencyError: as for `predict_by_ray`, or a setting is wrong.
    """
    of_ray = [override for override in overrides if override.startswith("ray.")]
    of_views = [override for override in overrides if override.partition("=")[0] == "evaluation.views"]
    limits = chosen_limits([override for override in overrides if override not in (*of_ray, *of_views)])
    settings = build_settings(RaySettings, parse_overrides(of_ray).get("ray", {}), where="ray")
    folder = model_folder(model, hint="--model RUN", or_shipped=True)
    predictor = BatchPredictor(
        os.path.abspath(folder) if os.path.exists(folder) else folder,
        views=of_views[-1].partition("=")[2] if of_views else None,
        top=top,
        device=None if device == "auto" else device,
        limits=limits,
        allow_short=allow_short,
    )
    return predict_by_ray(paths, output, predictor, settings)


def _claim(folder: Path, listed: Sequence[str], predictor: BatchPredictor, settings: RaySettings) -> None:
    """Writes what the folder is for, or compares it with what is wanted.

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
        "part_rows": settings.part_rows,
    }
    file = folder / JOB_FILE
    if not any(_PART.fullmatch(entry.name) for entry in folder.iterdir()):
        # whatever was begun there came to nothing
        write_text(file, json.dumps(job, indent=1) + "\n")
        return
    if not file.exists():
        raise ConfigError(f"{folder} holds Parquet files of an unknown job. Choose another --output.")
    before = {"limits": asdict(Limits()), **read_json_object(file)}  # older folders have none
    other = [name for name in job if before.get(name) != job[name]]
    if other:
        said = ", ".join(f"{name} was {before.get(name)!r}" for name in other)
        raise ConfigError(f"{folder} holds predictions of another job ({said}). Choose another --output.")


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
    """Names may hold bytes that are no UTF-8, which Parquet's texts cannot."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


class _PartPredictor:
    """What an actor of Ray does with a part."""

    def __init__(self, predictor: BatchPredictor) -> None:
        self._predictor = predictor

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        numbers, texts = [], []
        for number, paths in zip(batch["part"], batch["paths"], strict=True):
            numbers.append(int(number))
            texts.append(json.dumps(self._predictor.rows(json.loads(paths))))
        return {"part": numbers, "rows": texts}


def _predicted(
    parts: dict[int, list[str]], predictor: BatchPredictor, settings: RaySettings
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Parts as Ray gives them back, each once."""
    ray, data = optional_package("ray", EXTRA), optional_package("ray.data", EXTRA)
    owned = not ray.is_initialized()
    try:
        if owned:
            _start(ray, settings)
        _check_versions(ray)
        data.DataContext.get_current().enable_progress_bars = False
        entries = [{"part": number, "paths": json.dumps(paths)} for number, paths in parts.items()]
        blocks = min(len(entries), 8 * settings.workers)
        answers = data.from_items(entries, override_num_blocks=blocks).map_batches(
            _PartPredictor,
            fn_constructor_args=(predictor,),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=settings.workers),
            num_cpus=settings.cpus,
            num_gpus=settings.gpus or None,
        )
        seen: set[int] = set()
        for row in answers.iter_rows():
            number = int(row["part"])
            if number not in seen:
                seen.add(number)
                yield number, json.loads(row["rows"])
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


def _start(ray: Any, settings: RaySettings) -> None:
    """Joins the cluster, or starts Ray here.

    Raises:
        ConfigError: the cluster is not there, or refuses.
    """
    address = settings.address or os.environ.get("RAY_ADDRESS", "")
    try:
        _knock(address)
        ray.init(
            address=address or "local",
            configure_logging=False,
            log_to_driver=False,
            # of a cluster that runs already, Ray refuses any answer to this
            include_dashboard=None if address else False,
        )
    except Exception as error:  # Ray raises plain ones, too, as where a busy machine does not start it in time
        line = mask_urls(first_line(error))[:300]
        if not address:
            raise ConfigError(
                f"Ray did not start on this machine ({line}). Where other programs keep it busy, wait for them and run "
                "the same command again; what is done is kept."
            ) from error
        raise ConfigError(
            f"no cluster of Ray answers at {address} ({line}). Start one with ray start --head, or leave ray.address "
            "out, and RAY_ADDRESS unset, to start Ray here."
        ) from error


def _knock(address: str) -> None:
    """Passes where something listens at HOST:PORT or ray://HOST:PORT; Ray itself would try for minutes.

    Raises:
        OSError: nothing does.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()


def _check_versions(ray: Any) -> None:
    """Every machine of the cluster has this version of kinescan.

    Raises:
        ConfigError: one has another, or none.
    """

    def version() -> str:
        # sent by value: it runs where kinescan is not installed, too
        try:
            return str(importlib.import_module("kinescan").__version__)
        except ImportError:
            return ""

    own = __version__
    affinity = optional_package("ray.util.scheduling_strategies", EXTRA).NodeAffinitySchedulingStrategy
    asked = ray.remote(num_cpus=0)(version)
    nodes = [node for node in ray.nodes() if node.get("Alive")]
    answers = ray.get(
        [asked.options(scheduling_strategy=affinity(node["NodeID"], soft=False)).remote() for node in nodes]
    )
    for node, found in zip(nodes, answers, strict=True):
        if found != own:
            has = f"kinescan {found}" if found else "no kinescan"
            raise ConfigError(
                f"{node.get('NodeManagerHostname', 'a machine')} of the cluster has {has}, and this machine kinescan "
                f"{own}. Install the same version everywhere."
            )
