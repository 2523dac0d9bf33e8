"""Every name of Python's own library that it calls private and this package uses, and nothing else."""

from concurrent.futures import ProcessPoolExecutor


def kill_workers(pool: ProcessPoolExecutor) -> None:
    """Ends a pool's processes in the middle of what they do; from Python 3.14 on, pools have a method for that."""
    for process in list((pool._processes or {}).values()):
        process.kill()
