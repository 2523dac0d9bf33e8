"""The videos of a run, known again when it is evaluated or resumed later or elsewhere."""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from kinescan.config import RunConfig
from kinescan.data.intervals import IntervalVideo
from kinescan.data.listing import VideoItem
from kinescan.data.provenance import RecordedVideo, RunVideos, fingerprints, read_run_videos, record_videos
from kinescan.data.splits import Video
from kinescan.errors import CheckpointError, ConfigError
from kinescan.evaluation.report import CHOSEN_ON_THESE
from kinescan.runs.datasets import Division, evaluated_on, read_clips, read_videos
from kinescan.runtime.files import parse_json, read_text
from kinescan.runtime.run_folder import BEST, VIDEOS_FILE, RunFolder
from kinescan.training.checkpoint import load_state

logger = logging.getLogger(__name__)

TRAINING_VIDEOS = "training_videos"
"""Key of the digest of the training videos among the settings in a checkpoint."""
_MAX_LOG_BYTES = 2**30


def training_digest(training: Sequence[Video]) -> str:
    """Which videos a run is trained on, wherever they lie: their number and a hash of ids and labels."""
    lines = "\n".join(f"{item.video_id}\t{_label(item)}" for item in training)
    digest = hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{len(training)} videos, SHA-256 {digest[:16]}"


def _label(video: Video) -> str:
    if isinstance(video, VideoItem):
        return str(video.label)
    return ";".join(f"{item.label},{item.start_seconds!r},{item.end_seconds!r}" for item in video.intervals)


def videos_of_run(
    folder: Path, config: RunConfig, division: Division[VideoItem] | Division[IntervalVideo]
) -> RunVideos:
    """The record of a run that begins, or that of one that is resumed, with the paths where its videos are now.

    Args:
        folder: of the run.
        config: of the run.
        division: its videos as they are listed now.

    Raises:
        ConfigError: most training videos have other content than when the run began.
        CheckpointError: the record is damaged.
    """
    now = record_videos(
        division.training,
        division.held_out,
        division.classes,
        origin=evaluated_on(config),
        validation=division.validation,
    )
    before = read_run_videos(folder)
    if before is None:
        return now
    everywhere = (*before.train, *before.validation, *before.held_out)

    def recorded(part: Sequence[RecordedVideo]) -> dict[str, str]:
        # Videos of different lists may have the same id: that of the own part counts.
        return {video.video_id: video.fingerprint for video in (*everywhere, *part)}

    known = recorded(before.train)
    there = [video for video in now.train if video.fingerprint and known.get(video.video_id)]
    changed = [video for video in there if video.fingerprint != known[video.video_id]]
    if changed:
        said = (
            f"{len(changed)} of the {len(there)} training videos have other content than when the run in {folder} "
            f"began, such as {changed[0].path}"
        )
        if 2 * len(changed) > len(there):
            raise ConfigError(
                f"{said}. Name the folder of its videos with data.train, or start anew in another output."
            )
        logger.warning("%s. The weights will not be those of an undisturbed run", said)

    def kept(videos: Sequence[RecordedVideo], part: Sequence[RecordedVideo]) -> tuple[RecordedVideo, ...]:
        prints = recorded(part)
        return tuple(replace(video, fingerprint=prints.get(video.video_id, video.fingerprint)) for video in videos)

    return replace(
        now,
        train=kept(now.train, before.train),
        validation=kept(now.validation, before.validation),
        held_out=kept(now.held_out, before.held_out),
    )


def held_out_items(run: Path, recipe: RunConfig | None) -> tuple[list[VideoItem], tuple[str, ...], str]:
    """What a run held out, as it was when the run began: the videos, the classes, and what they are called.

    Videos that were added meanwhile are not among them.

    Args:
        run: its folder.
        recipe: its settings; None where they are lost.

    Raises:
        ConfigError: the videos are not there, or were replaced by others.
        CheckpointError: the record is damaged.
    """
    recorded = read_run_videos(run)
    if recorded is None:
        if recipe is None:
            raise ConfigError(f"{run} does not say what it held out. Name videos with --data.")
        division = read_clips(recipe)
        _refuse_other_training_videos(run, division.training)
        return division.held_out, division.classes, evaluated_on(recipe)
    items = [video.item(path) for video, path in located(run, recipe, recorded.held_out, "held out")]
    return items, recorded.classes, recorded.origin


def located(
    run: Path, recipe: RunConfig | None, videos: Sequence[RecordedVideo], what: str
) -> list[tuple[RecordedVideo, Path]]:
    """Recorded videos of a run, and where each is now: where it was, or where the run's data has it.

    Args:
        run: its folder.
        recipe: its settings; None where they are lost.
        videos: some of those that it records.
        what: the run did with them, for errors.

    Raises:
        ConfigError: none is there, or they were replaced by others.
    """
    elsewhere: dict[str, Path] | None = None
    found, changed, missing = [], [], []
    prints = fingerprints([video.path for video in videos])
    for video, print_ in zip(videos, prints, strict=True):
        path = Path(video.path)
        if video.fingerprint and print_ != video.fingerprint:
            if elsewhere is None:
                elsewhere = _paths_now(run, recipe)
            other = elsewhere.get(video.video_id)
            [there] = fingerprints([other]) if other is not None else [None]
            if other is not None and there == video.fingerprint:
                path = other
            elif print_ or there:
                changed.append(video.path if print_ or other is None else str(other))
            else:
                missing.append(video.path)
        found.append((video, path))
    advice = "Bring them back, or name others with --data: they are compared with what the run was trained on."
    if changed:
        raise ConfigError(
            f"{len(changed)} of the {len(videos)} videos that {run} {what} have other content than when it began, "
            f"such as {changed[0]}. {advice}"
        )
    if videos and len(missing) == len(videos):
        raise ConfigError(
            f"none of the {len(videos)} videos that {run} {what} is there; the first was {missing[0]}. {advice}"
        )
    return found


