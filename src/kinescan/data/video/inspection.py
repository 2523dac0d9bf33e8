import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kinescan.data.stored import is_plain, open_bytes, why_missing
from kinescan.data.video.decoder import only_video_errors
from kinescan.data.video.limits import Limits
from kinescan.data.video.reader import VideoReader
from kinescan.errors import CutVideoError, VideoError

Problem = Literal["missing", "unreadable", "short"]

# A header that is off by less than this is not called wrong: durations are rounded, and sound ends where it likes.
_SLACK_SECONDS, _SLACK_FRACTION = 0.5, 0.05
_CHUNK = 2**20
_SLACK_FRAMES, _SLACK_FRAMES_FRACTION = 2, 0.01


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What looking at a video file in full shows.

    Attributes:
        path: the file.
        problem: what is wrong: "missing", "unreadable", or "short": cut, damaged, or ending before its header says;
            None for a sound file.
        reason: why, in words.
        num_frames: frames that the file holds.
        seconds: how long it is.
        notes: what is unusual about it and no problem, in words.
        content: text that is the same for the same pictures, or with `decode=False` for the same bytes.
    """

    path: str
    problem: Problem | None = None
    reason: str = ""
    num_frames: int = 0
    seconds: float = 0.0
    content: str = ""
    notes: tuple[str, ...] = ()


def inspect_video(path: str | Path, *, decode: bool = True, limits: Limits | None = None) -> Inspection:
    """Whether a video file is whole, and what it holds; raises nothing for broken files.

    Args:
        path: the file.
        decode: decode every frame; otherwise only the file's structure and packets are read, and damage inside of
            them does not show.
        limits: on the time that it may take, and on the size of frames.

    Example:
        >>> import tempfile, torch
        >>> from kinescan.data.video import write_video
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     black = torch.zeros(20, 3, 24, 32, dtype=torch.uint8)
        ...     write_video(f"{folder}/a.webm", black, fps=10, codec="libvpx-vp9")
        ...     whole = Path(folder, "a.webm").read_bytes()
        ...     _ = Path(folder, "cut.webm").write_bytes(whole[: len(whole) // 2])
        ...     [inspect_video(f"{folder}/{name}.webm").problem for name in ("a", "cut", "lost")]
        [None, 'short', 'missing']
    """
    file = Path(path)
    try:
        if is_plain(file):
            file.stat()
        elif (reason := why_missing(file)) is not None:
            return Inspection(path=str(path), problem="missing", reason=reason)
    except (FileNotFoundError, NotADirectoryError):
        return Inspection(path=str(path), problem="missing", reason="no such file.")
    except (OSError, ValueError):
        # what is wrong, opening it says
        pass
    try:
        with VideoReader(file, limits=limits) as video:
            content = video.fingerprint() if decode else _digest(file)
            missing = video.missing_seconds()
            lost_frames = video.missing_frames()
            joined = video.next_file()
            found = Inspection(
                path=str(path),
                num_frames=video.num_frames,
                seconds=video.duration_seconds,
                content=content,
                notes=video.notes,
            )
    except CutVideoError as error:
        return Inspection(path=str(path), problem="short", reason=error.reason)
    except VideoError as error:
        return Inspection(path=str(path), problem="unreadable", reason=error.reason)
    if joined is not None and not joined.is_read:
        reason = f"another file begins at byte {joined.position:,}, behind its end, and is not read. Take them apart."
        return replace(found, problem="short", reason=reason, content="")
    if lost_frames > max(_SLACK_FRAMES, _SLACK_FRAMES_FRACTION * found.num_frames):
        reason = f"its index has {lost_frames} frames fewer than its header says."
        return replace(found, problem="short", reason=reason, content="")
    if joined is not None:
        note = f"another file begins at byte {joined.position:,}, behind its end; its frames follow those of the first"
        found = replace(found, notes=(*found.notes, note))
    if missing > max(_SLACK_SECONDS, _SLACK_FRACTION * found.seconds):
        return Inspection(
            path=str(path),
            problem="short",
            reason=f"its {found.num_frames} frames end {missing:.2f} s before its header says.",
        )
    return found


def _digest(file: Path) -> str:
    digest = hashlib.blake2b()
    with only_video_errors(file), open_bytes(file) as opened:
        while data := opened.read(_CHUNK):
            digest.update(data)
    return digest.hexdigest()[:32]
