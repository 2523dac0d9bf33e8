"""How benchmarks here measure: peers in turn, medians, wall and CPU time, peak memory, one JSON with where and when."""

import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from kinescan.profiling import speed

HERE = Path(__file__).parent
PUBLISHED = HERE / "results"
"""What README and docs quote."""
RESULTS = Path(os.environ.get("KINESCAN_BENCHMARK_RESULTS") or PUBLISHED)
"""Where results go; `kinescan bench` sets the variable to the folder that it was given."""
PACKAGES = ("torch", "numba", "numpy", "kinescan")
"""Those that decide speed."""
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one candidate over its repetitions.

    Attributes:
        wall_seconds: median wall time of a call.
        cpu_seconds: median process CPU time of a call, all threads together; on a shared machine the one to trust.
        cpu_seconds_min: smallest of them.
        cpu_seconds_max: largest of them.
        repetitions: how many calls were timed, after one that was not.
        processes: how many processes did so; of several, seconds are the median of their medians, and min and max the
            lowest and the highest of these.
    """

    wall_seconds: float
    cpu_seconds: float
    cpu_seconds_min: float
    cpu_seconds_max: float
    repetitions: int
    processes: int = 1


def time_in_turn(candidates: Mapping[str, Callable[[], Any]], repetitions: int, warmups: int = 1) -> dict[str, Timing]:
    """Times of all candidates, called in turn (A B C A B C ...) so that a busy spell of the machine hits all alike."""
    for _ in range(warmups):
        for run in candidates.values():
            run()
    wall: dict[str, list[float]] = {name: [] for name in candidates}
    cpu: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repetitions):
        for name, run in candidates.items():
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            result = run()
            cpu[name].append(time.process_time() - cpu_start)
            wall[name].append(time.perf_counter() - wall_start)
            del result
    return {
        name: Timing(
            wall_seconds=statistics.median(wall[name]),
            cpu_seconds=statistics.median(cpu[name]),
            cpu_seconds_min=min(cpu[name]),
            cpu_seconds_max=max(cpu[name]),
            repetitions=repetitions,
        )
        for name in candidates
    }


def keep_freed_memory() -> None:
    """From now on the allocator hands freed memory out again instead of giving it back to the system (glibc).

    How long a system takes to hand over fresh memory differs by a factor of ten, from machine to machine and from one
    moment to the next; whoever needs more of it wins or loses by that.
    """
    libc = ctypes.CDLL(None)
    mmap_threshold, trim_threshold, largest = -3, -1, 2**31 - 1
    if not (libc.mallopt(mmap_threshold, largest) and libc.mallopt(trim_threshold, largest)):
        raise SystemExit("this C library has no mallopt")


def in_processes(script: str, arguments: Sequence[str], processes: int) -> list[dict[str, Any]]:
    """What a script finds in several processes, one after the other; says how far it is.

    Args:
        script: file in this folder; with `--process FILE` it measures once and writes a JSON there.
        arguments: beside that.
        processes: how many.

    Returns:
        the JSON of each, with `Timing`s where they were.
    """
    found = []
    for number in range(1, processes + 1):
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "found.json"
            command = [sys.executable, str(HERE / script), *arguments, "--process", str(path)]
            if subprocess.run(command, check=False).returncode:
                raise SystemExit(f"process {number} of {processes} failed: {' '.join(command)}")
            found.append(_with_timings(json.loads(path.read_text())))
        print(f"process {number} of {processes}: {time.perf_counter() - start:.0f} s", flush=True)
    return found


def write_found(path: Path, found: Mapping[str, Any]) -> None:
    """What `in_processes` reads."""
    path.write_text(json.dumps(found, default=_plain))


def over_processes(timings: Sequence[Timing]) -> Timing:
    """One timing of those of several processes."""
    seconds = [timing.cpu_seconds for timing in timings]
    return Timing(
        wall_seconds=statistics.median(timing.wall_seconds for timing in timings),
        cpu_seconds=statistics.median(seconds),
        cpu_seconds_min=min(seconds),
        cpu_seconds_max=max(seconds),
        repetitions=timings[0].repetitions,
        processes=len(timings),
    )


def ratios(times: Sequence[Mapping[str, Timing]], names: Sequence[str], below: str = "ours") -> dict[str, Any]:
    """CPU time of some candidates over that of one, within each process.

    Returns:
        a mapping by name each for the median, the lowest and the highest of the processes.
    """
    found = {name: [one[name].cpu_seconds / one[below].cpu_seconds for one in times] for name in names}
    kinds = {"": statistics.median, "_lowest": min, "_highest": max}
    return {kind: {name: round(of(values), 3) for name, values in found.items()} for kind, of in kinds.items()}


def _with_timings(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    if values.keys() == {field.name for field in fields(Timing)}:
        return Timing(**values)
    return {key: _with_timings(value) for key, value in values.items()}


def peak_extra_bytes(run: Callable[[], Any]) -> int:
    """Memory that a call needs at its peak, as `kinescan.profiling.speed` tells it; fails where nobody tells."""
    return _told(speed.peak_extra_bytes(run, CPU))


def first_call(run: Callable[[], Any]) -> tuple[Timing, int]:
    """Time of one call, and what `peak_extra_bytes` tells of it; for calls too long to be made twice (Linux)."""
    found: list[Timing] = []

    def timed() -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        result = run()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        del result
        found.append(
            Timing(wall_seconds=wall, cpu_seconds=cpu, cpu_seconds_min=cpu, cpu_seconds_max=cpu, repetitions=1)
        )

    peak = _told(speed.peak_extra_bytes(timed, CPU, warmups=0))
    return found[0], peak


def _told(peak: int | None) -> int:
    if peak is None:
        raise SystemExit("this system does not tell a process its peak memory: run the benchmark on Linux.")
    return peak


def write_result(
    name: str,
    *,
    seed: int,
    n: int,
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    folder: Path = RESULTS,
    packages: tuple[str, ...] = PACKAGES,
) -> Path:
    """Writes `<name>.json` with the results and everything needed to read them again.

    Args:
        name: file name without ending, such as "ops_selective_scan_cpu".
        seed: of the inputs.
        n: repetitions behind each median.
        settings: sizes and whatever else was chosen.
        results: numbers, and `Timing`s anywhere in nested dicts.
        folder: where to; `RESULTS` by default.
        packages: whose versions are told.
    """
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "name": name,
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *map(_without_own_folder, sys.argv)]),
        "hardware": hardware(),
        "versions": versions(packages),
        "seed": seed,
        "n": n,
        "settings": settings,
        "results": results,
    }
    path.write_text(json.dumps(document, indent=1, default=_plain) + "\n")
    return path


def hardware() -> dict[str, Any]:
    """The machine: processor, vector instructions, cores, memory, GPU."""
    return {
        "cpu": _cpu_model(),
        "instructions": _vector_instructions(),
        "cores": os.cpu_count(),
        "threads_used": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": os.getloadavg()[0],
    }


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of the packages that decide speed."""
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def commit() -> str:
    """The newest commit that others have, too; "+changes" when files of src or benchmarks differ from it.

    A commit of this checkout alone may get another name before it is pushed; without an upstream there is no other.
    """

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    found = git("merge-base", "HEAD", "@{upstream}") or git("rev-parse", "HEAD")
    changed = git("diff", "--name-only", found, "--", "../src", "*.py")
    return found + ("+changes" if changed else "")


def _without_own_folder(argument: str) -> str:
    """A path below the checkout as seen from there; of any other absolute path the last part: it names no machine."""
    name, mark, value = argument.rpartition("=") if argument.startswith("-") else ("", "", argument)
    path = Path(value)
    if not path.is_absolute():
        return argument
    root = HERE.parent
    return name + mark + (str(path.relative_to(root)) if path.is_relative_to(root) else path.name)


def _plain(value: Any) -> Any:
    if isinstance(value, Timing):
        return asdict(value)
    raise TypeError(f"cannot write {type(value).__name__} to JSON: give numbers, text, lists, dicts or Timings")


def _cpu_model() -> str:
    for line in _cpu_lines("model name"):
        return line
    return platform.processor() or platform.machine()


def _vector_instructions() -> list[str]:
    known = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")
    for line in _cpu_lines("flags", "Features"):
        return [word for word in known if word in line.split()]
    return []


def _cpu_lines(*fields: str) -> list[str]:
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    return [line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() in fields]
