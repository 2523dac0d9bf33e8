import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from kinescan.config import RunConfig
from kinescan.data.datasets import VideoDataset, VideoItem, read_items, split_items
from kinescan.data.listing import choose_layout
from kinescan.data.memory import VideoMemory, estimated_gib
from kinescan.data.mirroring import mirrored_labels
from kinescan.data.readers.lists import files_there
from kinescan.data.sampling import Views
from kinescan.data.transforms import EvalTransform, TrainTransform
from kinescan.errors import ConfigError

logger = logging.getLogger(__name__)


def read_videos(
    config: RunConfig, *, announced: bool = True
) -> tuple[list[VideoItem], list[VideoItem], tuple[str, ...]]:
    """Training videos, those to evaluate on, and the classes, as `[data]` says.

    Without `data.test`, the published test part is taken; where there is none, a part of the training videos is held
    out; which, depends on the seed alone.

    Args:
        config: of the run.
        announced: log how many there are.

    Raises:
        ConfigError: there are fewer than two classes, a source cannot be read, nothing can be held out, or videos are
            in training and in test.
    """
    data, level = config.data, logging.INFO if announced else logging.DEBUG
    if not data.train:
        raise ConfigError("data.train is not set. Name a folder with one folder of videos per class, or a csv.")
    read = partial(read_items, root=data.root or None, reader=data.reader, split=data.split)
    items, classes = read(data.train)
    _refuse_absent(items, data.train)
    if len(classes) < 2:
        inner = Path(data.train) / classes[0]
        nested = inner.is_dir() and sum(child.is_dir() for child in inner.iterdir()) > 1
        advice = f" If the classes are the folders in {inner}, name it: data.train={inner}." if nested else ""
        raise ConfigError(
            f"data.train {data.train!r} holds {len(classes)} class ({', '.join(classes)}); at least 2 are needed. "
            f"Put the videos of each class into a folder of its own.{advice}"
        )
    layout = choose_layout(data.train, data.reader)
    if data.test or layout.has_parts:
        held_out, _ = read(data.test or data.train, part="test", classes=classes)
        _refuse_absent(held_out, data.test or data.train)
        _refuse_overlap(items, held_out, data.test or data.train)
        part = "test" if data.test else layout.test_name
        logger.log(level, "%d training videos, %d %s videos, %d classes", len(items), len(held_out), part, len(classes))
        return items, held_out, classes
    items, held_out = split_items(items, data.held_out_ratio, config.seed)
    if not held_out:
        raise ConfigError(
            f"data.train {data.train!r} holds one video of each of its {len(classes)} classes, so none can be held out "
            "for evaluation. Add videos, or name others to evaluate on with data.test."
        )
    alone = sorted({item.label for item in items} - {item.label for item in held_out})
    if alone:
        names = ", ".join(repr(classes[label]) for label in alone[:5])
        more = ", ..." if len(alone) > 5 else ""
        logger.warning(
            "%d of %d classes have a single video, which is trained on: the evaluation does not see them: %s%s",
            *(len(alone), len(classes), names, more),
        )
    logger.log(
        level,
        "no data.test: of %d videos, %d (%.0f %% of each class) are held out for evaluation, drawn with seed %d",
        len(items) + len(held_out),
        len(held_out),
        100 * data.held_out_ratio,
        config.seed,
    )
    return items, held_out, classes


def evaluated_on(config: RunConfig) -> str:
    """What `read_videos` evaluates on, for reports."""
    data = config.data
    if data.test:
        return data.test
    layout = choose_layout(data.train, data.reader)
    if layout.has_parts:
        published = "" if data.reader in ("auto", "folder", "list") else f" ({data.reader}, split {data.split})"
        return f"the {layout.test_name} part of {data.train}{published}"
    return f"{data.held_out_ratio:.0%} held out of {data.train}"


def _refuse_absent(items: Sequence[VideoItem], source: str) -> None:
    """A list of files that are all somewhere else.

    Raises:
        ConfigError: not one of the videos is there.
    """
    if items and not any(files_there([item.path for item in items])):
        raise ConfigError(
            f"not one of the {len(items)} videos of {source!r} is there; the first was looked for at "
            f"{items[0].path}. Correct the paths, or name the folder that they are relative to with data.root."
        )


def _refuse_overlap(training: Sequence[VideoItem], test: Sequence[VideoItem], source: str) -> None:
    """Nothing is scored on what it was trained on.

    Raises:
        ConfigError: files are on both sides.
    """
    known = {os.path.realpath(item.path) for item in training}
    both = [item for item in test if os.path.realpath(item.path) in known]
    if both:
        raise ConfigError(
            f"{len(both)} of the {len(test)} videos of {source!r} to evaluate on are training videos, too, such as "
            f"{both[0].path}. Leave them out of one side: scores on training videos say nothing about others."
        )


def make_training_set(config: RunConfig, items: Sequence[VideoItem], classes: Sequence[str]) -> VideoDataset:
    """Clips with random frames, crops and colours; of few videos out of memory, where `data.kept_frames` says so."""
    transform = TrainTransform(config.preprocessing, config.augment)
    if config.augment.flip_rate:
        _log_mirroring(classes)
    kept = config.data.kept_frames
    wanted_gib = estimated_gib(len(items), kept, config.preprocessing.size)
    if wanted_gib > config.data.kept_gib:
        logger.info(
            "decoding anew in every epoch: %d frames of each of %d videos would take %.1f GiB, more than data.kept_gib",
            *(kept, len(items), wanted_gib),
        )
    elif kept:
        return VideoMemory(
            items,
            classes,
            transform,
            preprocessing=config.preprocessing,
            kept_frames=kept,
            seed=config.seed,
            limits=config.data.limits,
            allow_short=config.data.allow_short,
        )
    return VideoDataset(
        items,
        classes,
        transform,
        preprocessing=config.preprocessing,
        mode="train",
        seed=config.seed,
        limits=config.data.limits,
        allow_short=config.data.allow_short,
    )


def make_test_set(config: RunConfig, items: Sequence[VideoItem], classes: Sequence[str], views: Views) -> VideoDataset:
    """All views of each video."""
    transform = EvalTransform(config.preprocessing, crops=views.crops)
    return VideoDataset(
        items,
        classes,
        transform,
        preprocessing=config.preprocessing,
        mode="test",
        views=views,
        seed=config.seed,
        limits=config.data.limits,
        allow_short=config.data.allow_short,
    )


def _log_mirroring(classes: Sequence[str]) -> None:
    """Says which classes a mirrored clip swaps, and which are never mirrored."""
    mirrored = mirrored_labels(classes)
    swapped = sum(other is not None and other != place for place, other in enumerate(mirrored))
    alone = [classes[place] for place, other in enumerate(mirrored) if other is None]
    if swapped:
        logger.info("mirrored clips of %d classes take the label of the opposite direction", swapped)
    if alone:
        logger.info("%d classes name a direction without an opposite and are not mirrored: %s", len(alone), alone[:5])
