import os
import signal
import sys

import pytest

from kinescan.training.interruption import Interruption

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends a process there")


def test_the_first_signal_asks_and_the_second_ends_at_once() -> None:
    with Interruption() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_without_repeats_further_signals_are_the_first_one() -> None:
    with Interruption(repeats=False) as stop:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.requested == "SIGTERM"
        stop.immediate = True
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
