"""The check of a GPU that its user runs once: parts in processes of their own, one JSON, and what doctor reads."""

import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from kinescan.errors import BackendError, ConfigError, KinescanError
from kinescan.profiling.environment import describe_environment
from kinescan.runs.gpu_parts import PARTS
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.escaping import to_json
from kinescan.runtime.files import read_json_object
from kinescan.settings import closest

logger = logging.getLogger(__name__)

FORMAT = 1
TOTAL_SECONDS = 585.0
"""Limit of the whole check: parts that have not begun by then are not run."""
DEVICES = ("auto", "cuda", "cpu")
CHILD = (sys.executable, "-c", "import sys; from kinescan.runs.gpu_parts import main; main(sys.argv[1:])")
"""What runs a part, before the part's name, the device, "small" or "full", and the file of its outcome."""

Status = Literal["passed", "failed", "timed out", "left out"]


@dataclass(frozen=True, kw_only=True)
class PartResult:
    """The outcome of a part.

    Attributes:
        name: of the part.
        status: "left out" where this device cannot run it or what it builds on failed.
        seconds: it took, with the start of its process.
        problems: what is wrong.
        notes: further remarks.
        numbers: what it measured.
    """

    name: str
    status: Status
    seconds: float
    problems: list[str]
    notes: list[str]
    numbers: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class GpuCheck:
    """A check of a GPU, or a rehearsal of it on a CPU.

    Attributes:
        rehearsal: it ran on a CPU with tiny sizes, and says nothing about any GPU.
        device: name of the device.
        date: when it ended, in UTC.
        seconds: it took.
        is_complete: every part was run, or left out for a reason.
        environment: versions, hardware, commit.
        triton: its version; None where it is not installed.
        parts: in their order.
        format: of the file.
    """

    rehearsal: bool
    device: str
    date: str
    seconds: float
    is_complete: bool
    environment: dict[str, Any]
    triton: str | None
    parts: list[PartResult]
    format: int = FORMAT

    @property
    def problems(self) -> list[str]:
        """What failed, a line each."""
        bad = [part for part in self.parts if part.status in ("failed", "timed out")]
        return [f"{part.name}: {problem}" for part in bad for problem in part.problems]


@dataclass(frozen=True, kw_only=True)
class LastGpuCheck:
    """The last check, as far as its file tells.

    Attributes:
        status: "not run", or what its file says; "unreadable" where the file does not say it.
        path: of the file.
        note: one sentence: when, on which device, with which versions; or why there is nothing.
        problems: what failed.
        changed: what is different here and now, such as "torch: 2.12.0 then, 2.13.0 now"; it then says little.
    """

    status: Literal["not run", "passed", "failed", "incomplete", "unreadable"]
    path: str
    note: str
    problems: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


def result_path(*, rehearsal: bool = False) -> Path:
    """Where the result lies: $XDG_STATE_HOME/kinescan/gpu_check.json, by default below ~/.local/state.

    Args:
        rehearsal: of a rehearsal, which has a file of its own.

    Raises:
        ConfigError: this user has no home.
    """
    said = Path(os.environ.get("XDG_STATE_HOME", ""))
    try:
        # As the XDG specification has it, a relative path does not count.
        folder = said if said.is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise ConfigError(f"no home folder ({error}). Set XDG_STATE_HOME to a folder that you may write to.") from error
    return folder / "kinescan" / ("gpu_check_rehearsal.json" if rehearsal else "gpu_check.json")


