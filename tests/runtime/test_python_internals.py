import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest

from kinescan.runtime.python_internals import kill_workers


def test_ctrl_c_in_data_check_needs_the_processes_of_a_pool() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        waiting = pool.submit(time.sleep, 60)
        kill_workers(pool)
        with pytest.raises(BrokenProcessPool):
            waiting.result(timeout=30)
