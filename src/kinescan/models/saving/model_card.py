import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from kinescan.models.saving.run_record import RunRecord
from kinescan.runtime.escaping import escape_markdown, escape_terminal
from kinescan.runtime.quantities import percent

_SHOWN_LABELS = 40
_HERE = '"."'
_RECIPE = "With this, `kinescan train` trained it; of folders, only the last name is shown."
_TAGS = ["video-classification", "kinescan"]
KINESCAN_USE = """import kinescan as ks

model = ks.from_pretrained(".")
for prediction in ks.predict(model, ["video.mp4"]):
    print(prediction.labels, prediction.scores)"""
"""Run in the folder of the card; "." becomes the name on the hub where it has one."""
TRANSFORMERS_USE = """import kinescan as ks  # pip install "kinescan[vlm]"
from transformers import pipeline

ks.register_transformers()  # once: transformers' pipelines and Auto classes know the model from then on
classify = pipeline("video-classification", model=".")
print(classify("video.mp4"))  # or frames as bytes [T, H, W, 3]"""


def model_card(
    *,
    name: str,
    config: Mapping[str, Any],
    labels: Sequence[str] | None,
    preprocessing: Mapping[str, Any],
    num_parameters: int,
    base: Mapping[str, Any] | None = None,
    module: str | None = None,
    timing: Mapping[str, Any] | None = None,
    run: RunRecord | None = None,
    use: str = KINESCAN_USE,
    repo_id: str | None = None,
) -> str:
    """The README.md of a saved model: what it is, its labels, how pixels get in, and how to use it.

    Args:
        name: name in the zoo.
        config: fields of the model's config.
        labels: class names in the order of the logits; None where they are unknown.
        preprocessing: fields of `Preprocessing`.
        num_parameters: parameters in all.
        base: for a tuned part, "source" and "sha256" of the weights that it belongs to.
        module: for a model of somebody's own, the module that registers it.
        timing: fields of `FrameTiming`; None where they are unknown.
        run: the run that trained it: its recipe and its scores.
        use: Python code that uses it from its own folder, ".".
        repo_id: the name on the Hugging Face hub, where it goes there.

    Returns:
        Markdown with the front matter that the Hugging Face hub reads.
    """
    parts = [
        f"---\n{_metadata(name, run)}\n---",
        f"# {name}, {config.get('num_classes') if labels is None else len(labels)} classes",
        f"A video classifier of kinescan: {num_parameters:,} parameters. {_answer(config)}",
        *([] if base is None else [_base(base)]),
        "## How to use",
        *(["In this folder:"] if repo_id is None else []),
        *([] if module is None else [f"The module `{module}` defines and registers the model: import it first."]),
        f"```python\n{use if repo_id is None else use.replace(_HERE, json.dumps(repo_id))}\n```",
        *([] if run is None or not run.reports else ["## Scores", _scores(run), *_notes(run)]),
        "## Labels",
        _label_list(labels),
        "## Preprocessing",
        _table(preprocessing),
        *([] if timing is None else ["Seconds from frame to frame of the training clips:", _table(timing)]),
        "## Architecture",
        _table(config),
        *([] if run is None else ["## Recipe", _RECIPE, _fenced(run.published_recipe(), "toml")]),
    ]
    return "\n\n".join(parts) + "\n"


def _answer(config: Mapping[str, Any]) -> str:
    """What a logit says."""
    if config.get("output", "clip") != "frames":
        return "It answers for a whole clip: which one of its classes it shows."
    seen = "what came before it" if config.get("causal") else "the frames around it"
    if config.get("overlapping"):
        return (
            f"It answers for every frame, by {seen}: for each class, whether it is happening (sigmoid); several may "
            "happen at once."
        )
    return f'It answers for every frame, by {seen}: which one of its classes is happening (softmax), or "background".'


def _metadata(name: str, run: RunRecord | None) -> str:
    """The front matter that the Hugging Face hub reads, with the scores as it shows them."""
    results = [
        EvalResult(
            task_type="video-classification",
            dataset_type=escape_terminal(report.data),
            dataset_name=escape_terminal(report.data),
            metric_type="accuracy",
            metric_name=f"top-1, views {report.views}",
            metric_value=round(report.top1, 4),
        )
        for report in ([] if run is None else run.reports)
    ]
    data = ModelCardData(
        library_name="kinescan",
        pipeline_tag="video-classification",
        tags=_TAGS,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _scores(run: RunRecord) -> str:
    rows = [
        f"| {_plain(report.data)} | {_plain(report.views)} | {report.num_videos:,} | {percent(report.top1)} "
        f"| {percent(report.top5)} (top {report.top5_classes}) | {percent(report.calibration_error)} |"
        for report in run.reports
    ]
    header = "| data | views (frames x clips x crops) | videos | top-1 | top-5 | calibration error |"
    return "\n".join([header, "|---|---|---|---|---|---|", *rows])


def _notes(run: RunRecord) -> list[str]:
    return [
        f"**Note.** {_plain(note)}" for note in dict.fromkeys(note for report in run.reports for note in report.notes)
    ]


def _base(base: Mapping[str, Any]) -> str:
    return (
        f"This is only what was tuned on top of {_plain(base['source'])}, whose weights (SHA-256 {base['sha256']}) are "
        "needed beside it: in that place, in this folder, or with `from_pretrained(folder, base=FILE)`."
    )


def _label_list(labels: Sequence[str] | None) -> str:
    if labels is None:
        return "Nobody gave the model labels; its outputs are known by their index only."
    lines = [f"{index}. {_plain(label)}" for index, label in enumerate(labels[:_SHOWN_LABELS])]
    if len(labels) > _SHOWN_LABELS:
        lines.append(f"\nand {len(labels) - _SHOWN_LABELS} more, in config.json.")
    return "\n".join(lines)


def _fenced(text: str, language: str) -> str:
    """A block that no line of the text can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _table(values: Mapping[str, Any]) -> str:
    return "\n".join(
        ["| field | value |", "|---|---|"] + [f"| {key} | {_plain(value)} |" for key, value in values.items()]
    )


def _plain(value: Any) -> str:
    """One line that Markdown leaves alone."""
    return escape_markdown(" ".join(str(value).split()))
