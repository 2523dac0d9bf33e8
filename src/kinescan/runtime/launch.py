"""How this process was started: the one module that reads what torchrun and `accelerate launch` say of it."""

import os


def rank() -> int:
    """The index of this process among those that were started together, from 0; alone, 0."""
    return _number("RANK", 0)


def world_size() -> int:
    """How many processes were started together; alone, 1."""
    return _number("WORLD_SIZE", 1)


def local_world_size() -> int:
    """How many of them run on this machine; alone, 1."""
    return _number("LOCAL_WORLD_SIZE", 1)


def was_launched() -> bool:
    """Whether a launcher started this process, alone or with others, and hands signals on to it."""
    return bool(os.environ.get("RANK"))


def missing_variables() -> list[str]:
    """What several processes need to find each other and was not set; empty for one process.

    Launchers that hold processes together by other means than torchrun's variables (MPI, Slurm alone) are not known.
    """
    if world_size() == 1:
        return []
    return [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]


def is_main_process() -> bool:
    """Whether this is the process that writes and shows: the first of several, or the only one."""
    return rank() == 0


def _number(name: str, alone: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else alone
