"""The demo's first page: the model that comes with kinescan on synthetic clips and over real textures."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kinescan.data.mirroring import mirrored_labels
from kinescan.data.synthetic import MOTION_PAIRS, MotionConfig, WindowConfig, make_motion, make_windows
from kinescan.data.synthetic.window_paths import WINDOW_PATHS
from kinescan.data.video import VideoReader
from kinescan.inference.predictor import Prediction, predict_iter
from kinescan.models.classifier import VideoClassifier
from kinescan.models.saving.shipped import MOTION, SHIPPED
from kinescan.models.zoo import from_pretrained
from kinescan.runtime.escaping import escape_markdown
from kinescan.runtime.quantities import percent

TEXTURES = SHIPPED / "textures"
"""Photographs that the motion model was not trained on."""
PER_CLASS, FRAME_SIZE, FPS = 4, 96, 12.0
KINDS = {"objects": "Drawn objects", "windows": "Moving windows over real pictures"}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One clip with its picture.

    Attributes:
        kind: of `KINDS`.
        label: what it shows.
        named: the class that the model gives.
        score: its probability, in [0, 1].
        picture: below the demo's folder.
    """

    kind: str
    label: str
    named: str
    score: float
    picture: str


@dataclass(frozen=True, kw_only=True)
class MotionScores:
    """How often the model that comes with kinescan was right.

    Attributes:
        right: kind -> class -> number of clips that were classified correctly.
        per_class: clips of each class and kind.
        mirrored: kind -> fraction of clips whose mirror image got the mirrored answer.
        source: where the pictures of the windows are from.
        shown: a clip of each class.
    """

    right: dict[str, dict[str, int]]
    per_class: int
    mirrored: dict[str, float]
    source: str
    shown: tuple[Shown, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def show_motion_model(output: Path, source: str | Path | None = None, *, per_class: int = PER_CLASS) -> MotionScores:
    """Makes clips, has the model that comes with kinescan name their motions, and draws a clip of each class.

    Args:
        output: folder of the demo; everything goes below OUTPUT/first.
        source: folder of videos and pictures for the windows; None: those that come with kinescan.
        per_class: clips of each class and kind.

    Raises:
        ConfigError: the folder cannot be written, or `source` holds too few files.
    """
    model = from_pretrained(SHIPPED / MOTION)
    pairs = tuple(pair for pair in WINDOW_PATHS if set(MOTION_PAIRS[pair]) <= set(model.class_names))
    sizes: dict[str, Any] = {"train_per_class": 0, "test_per_class": per_class, "frame_size": FRAME_SIZE, "fps": FPS}
    folders = {kind: output / "first" / kind for kind in KINDS}
    make_motion(folders["objects"], MotionConfig(pairs=pairs, **sizes))
    make_windows(folders["windows"], WindowConfig(source=str(source or TEXTURES), pairs=pairs, **sizes))
    right, mirrored, shown = {}, {}, []
    for kind, folder in folders.items():
        files = sorted((folder / "test").glob("*/*.mp4"))
        first = [file for file in files if file.stem == "0000"]
        others = [file for file in files if file.stem != "0000"]
        explained = list(predict_iter(model, first, top=1, explain_folder=output / "first" / "pictures" / kind))
        named = dict(zip([*first, *others], _labels([*explained, *predict_iter(model, others, top=1)]), strict=True))
        right[kind] = dict.fromkeys(sorted({file.parent.name for file in files}), 0)
        for file, label in named.items():
            right[kind][file.parent.name] += label == file.parent.name
        mirrored[kind] = _mirrored(model, named)
        shown += [_shown(kind, file, one, output) for file, one in zip(first, explained, strict=True)]
    return MotionScores(
        right=right,
        per_class=per_class,
        mirrored=mirrored,
        source="photographs that come with kinescan" if source is None else str(source),
        shown=tuple(shown),
    )


def _labels(predictions: Sequence[Prediction]) -> list[str]:
    return [prediction.labels[0] if prediction.labels else "" for prediction in predictions]


def _shown(kind: str, file: Path, prediction: Prediction, output: Path) -> Shown:
    assert prediction.explanation is not None, "pictures were asked for"
    return Shown(
        kind=kind,
        label=file.parent.name,
        named=prediction.labels[0],
        score=prediction.scores[0],
        picture=Path(prediction.explanation).relative_to(output).as_posix(),
    )


def _mirrored(model: VideoClassifier, named: Mapping[Path, str]) -> float:
    """Fraction of the clips whose mirror image is given the mirrored answer."""
    mates = mirrored_labels(model.class_names)
    mate_of = {
        name: model.class_names[mate] for name, mate in zip(model.class_names, mates, strict=True) if mate is not None
    }
    frames = []
    for file in named:
        with VideoReader(file) as video:
            frames.append(video.read(range(video.num_frames)).pixels.flip(3))
    answers = _labels(list(predict_iter(model, frames, top=1, fps=FPS)))
    return sum(answer == mate_of[own] for answer, own in zip(answers, named.values(), strict=True)) / len(answers)


def motion_section(first: Mapping[str, Any]) -> Iterator[str]:
    """The part of the page about the model that comes with kinescan; `first` is `MotionScores.to_json()`."""
    yield "\n## The model that comes with kinescan\n"
    yield "It names how a picture, or what is large in it, moves; nothing was trained for this page.\n"
    yield f"| | {' | '.join(KINDS.values())} |"
    yield f"|---|{'---|' * len(KINDS)}"
    count, right = first["per_class"], first["right"]
    yield _row("**all**", (f"**{percent(sum(right[kind].values()) / (count * len(right[kind])))}**" for kind in KINDS))
    for name in right["objects"]:
        yield _row(escape_markdown(name), (f"{right[kind][name]} of {count}" for kind in KINDS))
    yield _row("mirrored", (percent(first["mirrored"][kind]) for kind in KINDS))
    yield (
        f"\nWindows: {escape_markdown(first['source'])}. A class and its reversal are the same files in opposite "
        "orders. Mirrored: how often the mirror image of a clip got the mirrored answer. "
        "What it was trained on and how often it is right: the model's card, `kinescan/shipped/motion/README.md`.\n"
    )
    for kind, text in KINDS.items():
        yield f"\n### {text}\n"
        for one in first["shown"]:
            if one["kind"] == kind:
                verdict = "correct" if one["named"] == one["label"] else f"**wrong: {escape_markdown(one['named'])}**"
                yield f"{escape_markdown(one['label'])}: {verdict}, {percent(one['score'])}\n"
                yield f"![{escape_markdown(one['label'])}]({one['picture']})\n"


def _row(name: str, cells: Iterable[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"
