"""One function over many files, in processes that a file may bring down."""

from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from kinescan.data.disk_cache import say_again, take_said
from kinescan.data.loader import start_worker, worker_context
from kinescan.runtime.python_internals import kill_workers

Item = TypeVar("Item")
Result = TypeVar("Result")
CRASH = "decoding it ends the process: the file is damaged in a way that FFmpeg does not survive."


def each_file(
    paths: list[Item], work: Callable[[Item], Result], *, num_workers: int, crashed: Callable[[Item], Result]
) -> Generator[Result, None, None]:
    """What a function makes of each file, in the order in which they are done.

    Where the caller is interrupted or wants no more, the processes are ended in the middle of their files.

    Args:
        paths: the files, or whatever names what is worked on.
        work: can be pickled.
        num_workers: processes; 0 works in this one.
        crashed: what stands for a file that ends the process that reads it.
    """
    if not num_workers:
        yield from map(work, paths)
        return
    lost = []
    for path, result in _in_processes(paths, work, num_workers):
        if result is None:
            lost.append(path)
        else:
            yield result
    for path in lost:
        # one of them ended its process, and took the others that were under way with it
        [(_, result)] = _in_processes([path], work, 1)
        yield crashed(path) if result is None else result


def _in_processes(
    paths: list[Item], work: Callable[[Item], Result], num_workers: int
) -> Generator[tuple[Item, Result | None], None, None]:
    """Paths with their results; None for those that were under way when a process ended."""
    left = list(reversed(paths))
    while left:
        under_way: dict[Future[tuple[Result, list[tuple[str, str]]]], Item] = {}
        with ProcessPoolExecutor(num_workers, mp_context=worker_context(), initializer=start_worker) as pool:
            try:
                while left or under_way:
                    while left and len(under_way) < 4 * num_workers:
                        under_way[pool.submit(_with_log, work, left[-1])] = left[-1]
                        left.pop()
                    done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                    for future in done:
                        result, said = future.result()
                        say_again(said)
                        yield under_way.pop(future), result
            except BrokenProcessPool:
                yield from ((path, None) for path in under_way.values())
            except BaseException:
                kill_workers(pool)
                raise


def _with_log(work: Callable[[Item], Result], item: Item) -> tuple[Result, list[tuple[str, str]]]:
    """In a worker: the result, and what the main process is to say for it."""
    return work(item), take_said()