def was_chosen(checkpoint: Path, run: Path) -> bool:
    """Whether a checkpoint is the best of several that its run evaluated; of a single one nothing was chosen.

    Args:
        checkpoint: its folder.
        run: the folder of its run; without a log it is taken to have evaluated several.
    """
    log = RunFolder(run).log
    if checkpoint.name != BEST or not log.is_file():
        return checkpoint.name == BEST
    epochs = set()
    for line in read_text(log, max_bytes=_MAX_LOG_BYTES).splitlines():
        # a line that was cut by a kill is none
        with suppress(ConfigError):
            entry = parse_json(line, log)
            if isinstance(entry, dict) and entry.get("kind") == "evaluation":
                epochs.add(str(entry.get("epoch")))
    return len(epochs) != 1


def seen_notes(run: Path, recipe: RunConfig | None, items: Sequence[Video], *, chosen_best: bool) -> Iterator[str]:
    """What a run has seen of other videos that it is scored on, for a report.

    Args:
        run: its folder.
        recipe: its settings; None where they are lost.
        items: the videos.
        chosen_best: the checkpoint was chosen as the best of its run.
    """
    recorded = read_run_videos(run)
    foreign: tuple[str, ...] = ()
    if recorded is not None:
        prints = fingerprints([item.path for item in items])
        foreign = tuple(_foreign_notes(recorded, items, prints))
        training, held_out = (
            sum(found is not None and found in {video.fingerprint for video in videos} for found in prints)
            for videos in (recorded.train, recorded.chosen_on)
        )
    else:
        try:
            known = None if recipe is None else read_clips(recipe, announced=False)
        except ConfigError:
            known = None
        if known is None:
            yield "The run's own videos are not there any more, so it is unknown whether some of these are among them."
            return
        paths = {os.path.abspath(item.path) for item in items}
        training, held_out = (
            sum(os.path.abspath(item.path) in paths for item in part) for part in (known.training, known.chosen_on)
        )
    if training:
        yield (
            f"{training} of the {len(items)} videos are training videos of this run: the score says little about "
            "others."
        )
    if held_out == len(items) and chosen_best:
        yield CHOSEN_ON_THESE
    elif held_out and chosen_best:
        yield f"{held_out} of the {len(items)} videos chose this checkpoint as the best of its run."
    yield from foreign


def _foreign_notes(recorded: RunVideos, items: Sequence[Video], prints: Sequence[str | None]) -> Iterator[str]:
    """On videos that are not in the run's list: those with the name of one that is, and the others."""
    known = {video.fingerprint for video in (*recorded.train, *recorded.validation, *recorded.held_out)}
    own = [item for item, found in zip(items, prints, strict=True) if found is None or found not in known]
    trained = {video.video_id for video in (*recorded.train, *recorded.chosen_on)}
    alike = [item for item in own if item.video_id in trained]
    if alike:
        yield (
            f"{len(alike)} of the {len(items)} videos have the name of a video that this run was trained or chosen on, "
            f"and other content, such as {alike[0].video_id}. If they are copies of it, the score says little about "
            "others."
        )
    added = [item for item in own if item.video_id not in trained]
    if added and len(added) < len(items):
        yield (
            f"{len(added)} of the {len(items)} videos are not in the run's list of videos ({VIDEOS_FILE}), such as "
            f"{added[0].video_id}: they were added later or come from elsewhere, and it did not hold them out."
        )
    elif added:
        yield f"None of the {len(items)} videos is in the run's list ({VIDEOS_FILE}): they are new to it."


def _paths_now(run: Path, recipe: RunConfig | None) -> dict[str, Path]:
    """The videos that the recipe's data holds now where the run had none, by id; none where the data is not there.

    Training and test folders may have files of the same names: where a video was, another one of that name is not it.
    """
    try:
        if recipe is None:
            return {}
        division = read_videos(recipe, announced=False)
    except ConfigError:
        return {}
    recorded = read_run_videos(run)
    parts = () if recorded is None else (recorded.train, recorded.validation, recorded.held_out)
    before = {os.path.abspath(video.path) for part in parts for video in part}
    now = (*division.training, *division.validation, *division.held_out)
    return {video.video_id: video.path for video in now if os.path.abspath(video.path) not in before}


def _refuse_other_training_videos(run: Path, training: Sequence[VideoItem]) -> None:
    """Of a run of an earlier version, only a digest of its training videos is known.

    Raises:
        ConfigError: the videos that are there now would be divided in another way.
    """
    try:
        recorded = load_state(RunFolder(run).last).settings.get(TRAINING_VIDEOS)
    except CheckpointError:
        logger.warning("%s does not say which videos it was trained on: they may be among those that are scored", run)
        return
    now = training_digest(training)
    if recorded is not None and recorded != now:
        raise ConfigError(
            f"{run} was trained on {recorded}; its data gives {now} now, and it has no {VIDEOS_FILE} that says which "
            "videos it held out. Some of these may be training videos: put the videos back as they were, or name "
            "others with --data."
        )
