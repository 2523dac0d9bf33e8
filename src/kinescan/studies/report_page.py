"""A run, a study or a demo as one HTML file that can be sent to somebody."""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinescan.errors import ConfigError, KinescanError
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.escaping import escape_html
from kinescan.runtime.files import read_bytes, read_json_object, read_text, read_toml
from kinescan.runtime.folder_lock import is_locked
from kinescan.runtime.html_page import html_page, markdown_html
from kinescan.runtime.line_chart import Line, line_chart
from kinescan.runtime.quantities import byte_size, percent
from kinescan.runtime.run_folder import REPORT_FILE, RunFolder
from kinescan.runtime.urls import refuse_url
from kinescan.studies.curves import Curves, read_curves
from kinescan.version import __version__

HTML_FILE = "report.html"
_PAGES = ("study.md", "reproduction.md", "cross_validation.md", "README.md", "report.md")
"""Pages of kinescan in a folder, in the order in which they are shown."""
_SETTINGS = ("study.toml", "recipe.toml")
_MARKS = ("study.json", "study.toml", "reproduction.json", "cross_validation.json", "demo.json", REPORT_FILE)
"""One of them, or a recipe with checkpoints, makes a folder one of ours."""
_SCORES = {"top1": "top-1", "top5": "top-5", "mean_class_accuracy": "mean over classes", "map": "per-frame mAP"}
_SCORES |= {"frame_map": "per-frame mAP", "calibrated_frame_map": "calibrated mAP", "frame_accuracy": "frames right"}
_MOST_BYTES = 16 * 2**20
_MOST_RUNS = 500
_MOST_LINES = 6


@dataclass(frozen=True)
class _Status:
    """How far a run is.

    Attributes:
        word: in the badge.
        sentence: beside it, as HTML; empty where the word says all.
        is_done: whether nothing is left to do.
    """

    word: str
    sentence: str
    is_done: bool


def write_report(folder: str | Path, output: str | Path | None = None) -> Path:
    """Writes all that is known of a run, a study, a cross-validation or a demo into one HTML file.

    A run that was stopped, or still trains, is shown as far as it is; parts that cannot be read are named as such.

    Args:
        folder: of the run.
        output: the file to write; by default report.html in the folder.

    Returns:
        The file.

    Raises:
        ConfigError: the folder holds nothing that kinescan made, or the file cannot be written.
    """
    folder = Path(folder)
    refuse_url(folder, "Copy the run's folder to this machine.")
    run = RunFolder(folder)
    if not run.is_run() and not any((folder / name).is_file() for name in _MARKS):
        raise ConfigError(
            f"{folder} is not the folder of a run, a study or a demo: it has no {run.recipe.name} with checkpoints and "
            f"no {REPORT_FILE}. Name the folder that kinescan train, eval, study, cross-validate or demo wrote."
        )
    title = folder.resolve().name
    status = _status(run)
    badge = f'<span class="badge{"" if status.is_done else " open"}">{status.word}</span>'
    parts = [f"<h1>{escape_html(title)}</h1><p>{badge} {status.sentence}</p>"]
    parts += [_guarded(part, folder) for part in (_pages, _learning, _runs, _evaluation, _settings, _provenance)]
    written = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    parts.append(f"<footer>Written {written} by kinescan {__version__} from {escape_html(str(folder))}.</footer>")
    path = folder / HTML_FILE if output is None else Path(output)
    write_text(path, html_page(title, "\n".join(filter(None, parts))))
    return path


def _guarded(part: Callable[[Path], str], folder: Path) -> str:
    """A part of the page, or why it is not there."""
    try:
        return part(folder)
    except (KinescanError, OSError, ValueError) as error:
        return f'<p class="note">{escape_html(str(error))}</p>'


