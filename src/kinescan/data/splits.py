"""Which videos are held out: sampled by group, so that what belongs together stays on one side."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from kinescan.data.datasets import stable_seed
from kinescan.data.intervals import IntervalVideo
from kinescan.data.listing import VideoItem
from kinescan.errors import ConfigError

Video = VideoItem | IntervalVideo


@dataclass(frozen=True)
class _Group:
    """Videos that stay together: how many, and how many of each label."""

    name: str
    size: int
    labels: Counter[str]


def group_of(video: Video) -> str:
    """What a video belongs to: its group, or itself alone."""
    return video.group or video.video_id


def hold_out(videos: Sequence[Video], ratio: float, seed: int, *, what: str = "held_out_ratio") -> frozenset[str]:
    """The ids of a part of the videos, by group.

    Groups are sampled in an order that depends on the seed and their names only, until the part has its fraction of the
    videos; then each label that it lacks brings the first group that has it. No group is taken that is the last one
    with a label, so that training sees every label.

    Args:
        videos: all of them.
        ratio: fraction to hold out, in (0, 1).
        seed: of the random numbers.
        what: the setting, for errors.

    Raises:
        ConfigError: there are fewer than two groups, or none can be held out.

    Example:
        >>> from pathlib import Path
        >>> people = [VideoItem(Path(f"{i}.mp4"), i % 2, f"{i}.mp4", f"person{i // 4}") for i in range(20)]
        >>> sorted(hold_out(people, 0.2, seed=0))
        ['0.mp4', '1.mp4', '2.mp4', '3.mp4']
    """
    if not 0 < ratio < 1:
        raise ConfigError(f"{what} must lie between 0 and 1, got {ratio}.")
    groups = sorted(_groups(videos), key=lambda group: stable_seed(seed, group.name))
    _require_groups(videos, len(groups), 2, what)
    left: Counter[str] = Counter()
    for group in groups:
        left.update(dict.fromkeys(group.labels, 1))
    wanted, size = max(1, round(ratio * len(videos))), 0
    taken: set[str] = set()
    labels: set[str] = set()

    def take(group: _Group) -> bool:
        nonlocal size
        if len(taken) + 1 == len(groups) or any(left[label] < 2 for label in group.labels):
            return False
        left.subtract(dict.fromkeys(group.labels, 1))
        labels.update(group.labels)
        taken.add(group.name)
        size += group.size
        return True

    for group in groups:
        # a large group is left where a smaller one comes closer to the ratio
        if size < wanted and (size + group.size <= 2 * wanted or not taken):
            take(group)
    for label in sorted(left):
        if label not in labels and left[label] > 1:
            next((group for group in groups if label in group.labels and take(group)), None)
    if not taken:
        raise ConfigError(
            f"none of the {len(groups)} groups can be held out: each is the only one with one of its labels. Add "
            "videos, or name others to evaluate on with data.test."
        )
    return frozenset(video.video_id for video in videos if group_of(video) in taken)


def fold_numbers(videos: Sequence[Video], num_folds: int, seed: int) -> dict[str, int]:
    """Id of each video -> its fold, from 1: folds of about equal size, each with about its fraction of every label.

    Groups stay together. Those that are large go first, into the fold that has the least of their labels; equal ones
    in an order that depends on the seed and their names only.

    Args:
        videos: with their labels and groups; a video without a group is one of its own.
        num_folds: how many, from 2.
        seed: of the order of equal groups.

    Raises:
        ConfigError: there are fewer groups than folds.

    Example:
        >>> from pathlib import Path
        >>> people = [VideoItem(Path(f"{i}.mp4"), i % 2, f"{i}.mp4", f"person{i // 4}") for i in range(20)]
        >>> sorted(Counter(fold_numbers(people, 5, seed=0).values()).items())
        [(1, 4), (2, 4), (3, 4), (4, 4), (5, 4)]
    """
    groups = sorted(_groups(videos), key=lambda group: (-group.size, stable_seed(seed, group.name)))
    _require_groups(videos, len(groups), num_folds, f"folds = {num_folds}")
    totals: Counter[str] = Counter()
    for group in groups:
        totals.update(group.labels)
    folds_of_labels: list[Counter[str]] = [Counter() for _ in range(num_folds)]
    sizes, numbers = [0] * num_folds, {}

    def load(fold: int, group: _Group) -> tuple[float, int, int]:
        """How full a fold is with what the group brings; an empty one is the emptiest."""
        same = sum(folds_of_labels[fold][label] / totals[label] for label in group.labels)
        return (same + sizes[fold] / len(videos), sizes[fold], fold)

    for group in groups:
        fold = min(range(num_folds), key=lambda fold: load(fold, group))
        folds_of_labels[fold].update(group.labels)
        sizes[fold] += group.size
        numbers[group.name] = fold + 1
    return {video.video_id: numbers[group_of(video)] for video in videos}


def _groups(videos: Sequence[Video]) -> list[_Group]:
    members: dict[str, list[Video]] = defaultdict(list)
    for video in videos:
        members[group_of(video)].append(video)
    return [
        _Group(name, len(inside), Counter(label for video in inside for label in _labels(video)))
        for name, inside in members.items()
    ]


def _labels(video: Video) -> Sequence[str]:
    return [str(video.label)] if isinstance(video, VideoItem) else sorted(video.labels)


def _require_groups(videos: Sequence[Video], count: int, least: int, what: str) -> None:
    if count < least:
        kind = "groups" if any(video.group for video in videos) else "videos"
        raise ConfigError(
            f"{what} needs at least {least} {kind} to divide, and there are {count}. Add videos, choose another "
            "data.group, or name others to evaluate on with data.test."
        )
