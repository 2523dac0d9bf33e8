import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeGuard, TypeVar, cast

from kinescan.config import RunConfig
from kinescan.data.datasets import VideoDataset, split_items
from kinescan.data.interval_layouts import interval_held_out_name
from kinescan.data.interval_listing import read_intervals
from kinescan.data.intervals import IntervalTable, IntervalVideo
from kinescan.data.listing import VideoItem, choose_layout, read_items
from kinescan.data.memory import VideoMemory, estimated_gib
from kinescan.data.mirroring import mirrored_labels
from kinescan.data.readers.lists import files_there
from kinescan.data.sampling import Views
from kinescan.data.splits import Video, fold_numbers, hold_out
from kinescan.data.transforms import EvalTransform, TrainTransform
from kinescan.data.window_dataset import WindowDataset
from kinescan.errors import ConfigError
from kinescan.runtime.distributed import Processes
from kinescan.training.dataset_clips import DatasetClips

logger = logging.getLogger(__name__)


V = TypeVar("V", VideoItem, IntervalVideo)


@dataclass(frozen=True)
class Division(Generic[V]):
    """The videos of a run: what it is trained, chosen and tested on.

    Attributes:
        training: videos to train on.
        held_out: videos that the final report scores.
        classes: label texts in the order of their numbers; of intervals, without what means "nothing happens".
        validation: videos on which the best checkpoint, thresholds and the early stop are chosen; empty: the held-out
            videos.
    """

    training: list[V]
    held_out: list[V]
    classes: tuple[str, ...]
    validation: list[V] = field(default_factory=list)

    def __repr__(self) -> str:
        counts = f"{len(self.training)} to train on, {len(self.validation)} to choose on, {len(self.held_out)} held out"
        return f"Division({counts}, {len(self.classes)} classes)"

    @property
    def has_intervals(self) -> bool:
        """Whether labels have a start and an end; otherwise each is of a whole clip."""
        return any(isinstance(video, IntervalVideo) for video in self.training)

    @property
    def chosen_on(self) -> list[V]:
        """What is scored while the run is trained."""
        return self.validation or self.held_out


def is_of_intervals(division: Division[VideoItem] | Division[IntervalVideo]) -> TypeGuard[Division[IntervalVideo]]:
    """Whether the labels of a run's videos have a start and an end."""
    return division.has_intervals


def read_clips(config: RunConfig, *, announced: bool = True) -> Division[VideoItem]:
    """As `read_videos`, where labels must be of whole clips.

    Raises:
        ConfigError: as for `read_videos`, or they have a start and an end.
    """
    division = read_videos(config, announced=announced)
    if is_of_intervals(division):
        raise ConfigError(
            f"the labels of {config.data.train!r} have a start and an end; labels of whole clips are needed here. If "
            'its times do not matter, set data.reader = "list".'
        )
    return cast(Division[VideoItem], division)


def read_videos(config: RunConfig, *, announced: bool = True) -> Division[VideoItem] | Division[IntervalVideo]:
    """Videos to train on, to choose on and to evaluate on, as `[data]` says.

    Without `data.test`, the published test part is taken; where there is none, a part of the training videos is held
    out; which, depends on `data.split_seed` alone (-1: on the run's seed).

    Args:
        config: of the run.
        announced: log how many there are.

    Raises:
        ConfigError: there are too few classes, videos or groups, a label source cannot be read, rows of labels are
            wrong, test videos have unknown classes, nothing can be held out, or videos or groups are on two sides.
    """
    if not config.data.train:
        raise ConfigError("data.train is not set. Name a folder with one folder of videos per class, or a csv.")
    if config.task == "intervals":
        return _Divider(config, announced, _IntervalLabels(config)).division()
    return _Divider(config, announced, _ClipLabels(config)).division()


def read_folds(config: RunConfig) -> Sequence[Division[VideoItem] | Division[IntervalVideo]]:
    """The division of each fold of cross-validation; the videos are read once.

    Raises:
        ConfigError: as for `read_videos`.
    """
    configs = [replace(config, data=replace(config.data, fold=fold + 1)) for fold in range(config.data.folds)]
    if config.task == "intervals":
        intervals = _LabelsInMemory(*_IntervalLabels(config).train())
        return [_Divider(fold, False, intervals).division() for fold in configs]
    clips = _LabelsInMemory(*_ClipLabels(config).train())
    return [_Divider(fold, False, clips).division() for fold in configs]