def check_gpu(device: str = "auto", *, parts: Sequence[str] | None = None) -> GpuCheck:
    """Runs every part, each in a process of its own, and writes the result; takes less than ten minutes.

    Args:
        device: "auto" or "cuda" for the first CUDA device that is visible; "cpu" rehearses every part with tiny sizes
            in Triton's interpreter, which says nothing about a GPU.
        parts: names of those to run; None for all.

    Returns:
        the result, as it was written to `result_path`.

    Raises:
        ConfigError: the device or a part is unknown, or the result cannot be written.
        BackendError: there is no CUDA device.
    """
    if device not in DEVICES:
        raise ConfigError(f"--gpu-check: unknown device {device!r}. {closest(device, DEVICES)}")
    rehearsal = device == "cpu"
    if not rehearsal:
        _require_gpu()
    chosen = tuple(PARTS) if parts is None else tuple(parts)
    for name in chosen:
        if name not in PARTS:
            raise ConfigError(f"--gpu-check: unknown part {name!r}. {closest(name, tuple(PARTS))}")
    path = result_path(rehearsal=rehearsal)
    start, results = time.monotonic(), list[PartResult]()

    def write() -> GpuCheck:
        check = _describe(results, rehearsal, time.monotonic() - start, is_complete=len(results) == len(chosen))
        text = to_json(asdict(check), indent=1) + "\n"
        write_text(path, text, advice="Set XDG_STATE_HOME to a folder that you may write to.")
        return check

    if not path.exists():
        write()  # a folder that cannot be written is found before ten minutes are spent
    for name in chosen:
        # A rehearsal may take as long as a slow machine needs.
        left = math.inf if rehearsal else TOTAL_SECONDS - (time.monotonic() - start)
        results.append(_run(name, results, left, rehearsal=rehearsal))
        logger.info("%s", _line(results[-1], len(results), len(chosen)))
        check = write()
    return check if chosen else write()


def last_gpu_check() -> LastGpuCheck:
    """What the last check of a GPU found, for `kinescan doctor`; never raises."""
    try:
        path = result_path()
        rehearsed = result_path(rehearsal=True)
    except ConfigError as error:
        return LastGpuCheck(status="not run", path="", note=str(error))
    if not path.exists():
        note = "not run on a GPU. On a machine with one: kinescan doctor --gpu-check"
        if rehearsed.exists():
            note += f" (a rehearsal on a CPU lies in {rehearsed}; it says nothing about a GPU)"
        return LastGpuCheck(status="not run", path=str(path), note=note)
    try:
        check = parse_check(read_json_object(path), path)
    except (KinescanError, OSError) as error:
        return LastGpuCheck(status="unreadable", path=str(path), note=f"{error} Run kinescan doctor --gpu-check again.")
    here = check.environment
    ran = (
        f"of {check.date} on {check.device}, kinescan {here.get('kinescan')} (commit {here.get('commit') or 'unknown'})"
    )
    done = f"{sum(part.status == 'passed' for part in check.parts)} of {len(check.parts)} parts passed"
    status: Any = "failed" if check.problems else "passed" if check.is_complete else "incomplete"
    note = f"{ran}: {done}, in {check.seconds:.0f} s{'' if check.is_complete else '; it was stopped before its end'}"
    return LastGpuCheck(
        status=status, path=str(path), note=note, problems=tuple(check.problems), changed=_changed(check)
    )


def parse_check(said: Mapping[str, Any], path: Path) -> GpuCheck:
    """The check that a file holds.

    Raises:
        ConfigError: it holds none of this format.
    """
    try:
        if said["format"] != FORMAT:
            raise ConfigError(f"{path} has format {said['format']!r}; this version reads {FORMAT}.")
        parts = [PartResult(**part) for part in said["parts"]]
        check = GpuCheck(**{**said, "parts": parts})
        fits = all(part.status in get_args(Status) and isinstance(part.problems, list) for part in parts)
        if not (fits and isinstance(check.environment, dict) and isinstance(check.seconds, int | float)):
            raise TypeError("a field has another type")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, KinescanError):
            raise
        raise ConfigError(f"{path} is not the result of a check of a GPU ({error}).") from error
    return check


def _require_gpu() -> None:
    """Passes where there is a CUDA device."""
    if torch.cuda.is_available():
        return
    build = "has no CUDA" if torch.version.cuda is None and torch.version.hip is None else "finds no device"
    kind = "Apple's GPUs run the plain forms, which the tests cover. " if torch.backends.mps.is_available() else ""
    raise BackendError(
        f"--gpu-check needs a CUDA device, and torch {torch.__version__} {build} here. {kind}Run it on a machine with "
        "a GPU and a torch that was built for it (nvidia-smi lists the GPU). `--device cpu` rehearses the check, which "
        "says nothing about a GPU."
    )