def _status(run: RunFolder) -> _Status:
    folder = run.path
    if is_locked(folder):
        return _Status("running", "This page shows how far it is.", False)
    if (folder / "study.json").is_file():
        found = _read_or_nothing(folder / "study.json")
        done, planned = found.get("num_done"), found.get("num_planned")
        if found.get("finished"):
            return _Status("finished", f"{done} of {planned} runs", True)
        return _Status("not finished", f"{done} of {planned} runs. Continue: kinescan study --resume", False)
    if (folder / REPORT_FILE).is_file() or any((folder / mark).is_file() for mark in _MARKS if mark.endswith(".json")):
        return _Status("finished", "", True)
    if not run.is_run():
        return _Status("not finished", "No result was written yet.", False)
    curves = _guarded_curves(folder)
    last = max((*curves.steps, *(int(one.get("step", 0)) for one in curves.epochs.values())), default=0)
    epoch = max((int(one.get("epoch", 0)) for one in curves.steps.values()), default=0)
    epoch = max((epoch, *curves.epochs), default=0)
    planned = _read_or_nothing(run.recipe).get("optim", {}).get("epochs", "?")
    sentence = (
        f"The training stopped before its end, after step {last} in epoch {epoch} of {planned}. There is no score of "
        f"the final views yet. Continue: <code>kinescan train {escape_html(str(folder))} --resume</code>"
    )
    return _Status("not finished", sentence, False)


def _read_or_nothing(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path) if path.suffix == ".toml" else read_json_object(path)
    except ConfigError:
        return {}


def _guarded_curves(folder: Path) -> Curves:
    try:
        return read_curves(folder)
    except KinescanError:
        return Curves()


def _pages(folder: Path) -> str:
    found = [name for name in _PAGES if (folder / name).is_file()]
    return "\n".join(markdown_html(read_text(folder / name, max_bytes=_MOST_BYTES), folder) for name in found)


def _evaluation(folder: Path) -> str:
    """The report of `kinescan eval`, which lies in a folder of its own."""
    page = RunFolder(folder).evaluation / "report.md"
    if not page.is_file():
        return ""
    return "<h2>kinescan eval</h2>" + markdown_html(read_text(page, max_bytes=_MOST_BYTES), page.parent)


def _learning(folder: Path) -> str:
    curves = read_curves(folder)
    if not (curves.steps or curves.epochs):
        return _learning_of_parts(folder)
    steps, epochs, scored = (curves.steps, *map(_by_step, (curves.epochs, curves.evaluations)))
    trained = steps or epochs
    names = sorted({name for values in scored.values() for name in values} - {"step", "loss", "seconds", "epoch"})
    charts = [
        line_chart(
            "loss", [_line("training", trained, "loss"), _line("held out", scored, "loss", True)], x_label="step"
        ),
        line_chart(
            "score",
            [_line("training", trained, "accuracy"), *(_line(_name(n), scored, n, True) for n in names[:5])],
            x_label="step",
        ),
        line_chart("learning rate", [_line("learning rate", steps, "lr")], x_label="step"),
        line_chart("gradient norm", [_line("gradient norm", trained, "gradient_norm")], x_label="step"),
        line_chart("clips per second", [_line("clips per second", trained, "clips_per_second")], x_label="step"),
    ]
    return f'<h2>Learning curves</h2><div class="charts">{"".join(charts)}</div>'


def _learning_of_parts(folder: Path) -> str:
    """One line a run, of the folds of a cross-validation or the trainings of a demo."""
    found = {path.parent.name: read_curves(path.parent) for path in sorted(folder.glob("*/log.jsonl"), key=_in_order)}
    if not found:
        return ""
    trained = {name: _by_step(curves.steps or curves.epochs) for name, curves in found.items()}
    scored = {name: _by_step(curves.evaluations) for name, curves in found.items()}
    scores = [key for key in _SCORES if any(key in entry for values in scored.values() for entry in values.values())]
    shown = list(found)[:_MOST_LINES]
    charts = [
        line_chart(title, [_line(name, values[name], key, is_marked) for name in shown], x_label="step")
        for title, values, key, is_marked in (
            ("loss, training", trained, "loss", False),
            ("loss, held out", scored, "loss", True),
            *((f"{_name(key)}, held out", scored, key, True) for key in scores),
        )
    ]
    left_out = f"<p>The first {len(shown)} of {len(found)} runs.</p>" if len(shown) < len(found) else ""
    return f'<h2>Learning curves</h2>{left_out}<div class="charts">{"".join(charts)}</div>'


def _in_order(path: Path) -> tuple[str, int]:
    """fold-2 stands before fold-10."""
    head, _, number = path.parent.name.rpartition("-")
    return (head, int(number)) if number.isdecimal() else (path.parent.name, 0)


def _by_step(values: dict[int, dict[str, float]]) -> dict[int, dict[str, float]]:
    return {int(entry.get("step", number)): entry for number, entry in sorted(values.items())}


def _line(name: str, values: dict[int, dict[str, float]], key: str, is_marked: bool = False) -> Line:
    points = tuple((float(step), entry[key]) for step, entry in sorted(values.items()) if key in entry)
    return Line(name, points, is_marked)