class _Labels(Protocol[V]):
    """Where a run's videos and labels come from: of clips, of intervals, or read before."""

    held_out_name: str | None
    """What the part is called that the label source itself holds out."""

    def train(self) -> tuple[list[V], tuple[str, ...]]:
        """Videos to train on, and their classes."""

    def test(self, classes: tuple[str, ...]) -> list[V]:
        """Videos of the test part."""


class _LabelsInMemory(Generic[V]):
    """Videos that were read before, for the folds of cross-validation."""

    def __init__(self, videos: list[V], classes: tuple[str, ...]) -> None:
        self.held_out_name: str | None = None
        self._videos: list[V] = videos
        self._classes = classes

    def train(self) -> tuple[list[V], tuple[str, ...]]:
        """Videos to train on, and their classes."""
        return self._videos, self._classes

    def test(self, classes: tuple[str, ...]) -> list[V]:
        """No videos: each fold has its own held-out videos."""
        return []


class _ClipLabels:
    """Labels of whole clips."""

    def __init__(self, config: RunConfig) -> None:
        data = self._data = config.data
        layout = choose_layout(data.train, data.reader)
        self.held_out_name = layout.test_name if layout.has_parts else None
        self._read = partial(read_items, root=data.root or None, reader=data.reader, split=data.split, group=data.group)

    def train(self) -> tuple[list[VideoItem], tuple[str, ...]]:
        """Videos to train on, and their classes."""
        source = self._data.train
        items, classes = self._read(source)
        _refuse_absent(items, source)
        if len(classes) < 2:
            inner = Path(source) / classes[0]
            nested = inner.is_dir() and sum(child.is_dir() for child in inner.iterdir()) > 1
            advice = f" If the classes are the folders in {inner}, name it: data.train={inner}." if nested else ""
            raise ConfigError(
                f"data.train {source!r} holds {len(classes)} class ({', '.join(classes)}); at least 2 are needed. "
                f"Put the videos of each class into a folder of its own.{advice}"
            )
        return items, classes

    def test(self, classes: tuple[str, ...]) -> list[VideoItem]:
        """Videos of the test part."""
        source = self._data.test or self._data.train
        items, _ = self._read(source, part="test", classes=classes)
        _refuse_absent(items, source)
        return items


class _IntervalLabels:
    """Labels with a start and an end."""

    def __init__(self, config: RunConfig) -> None:
        data = self._data = config.data
        self.held_out_name = interval_held_out_name(data.train, data.reader, data.root or None)
        self._read = partial(
            read_intervals,
            root=data.root or None,
            reader=data.reader,
            split=data.split,
            overlaps=data.overlaps,
            group=data.group,
            limits=data.limits,
            allow_short=data.allow_short,
        )

    def train(self) -> tuple[list[IntervalVideo], tuple[str, ...]]:
        """Videos to train on, and their classes."""
        table = self._table(self._data.train, None)
        used = set().union(*(video.labels for video in table.videos))
        if not used:
            raise ConfigError(
                f"data.train {self._data.train!r} holds no interval with a label: there is nothing to learn. Write "
                "rows of path,start,end,label."
            )
        return table.videos, table.classes

    def test(self, classes: tuple[str, ...]) -> list[IntervalVideo]:
        """Videos of the test part."""
        return self._table(self._data.test or self._data.train, classes).videos

    def _table(self, source: str, classes: tuple[str, ...] | None) -> IntervalTable:
        table = self._read(source, part="train" if classes is None else "test", classes=classes)
        for note in table.notes:
            logger.warning("%s: %s", source, note)
        if table.missing:
            logger.warning(
                "%s: %d of the listed videos are not there, such as %s; %d are",
                *(source, len(table.missing), table.missing[0], len(table.videos)),
            )
        table.require_sound(source)
        return table


