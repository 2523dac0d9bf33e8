import os
import signal
import sys

import pytest

from kinescan.runtime.signals import Interruption

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


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals")
def test_a_closed_terminal_asks_once_however_often_it_says_so() -> None:
    with Interruption() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested == "SIGHUP"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals")
def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.requested is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
