"""The page that the demo writes: what it shows first, then how it was measured."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kinescan.runs.demo_first import motion_section
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.escaping import escape_markdown
from kinescan.runtime.figure import save_figure
from kinescan.runtime.html_page import html_page, markdown_html
from kinescan.runtime.quantities import duration, percent

PAGE_FILE, HTML_FILE = "README.md", "index.html"
PICTURE_FILE = "comparison.png"
MOST_WITHIN_PAIRS, LEAST_MOTION, MOST_LOST = 0.55, 0.85, 0.02
"""What is expected of a run of the usual size."""
MODELS = {"averaging": "ViT, mean over frames", "pks4": "PKS4 (the same ViT + one module)"}


def write_page(result: Mapping[str, Any], *, label: str, folder: Path) -> None:
    """Writes README.md, the same as index.html, and comparison.png.

    Args:
        result: `DemoResult.to_json()`.
        label: true class of the video that was explained.
        folder: of the demo.
    """
    draw_comparison(result["scores"], folder / PICTURE_FILE)
    lines = [opening(result), *_table(result), *_pairs(result), *_explanation(result, label, folder)]
    _write([*lines, *motion_section(result["first"]), *_ending(result)], folder)


def write_first_page(
    first: Mapping[str, Any], *, folder: Path, done: Mapping[str, float] | None = None, left_seconds: float | None
) -> None:
    """Writes README.md and index.html with what is known so far.

    Args:
        first: `MotionScores.to_json()`.
        folder: of the demo.
        done: run that has ended -> its top-1 on held-out files.
        left_seconds: until the page is whole; None: nothing else comes.
    """
    lines = ["# What the demo shows"]
    if left_seconds is not None:
        lines += [
            f"\n**Still running**: about {duration(left_seconds)} left. Four trainings compare a ViT that averages "
            "frames with the same ViT and PKS4's module; this page is written again as they end."
        ]
        if done:
            lines += ["\n| training | right on held-out files |\n|---|---|"]
            lines += [f"| {run} | {percent(score)} |" for run, score in done.items()]
    lines += motion_section(first)
    if left_seconds is None:
        lines += ["\n`kinescan demo` without `--quick` trains and compares four models, too."]
    _write(lines, folder, reload_seconds=None if left_seconds is None else 10)


def _write(lines: Sequence[str], folder: Path, *, reload_seconds: int | None = None) -> None:
    text = "\n".join(lines) + "\n"
    write_text(folder / PAGE_FILE, text)
    body = markdown_html(text, folder)
    write_text(folder / HTML_FILE, html_page("kinescan demo", body, reload_seconds=reload_seconds))


def opening(result: Mapping[str, Any]) -> str:
    """What the demo shows, in two sentences with numbers."""
    averaging, pks4 = result["scores"]["averaging"], result["scores"]["pks4"]
    return (
        "# What the demo shows\n\n"
        "Where only the motion tells the class, a ViT that averages frames cannot tell a motion from its reversal: it "
        f"is right in {percent(averaging['within_pairs'])} within pairs (a coin: 50 %) and in "
        f"{percent(averaging['motion'])} of all 12 classes. The same ViT with PKS4's module: "
        f"{percent(pks4['within_pairs'])} within pairs, **{percent(pks4['motion'])}** of all classes.\n\n"
        f"Where only the look tells the class: {percent(averaging['appearance'])} without the module, "
        f"**{percent(pks4['appearance'])}** with it.\n\n"
        f"{_verdict(averaging, pks4)}{_at_chance(result)}"
    )


def _at_chance(result: Mapping[str, Any]) -> str:
    """Which pairs PKS4 tells apart no better than a coin: a mean would hide them."""
    pairs = result["scores"]["pks4"]["pairs"]
    num_files = result["num_test"]["motion"] / max(len(pairs), 1)
    # What a coin stays below in 39 runs of 40.
    bound = min(1.0, 0.5 + 1.96 * (0.25 / max(num_files, 1)) ** 0.5)
    lost = [f"{pair} ({percent(accuracy)})" for pair, accuracy in pairs.items() if accuracy <= bound]
    if not lost:
        return ""
    return (
        f"\n\n**Not learnt**: of {len(pairs)} pairs, PKS4 tells {len(lost)} apart no better than a coin "
        f"(up to {percent(bound)} of {num_files:.0f} files can be luck): {', '.join(lost)}."
    )


def _verdict(averaging: Mapping[str, Any], pks4: Mapping[str, Any]) -> str:
    """Whether what was expected was reached."""
    expected = {
        f"averaging at most {percent(MOST_WITHIN_PAIRS)} within pairs": averaging["within_pairs"] <= MOST_WITHIN_PAIRS,
        f"PKS4 at least {percent(LEAST_MOTION)} on motion": pks4["motion"] >= LEAST_MOTION,
        f"at most {100 * MOST_LOST:.0f} points below averaging on appearance": (
            pks4["appearance"] >= averaging["appearance"] - MOST_LOST
        ),
    }
    texts = [f"{text}: {'reached' if reached else 'NOT reached'}" for text, reached in expected.items()]
    return f"Expected: {'; '.join(texts)}."


def draw_comparison(scores: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG: bars of both models for both data sets, and for every pair."""
    first = scores["averaging"]
    groups = ["motion", "appearance", *(pair.replace(" / ", "\n") for pair in first["pairs"])]
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for offset, (name, colour) in enumerate((("averaging", "#9aa5b1"), ("pks4", "#1f6fb2"))):
        own = scores[name]
        values = [own["motion"], own["appearance"], *own["pairs"].values()]
        positions = [position + (0.6 if position >= 2 else 0) + 0.4 * offset for position in range(len(values))]
        bars = axes.bar(positions, [100 * value for value in values], width=0.38, color=colour, label=MODELS[name])
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
        if offset == 0:
            axes.set_xticks([position + 0.2 for position in positions], groups, fontsize=8)
    axes.plot([2.3, len(groups) + 0.3], [50, 50], color="black", linewidth=0.8, linestyle=":")
    axes.set_ylim(0, 112)
    axes.set_ylabel("correct, %")
    axes.set_title("all 12 classes, and within each pair of a motion and its reversal (dotted: a coin)", fontsize=10)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, dpi=120)


