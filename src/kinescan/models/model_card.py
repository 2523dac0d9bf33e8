from collections.abc import Mapping, Sequence
from typing import Any

_SHOWN_LABELS = 40
_FRONT_MATTER = """---
library_name: kinescan
pipeline_tag: video-classification
tags:
- video-classification
- kinescan
---"""


def model_card(
    *,
    name: str,
    config: Mapping[str, Any],
    labels: Sequence[str],
    preprocessing: Mapping[str, Any],
    num_parameters: int,
    base: Mapping[str, Any] | None = None,
) -> str:
    """The README.md of a saved model: what it is, its labels, how pixels get in, and how to use it.

    Args:
        name: name in the zoo.
        config: fields of the model's config.
        labels: class names in the order of the logits.
        preprocessing: fields of `Preprocessing`.
        num_parameters: parameters in all.
        base: for a tuned part, "source" and "sha256" of the weights that it belongs to.

    Returns:
        Markdown with the front matter that the Hugging Face hub reads.
    """
    parts = [
        _FRONT_MATTER,
        f"# {name}, {len(labels)} classes",
        f"A video classifier of kinescan: {num_parameters:,} parameters.",
        *([] if base is None else [_base(base)]),
        "## How to use",
        "```python\nimport kinescan as ks\n\n"
        'model = ks.from_pretrained("FOLDER_OR_HUB_NAME")\n'
        'for prediction in ks.predict(model, ["video.mp4"]):\n'
        "    print(prediction.labels, prediction.scores)\n```",
        "## Labels",
        _label_list(labels),
        "## Preprocessing",
        _table(preprocessing),
        "## Architecture",
        _table(config),
    ]
    return "\n\n".join(parts) + "\n"


def _base(base: Mapping[str, Any]) -> str:
    return (
        f"This is only what was tuned on top of {_plain(base['source'])}, whose weights (SHA-256 {base['sha256']}) are "
        "needed beside it: in that place, in this folder, or with `from_pretrained(folder, base=FILE)`."
    )


def _label_list(labels: Sequence[str]) -> str:
    lines = [f"{index}. {_plain(label)}" for index, label in enumerate(labels[:_SHOWN_LABELS])]
    if len(labels) > _SHOWN_LABELS:
        lines.append(f"\nand {len(labels) - _SHOWN_LABELS} more, in config.json.")
    return "\n".join(lines)


def _table(values: Mapping[str, Any]) -> str:
    return "\n".join(
        ["| field | value |", "|---|---|"] + [f"| {key} | {_plain(value)} |" for key, value in values.items()]
    )


def _plain(value: Any) -> str:
    """One line that Markdown leaves alone."""
    text = " ".join(str(value).split())
    for sign in "\\`*_<>|[]":
        text = text.replace(sign, "\\" + sign)
    return text
