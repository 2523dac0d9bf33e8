"""What else a study's folder holds: runs of other commits, settings or videos, which are kept apart."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from kinescan.errors import ConfigError
from kinescan.studies.job import RESULT_FILE, RunRecord, begun, read_record
from kinescan.studies.plan import Job, PreparedJob, StudyPlan

W = TypeVar("W", Job, PreparedJob)


def of_any_code(plan: StudyPlan) -> StudyPlan:
    """The plan with the folders of runs that another commit did, or began, where this one has none."""
    return replace(plan, jobs=tuple(_adopted(job) for job in plan.jobs))


def notes_of_others(plan: StudyPlan) -> Iterator[str]:
    """Sentences on the runs in the folder that the table does not count, and on those of other commits that it does."""
    own = {job.folder for job in plan.jobs}
    records = [record for folder in _folders(plan.store) if folder not in own and (record := _record(folder))]
    keys = {job.key for job in plan.jobs}
    if plan.study.shared:
        # the others there are those of other studies
        records = [record for record in records if record.key in keys]
    of_code = Counter(record.code for record in records if record.key in keys)
    for code, count in of_code.items():
        yield (
            f"{count} runs of the same settings and videos were made by {code}, not by {plan.code}. They are kept "
            "apart and not counted; --any-code counts them."
        )
    changed = [record for record in records if record.key not in keys]
    videos = {(job.row, job.data, job.seed): job.data_digest for job in plan.jobs}
    of_videos = sum(_other_videos(record, videos) for record in changed)
    if of_videos:
        yield f"{of_videos} runs in the folder were made with other videos than there are now. They are not counted."
    if len(changed) > of_videos:
        yield f"{len(changed) - of_videos} runs in the folder have other settings than the study. They are not counted."
    codes = Counter(record.code for job in plan.jobs if (record := read_record(job.folder)) is not None)
    foreign = {code: count for code, count in codes.items() if code != plan.code}
    for code, count in foreign.items():
        yield f"{count} of the runs that are counted were made by {code}, not by {plan.code}."


def _other_videos(record: RunRecord, videos: dict[tuple[str, str, int], str]) -> bool:
    now = videos.get((record.row, record.data, record.seed))
    return bool(now) and now != record.data_digest


def _adopted(work: W) -> W:
    preparation = None if work.preparation is None else _adopted(work.preparation)
    return replace(_elsewhere(work), preparation=preparation)


def _elsewhere(work: W) -> W:
    """The work in the folder of another commit that did it, or else began it."""
    if (work.folder / RESULT_FILE).exists():
        return work
    same = [folder for folder in sorted(work.folder.parent.glob(f"seed-{work.seed}-*")) if _key(folder) == work.key]
    done = [folder for folder in same if (folder / RESULT_FILE).exists()]
    if not done and work.folder.is_dir():
        return work
    found = done or same
    return replace(work, folder=found[-1]) if found else work


def _key(folder: Path) -> str:
    return str(begun(folder).get("key", ""))


def _folders(output: Path) -> list[Path]:
    return sorted({file.parent for file in (output / "runs").glob(f"**/{RESULT_FILE}")})


def _record(folder: Path) -> RunRecord | None:
    try:
        return read_record(folder)
    except ConfigError:
        return None