def _run(name: str, before: Sequence[PartResult], left_seconds: float, *, rehearsal: bool) -> PartResult:
    """A part in a process of its own, ended at its limit."""
    bad = {part.name for part in before if part.status != "passed"}
    failed = [needed for needed in PARTS[name].after if needed in bad]
    if failed:
        note = f"{' and '.join(failed)} did not pass, and no speed is measured of what is wrong"
        return PartResult(name=name, status="left out", seconds=0.0, problems=[], notes=[note], numbers={})
    limit = min(PARTS[name].limit_seconds, left_seconds)
    if limit <= 1:
        problem = f"the {TOTAL_SECONDS:.0f} s of the whole check were over before it began"
        return PartResult(name=name, status="timed out", seconds=0.0, problems=[problem], notes=[], numbers={})
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outcome.json"
        words = (name, *(("cpu", "small") if rehearsal else ("cuda", "full")), str(path))
        ended = _run_child(words, limit, _environment(rehearsal=rehearsal))
        seconds = round(time.monotonic() - start, 1)
        if ended is None:
            problem = f"ended after its {limit:.0f} s"
            return PartResult(name=name, status="timed out", seconds=seconds, problems=[problem], notes=[], numbers={})
        try:
            return PartResult(name=name, seconds=seconds, **read_json_object(path))
        except (KinescanError, OSError, TypeError):
            return PartResult(name=name, status="failed", seconds=seconds, problems=[ended], notes=[], numbers={})


def _run_child(words: Sequence[str], limit_seconds: float, environment: Mapping[str, str]) -> str | None:
    """How the process of a part ended, in words; None where it had to be ended."""
    child = subprocess.Popen(
        [*CHILD, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=dict(environment),
        start_new_session=True,
    )
    try:
        _, said = child.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(child)
    lines = said.decode(errors="replace").strip().splitlines() or ["nothing on standard error"]
    if child.returncode < 0:
        return f"its process was ended by {signal.Signals(-child.returncode).name}; it wrote last: {lines[-1]}"
    return f"its process ended with exit code {child.returncode}; it wrote last: {lines[-1]}"


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends a process with all that it started, such as torch's compilers."""
    kill: Callable[[int, int], None] | None = getattr(os, "killpg", None)
    with suppress(ProcessLookupError, PermissionError):
        if kill is None:
            child.kill()
        else:
            kill(child.pid, signal.SIGKILL)
    child.wait()
    if child.stderr is not None:
        child.stderr.close()


def _environment(*, rehearsal: bool) -> dict[str, str]:
    # Kernels that are interpreted say nothing about a GPU; a rehearsal uses nothing else.
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {**kept, "TRITON_INTERPRET": "1"} if rehearsal else kept


def _describe(results: Sequence[PartResult], rehearsal: bool, seconds: float, *, is_complete: bool) -> GpuCheck:
    environment = asdict(describe_environment())
    names = environment["accelerators"]
    return GpuCheck(
        rehearsal=rehearsal,
        device=f"cpu (a rehearsal on {environment['cpu']}: nothing about a GPU)" if rehearsal else names[0],
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        is_complete=is_complete,
        environment=environment,
        triton=_triton_version(),
        parts=list(results),
    )


def _triton_version() -> str | None:
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return None


def _changed(check: GpuCheck) -> tuple[str, ...]:
    """What differs between then and now."""
    now, then = asdict(describe_environment()), check.environment
    pairs = [("kinescan", then.get("kinescan"), now["kinescan"]), ("commit", then.get("commit"), now["commit"])]
    packages = then.get("packages")
    pairs.append(("torch", packages.get("torch") if isinstance(packages, dict) else None, now["packages"]["torch"]))
    pairs.append(("triton", check.triton, _triton_version()))
    pairs.append(("device", check.device, next(iter(now["accelerators"]), "no CUDA device")))
    return tuple(f"{name}: {old or 'unknown'} then, {new or 'unknown'} now" for name, old, new in pairs if old != new)


def _line(part: PartResult, number: int, count: int) -> str:
    told = "; ".join((*part.problems, *part.notes))
    return f"{number}/{count} {part.name}: {part.status} ({part.seconds:.0f} s){': ' if told else ''}{told}"