class _Divider(Generic[V]):
    """Divides the videos of a run into those for training, validation and test.

    Args:
        config: of the run.
        announced: log how many there are.
        labels: the videos with their labels.
    """

    def __init__(self, config: RunConfig, announced: bool, labels: _Labels[V]) -> None:
        self._data, self._level = config.data, logging.INFO if announced else logging.DEBUG
        self._labels: _Labels[V] = labels
        self._seed = config.seed if config.data.split_seed < 0 else config.data.split_seed

    def division(self) -> Division[V]:
        """The videos to train on, to choose on and to evaluate on."""
        data, labels = self._data, self._labels
        videos, classes = labels.train()
        if data.folds:
            training, held_out = self._fold(videos, classes)
        elif data.test or labels.held_out_name:
            training, held_out = videos, labels.test(classes)
            where = data.test or data.train
            _refuse_overlap(training, held_out, where)
            part = "test" if data.test else labels.held_out_name
            sizes = (len(training), len(held_out), part, len(classes))
            logger.log(self._level, "%d training videos, %d %s videos, %d classes", *sizes)
        else:
            training, held_out = self._hold_out(videos, classes)
        training, validation = self._validation(training)
        return Division(training, held_out, classes, validation)

    def _fold(self, videos: list[V], classes: tuple[str, ...]) -> tuple[list[V], list[V]]:
        data = self._data
        numbers = fold_numbers(videos, data.folds, self._seed)
        held_out = [video for video in videos if numbers[video.video_id] == data.fold]
        training = [video for video in videos if numbers[video.video_id] != data.fold]
        sizes = (data.fold, data.folds, len(training), len(held_out), self._groups(held_out))
        logger.log(self._level, "fold %d of %d: %d videos to train on, %d held out%s", *sizes)
        trained = {label for video in training for label in _labels_of(video, classes)}
        lost = sorted({label for video in held_out for label in _labels_of(video, classes)} - trained)
        if lost:
            logger.warning("fold %d: no video to train on has the class %s", data.fold, ", ".join(map(repr, lost[:5])))
        return training, held_out

    def _hold_out(self, videos: list[V], classes: tuple[str, ...]) -> tuple[list[V], list[V]]:
        data = self._data
        items = [video for video in videos if isinstance(video, VideoItem)]
        if items and not data.group:
            # as in all versions before there were groups
            training, held_out = split_items(items, data.held_out_ratio, self._seed)
            _require_held_out(training, held_out, classes, data.train)
            ids = {item.video_id for item in held_out}
            basis, percentage = "of each class", 100 * data.held_out_ratio
        else:
            ids = set(hold_out(videos, data.held_out_ratio, self._seed))
            # More than was asked for where few videos have to show every class on both sides.
            basis, percentage = "by group" if data.group else "of the videos", 100 * len(ids) / len(videos)
        logger.log(
            self._level,
            "no data.test: of %d videos, %d (%.0f %% %s) are held out for evaluation, sampled with seed %d%s",
            *(len(videos), len(ids), percentage, basis, self._seed),
            self._groups([video for video in videos if video.video_id in ids]),
        )
        return _divided(videos, ids)

    def _validation(self, training: list[V]) -> tuple[list[V], list[V]]:
        ratio = self._data.validation_ratio
        if not ratio:
            return training, []
        ids = hold_out(training, ratio, self._seed, what="data.validation_ratio")
        left, validation = _divided(training, ids)
        sizes = (len(validation), len(training), self._groups(validation))
        logger.log(self._level, "%d of the %d training videos are for validation%s", *sizes)
        return left, validation

    def _groups(self, videos: Sequence[V]) -> str:
        if not self._data.group:
            return ""
        names = sorted({video.group for video in videos})
        shown = ", ".join(names[:8])
        return f", groups {shown}{', ...' if len(names) > 8 else ''}"


def _labels_of(video: Video, classes: Sequence[str]) -> Collection[str]:
    return [classes[video.label]] if isinstance(video, VideoItem) else video.labels


def _divided(videos: list[V], ids: Collection[str]) -> tuple[list[V], list[V]]:
    return [video for video in videos if video.video_id not in ids], [
        video for video in videos if video.video_id in ids
    ]


