import importlib.util
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kinescan.errors import ConfigError
from kinescan.runtime.files import read_toml
from kinescan.runtime.output_folder import prepare_output
from kinescan.settings import build_settings, closest

logger = logging.getLogger(__name__)

QUICK_OUTPUT = Path("runs/bench_quick")
QUICK_NOTE = (
    "A quick run: small sizes, few repetitions. It shows that everything runs and agrees; the aims are for full sizes."
)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One script of the suite, as benchmarks/suite.toml describes it.

    Attributes:
        script: file in the folder `benchmarks` of the checkout.
        says: what it measures.
        minutes: how long the full run takes on one core, about.
        arguments: of the full run.
        quick: arguments of the quick run; None: it has none.
        needs: packages by import name, and "cuda".
        by_name: run only when it is named.
    """

    script: str
    says: str
    minutes: float
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] | None = None
    needs: tuple[str, ...] = ()
    by_name: bool = False

    def missing(self) -> list[str]:
        """What it needs and this machine does not have."""
        return [
            name
            for name in self.needs
            if not (torch.cuda.is_available() if name == "cuda" else importlib.util.find_spec(name))
        ]


@dataclass(frozen=True, kw_only=True)
class BenchmarkRun:
    """What became of one benchmark.

    Attributes:
        name: in the suite.
        seconds: wall time; None where it did not run.
        results: the JSON files that it wrote.
        problem: why it did not run, or did not finish; None where all went well.
        failed: whether it began and did not finish.
    """

    name: str
    seconds: float | None
    results: tuple[str, ...]
    problem: str | None
    failed: bool


def bench(
    names: Sequence[str] = (), *, quick: bool = False, output: str | Path | None = None
) -> tuple[list[BenchmarkRun], Path]:
    """Runs the benchmarks of the checkout that this package lies in, one after another, and writes their page.

    The scripts stand beside the package, not in it: they bring peers to compare with, which a user does not need, and
    their numbers name the commit of the checkout. Each checks that the candidates agree before it times them.

    Args:
        names: of the suite; by default all that can run here and are not too long.
        quick: small sizes and few repetitions, to see that all runs; not for numbers to quote.
        output: folder of the JSON files and of benchmarks.md; by default benchmarks/results of the checkout, with
            docs/benchmarks.md as the page, or runs/bench_quick.

    Returns:
        What became of each, and the page.

    Raises:
        ConfigError: there is no checkout, no such benchmark, a benchmark has no quick form, or quick results would
            replace the published ones.
    """
    root = find_checkout(Path(__file__).parents[1] / "__init__.py")
    suite = read_suite(root)
    chosen = _choose(suite, names, quick=quick)
    published = root / "benchmarks" / "results"
    folder = Path(output) if output is not None else QUICK_OUTPUT if quick else published
    if quick and folder.resolve() == published:
        raise ConfigError(f"quick results would replace the published ones in {folder}. Choose another --output.")
    folder = prepare_output(folder).resolve()
    runs = [_run(root, name, suite[name], folder, quick=quick) for name in chosen]
    page = root / "docs" / "benchmarks.md" if folder == published else folder / "benchmarks.md"
    render = [str(root / "benchmarks" / "render.py"), "--results", str(folder), "--page", str(page)]
    subprocess.run([sys.executable, *render, "--note", QUICK_NOTE if quick else ""], check=True)
    return runs, page


def find_checkout(package_file: Path) -> Path:
    """The root of the checkout that a package lies in.

    Args:
        package_file: kinescan's `__init__.py`.

    Raises:
        ConfigError: it lies in none.
    """
    root = package_file.resolve().parents[2]
    if not (root / "benchmarks" / "suite.toml").is_file():
        raise ConfigError(
            f"this kinescan is installed in {package_file.parent}, without the benchmarks: they are scripts of the "
            "repository, with peers that the package does not bring. Get the repository, install it with "
            "`pip install -e .`, and run kinescan bench again."
        )
    return root


def read_suite(root: Path) -> dict[str, Benchmark]:
    """The benchmarks of a checkout by name.

    Raises:
        ConfigError: suite.toml is not TOML, or an entry has unknown or missing keys.
    """
    entries = read_toml(root / "benchmarks" / "suite.toml")
    return {name: build_settings(Benchmark, entry, where=name) for name, entry in entries.items()}


def _choose(suite: Mapping[str, Benchmark], names: Sequence[str], *, quick: bool) -> list[str]:
    for name in names:
        if name not in suite:
            raise ConfigError(f"unknown benchmark {name!r}. {closest(name, suite)}")
        if quick and suite[name].quick is None:
            raise ConfigError(f"{name} has no quick form. Leave --quick out; it takes {suite[name].minutes:g} minutes.")
    if names:
        return list(names)
    return [name for name, entry in suite.items() if (entry.quick is not None if quick else not entry.by_name)]


def _run(root: Path, name: str, entry: Benchmark, folder: Path, *, quick: bool) -> BenchmarkRun:
    missing = entry.missing()
    problem: str | None = None
    if missing:
        problem = f"left out: needs {', '.join(missing)}"
        logger.warning("%s %s", name, problem)
        return BenchmarkRun(name=name, seconds=None, results=(), problem=problem, failed=False)
    logger.info("%s: %s", name, entry.says)
    before = _written(folder)
    started = time.monotonic()
    arguments = (entry.quick or ()) if quick else entry.arguments
    environment = {
        # Threads that wait for nothing disturb what is timed.
        **{"OMP_NUM_THREADS": "1", **os.environ},
        "KINESCAN_BENCHMARK_RESULTS": str(folder),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(root / "src"), os.environ.get("PYTHONPATH")))),
    }
    # What scripts print is progress: standard output is for our own result.
    # The results quote the command line, so it is the same wherever the checkout lies.
    done = subprocess.run(
        [sys.executable, f"benchmarks/{entry.script}", *arguments],
        cwd=root,
        env=environment,
        stdout=sys.stderr.fileno() if _has_file(sys.stderr) else subprocess.DEVNULL,
        check=False,
    )
    seconds = round(time.monotonic() - started, 1)
    after = _written(folder)
    changed = tuple(path for path, written in after.items() if before.get(path) != written)
    if done.returncode:
        problem = f"failed with exit code {done.returncode}; what it printed says why"
    elif not changed:
        problem = "wrote no result"
    return BenchmarkRun(name=name, seconds=seconds, results=changed, problem=problem, failed=problem is not None)


def _written(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.glob("*.json"))}


def _has_file(stream: Any) -> bool:
    try:
        stream.fileno()
    except (OSError, AttributeError):
        return False
    return True
