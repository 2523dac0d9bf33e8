import os
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from kinescan.version import __version__

PACKAGES = ("torch", "numba", "numpy", "av", "accelerate")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where a number was measured; saved with every result.

    Attributes:
        kinescan: version of this package.
        commit: of the checkout this package runs from, "-dirty" where it was changed; None outside a checkout.
        python: its version.
        packages: name -> version of those that numbers depend on.
        system: operating system and kind of processor.
        cpu: the processor's name.
        num_cores: cores that this process may use.
        memory_gib: main memory in GiB; None where the system does not tell.
        accelerators: names of the CUDA devices.
    """

    kinescan: str
    commit: str | None
    python: str
    packages: dict[str, str]
    system: str
    cpu: str
    num_cores: int
    memory_gib: float | None
    accelerators: tuple[str, ...]


def describe_environment() -> Environment:
    """The machine, the versions and the commit at hand.

    Example:
        >>> describe_environment().kinescan == __version__
        True
    """
    return Environment(
        kinescan=__version__,
        commit=_commit(),
        python=platform.python_version(),
        packages={name: metadata.version(name) for name in PACKAGES},
        system=f"{platform.system()} {platform.machine()}",
        cpu=_cpu_name(),
        num_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=_memory_gib(),
        accelerators=tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())),
    )


def _commit() -> str | None:
    package = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=12", "--match=-"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        tracked = subprocess.run(
            ["git", "-C", str(package), "ls-files", "--error-unmatch", Path(__file__).name],
            capture_output=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    # Installed into an environment that lies inside someone else's checkout, that checkout's commit says nothing.
    return found.stdout.strip() if tracked.returncode == 0 else None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