def _require_held_out(
    training: Sequence[VideoItem], held_out: Sequence[VideoItem], classes: Sequence[str], source: str
) -> None:
    """Says which classes the evaluation does not see.

    Raises:
        ConfigError: it sees none.
    """
    if not held_out:
        raise ConfigError(
            f"data.train {source!r} holds one video of each of its {len(classes)} classes, so none can be held out "
            "for evaluation. Add videos, or name others to evaluate on with data.test."
        )
    alone = sorted({item.label for item in training} - {item.label for item in held_out})
    if alone:
        names = ", ".join(repr(classes[label]) for label in alone[:5])
        more = ", ..." if len(alone) > 5 else ""
        logger.warning(
            "%d of %d classes have a single video, which is trained on: the evaluation does not see them: %s%s",
            *(len(alone), len(classes), names, more),
        )


def evaluated_on(config: RunConfig) -> str:
    """What `read_videos` evaluates on, for reports."""
    data = config.data
    if data.test:
        return data.test
    if data.folds:
        return f"fold {data.fold} of {data.folds} of {data.train}"
    source: _ClipLabels | _IntervalLabels = (
        _IntervalLabels(config) if config.task == "intervals" else _ClipLabels(config)
    )
    if source.held_out_name:
        own = ("auto", "folder", "list", "intervals")
        published = "" if data.reader in own else f" ({data.reader}, split {data.split})"
        return f"the {source.held_out_name} part of {data.train}{published}"
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


def _refuse_overlap(training: Sequence[Video], test: Sequence[Video], source: str) -> None:
    """Nothing is scored on what it was trained on.

    Raises:
        ConfigError: files or groups are on both sides.
    """
    groups = {item.group for item in training} & {item.group for item in test} - {""}
    if groups:
        raise ConfigError(
            f"{len(groups)} groups of data.group are in training and in test, such as {min(groups)!r}. Move their "
            "videos to one side."
        )
    known = {os.path.realpath(item.path) for item in training}
    both = [item for item in test if os.path.realpath(item.path) in known]
    if both:
        raise ConfigError(
            f"{len(both)} of the {len(test)} videos of {source!r} to evaluate on are training videos, too, such as "
            f"{both[0].path}. Leave them out of one side: scores on training videos say nothing about others."
        )


def make_training_set(config: RunConfig, items: Sequence[VideoItem], classes: Sequence[str]) -> VideoDataset:
    """Clips with random frames, crops and colours; of few videos out of memory, where `data.kept_frames` says so.

    Args:
        config: of the run.
        items: training videos.
        classes: label texts in the order of their numbers.
    """
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


def make_training_clips(config: RunConfig, dataset: VideoDataset | WindowDataset, processes: Processes) -> DatasetClips:
    """Batches of a training set; of few videos, as many passes an epoch as `data.clips_per_epoch` asks for.

    Args:
        config: of the run.
        dataset: videos, or windows of long ones.
        processes: those that every batch is divided between.
    """
    num_passes = 1 if isinstance(dataset, WindowDataset) else config.data.passes(len(dataset))
    if num_passes > 1:
        logger.info("each of the %d training videos is taken %d times an epoch", len(dataset), num_passes)
    return DatasetClips(dataset, config.loader, seed=config.seed, processes=processes, num_passes=num_passes)


def make_test_set(
    config: RunConfig, items: Sequence[VideoItem], classes: Sequence[str], views: Views, *, dense_rate: float = 0.0
) -> VideoDataset:
    """All views of each video.

    Args:
        config: of the run.
        items: videos to score.
        classes: label texts in the order of their numbers.
        views: windows in time and crops of each.
        dense_rate: of the model, see `view_indices`.
    """
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
        dense_rate=dense_rate,
    )


def _log_mirroring(classes: Sequence[str]) -> None:
    """Says which classes a mirrored clip swaps, and which are never mirrored."""
    mirrored = mirrored_labels(classes)
    swapped = sum(other is not None and other != index for index, other in enumerate(mirrored))
    alone = [classes[index] for index, other in enumerate(mirrored) if other is None]
    if swapped:
        logger.info("mirrored clips of %d classes take the label of the opposite direction", swapped)
    if alone:
        logger.info("%d classes name a direction without an opposite and are not mirrored: %s", len(alone), alone[:5])