def _runs(folder: Path) -> str:
    """The runs of a study, also of one that was stopped, and its learning curves."""
    parts = []
    picture = folder / "curves.png"
    if picture.is_file():
        parts.append("<h2>Learning curves</h2>" + markdown_html("![learning curves](curves.png)", folder))
    found = _read_or_nothing(folder / "study.json").get("runs")
    if not isinstance(found, list):
        files = sorted(folder.glob("runs/**/study_run.json"))[:_MOST_RUNS]
        found = [entry for file in files if (entry := _read_or_nothing(file))]
    if found:
        scores = list(dict.fromkeys(name for one in found for name in one.get("scores", {})))
        rows = [
            [one.get("row"), one.get("data"), one.get("seed"), one.get("status")]
            + [_score(name, one.get("scores", {}).get(name)) for name in scores]
            + [f"{one.get('seconds', 0):.0f} s", one.get("code")]
            for one in found[:_MOST_RUNS]
        ]
        head = ["row", "data", "seed", "status", *map(_name, scores), "time", "code"]
        parts.append("<h2>Runs</h2>" + _table(head, rows))
    return "".join(parts)


def _name(score: str) -> str:
    return _SCORES.get(score, score.replace("_", " "))


def _score(name: str, value: Any) -> str:
    if not isinstance(value, int | float):
        return "-"
    return f"{value:.4g}" if name == "loss" or not 0 <= value <= 1 else percent(value)


def _settings(folder: Path) -> str:
    parts = []
    for name in _SETTINGS:
        if (folder / name).is_file():
            text = escape_lines(read_text(folder / name, max_bytes=_MOST_BYTES))
            parts.append(f"<details><summary>{name}</summary><pre>{text}</pre></details>")
    return "<h2>Settings</h2>" + "".join(parts) if parts else ""


def escape_lines(text: str) -> str:
    r"""Text of several lines as HTML that shows just this text.

    Example:
        >>> escape_lines("a<b\nc")
        'a&lt;b\nc'
    """
    return "\n".join(escape_html(line.replace("\t", "    ")) for line in text.splitlines())


def _provenance(folder: Path) -> str:
    run = RunFolder(folder)
    rows = [[name, *values] for name, *values in (*_videos(run), *_checkpoints(run))]
    files = [
        [str(path.relative_to(folder)), byte_size(path.stat().st_size), _digest(path)]
        for path in sorted(folder.glob("*"))
        if path.is_file() and path.name != HTML_FILE
    ]
    parts = ["<h2>Provenance</h2>"]
    if rows:
        parts.append(_table(["", "what", "SHA-256"], rows))
    parts.append(
        f"<details><summary>{len(files)} files</summary>{_table(['file', 'size', 'SHA-256'], files)}</details>"
    )
    return "".join(parts)


def _videos(run: RunFolder) -> Iterator[list[str]]:
    if not run.videos.is_file():
        return
    found = read_json_object(run.videos)
    counts = {key: len(value) for key, value in found.items() if isinstance(value, list) and key != "classes"}
    said = ", ".join(f"{number} {key.replace('_', ' ')}" for key, number in counts.items())
    yield ["videos", f"{said}; {len(found.get('classes', []))} classes", _digest(run.videos)]


def _checkpoints(run: RunFolder) -> Iterator[list[str]]:
    for sums in sorted(run.checkpoints.glob("*/checksums.json")):
        digest = _read_or_nothing(sums).get("model.safetensors", "")
        about = _read_or_nothing(sums.parent / "config.json")
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(sums.stat().st_mtime))
        said = f"{about.get('model', '?')}, kinescan {about.get('kinescan_version', '?')}, written {when}"
        yield [f"checkpoint {sums.parent.name}", said, str(digest)[:16]]


def _digest(path: Path) -> str:
    if path.stat().st_size > _MOST_BYTES:
        return "-"
    return hashlib.sha256(read_bytes(path)).hexdigest()[:16]


def _table(head: list[str], rows: list[list[Any]]) -> str:
    titles = "".join(f"<th>{escape_html(name)}</th>" for name in head)
    lines = "".join(
        # a number and its unit stay together
        "<tr>" + "".join(f"<td>{escape_html(str(cell)).replace(' %', '&nbsp;%')}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f'<div class="wide" tabindex="0"><table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'