def _table(result: Mapping[str, Any]) -> Iterator[str]:
    numbers = result["num_test"]
    yield f"\n![comparison]({PICTURE_FILE})\n"
    heads = (f"motion, top-1 ({numbers['motion']} files)", "motion, within pairs")
    yield f"| | {' | '.join(heads)} | appearance, top-1 ({numbers['appearance']} files) |"
    yield "|---|---|---|---|"
    for name, text in MODELS.items():
        own = result["scores"][name]
        cells = (percent(own[column]) for column in ("motion", "within_pairs", "appearance"))
        yield f"| {text} | {' | '.join(cells)} |"


def _pairs(result: Mapping[str, Any]) -> Iterator[str]:
    averaging, pks4 = (result["scores"][name]["pairs"] for name in MODELS)
    yield "\n## Pair by pair\n"
    yield "Every held-out file is its mate's, played backwards: the same frames in the other order.\n"
    yield "| pair | mean over frames | PKS4 |\n|---|---|---|"
    for pair in pks4:
        yield f"| {pair} | {percent(averaging[pair])} | {percent(pks4[pair])} |"


def _explanation(result: Mapping[str, Any], label: str, folder: Path) -> Iterator[str]:
    prediction = result["prediction"]
    named = ", ".join(
        f"{escape_markdown(name)} {percent(score)}"
        for name, score in zip(prediction["labels"], prediction["scores"], strict=True)
    )
    yield "\n## One file explained\n"
    yield f"{escape_markdown(Path(prediction['path']).name)} of class **{escape_markdown(label)}**: {named}.\n"
    if prediction["explanation"] is not None:
        picture = Path(prediction["explanation"])
        shown = picture.relative_to(folder) if picture.is_relative_to(folder) else picture
        yield f"![where things moved and changed]({shown.as_posix()})"


def _ending(result: Mapping[str, Any]) -> Iterator[str]:
    yield "\n## How long it took\n"
    yield "| part | seconds |\n|---|---|"
    for part, seconds in result["seconds"].items():
        yield f"| {part} | {seconds:.0f} |"
    yield "\n## What lies here\n"
    yield "- `index.html`: this page; `first`: the clips and pictures of the model that comes with kinescan"
    yield "- `data/motion`, `data/appearance`: the video files, a folder per class"
    yield "- `stills`: the ViT trained on single pictures"
    yield "- `motion_vit`, `motion_pks4`, `appearance_vit`, `appearance_pks4`: a run each, with recipe.toml, log.jsonl,"
    yield "  checkpoints, report.md and confusion.png"
    yield "- `demo.json`: the numbers of this page"
