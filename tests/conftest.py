import gc
import os
import random
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
# Tests leave nothing in the user's folder of caches; those of kept tables choose a folder of their own.
os.environ["KINESCAN_FRAME_TABLES"] = "off"

# Processes of pytest-xdist get the width of the terminal that the tests run on.
os.environ.pop("COLUMNS", None)

# A shell that starts the tests in the background makes them, and all that they start, deaf to these.
for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

if os.environ.get("KINESCAN_CHECK_SHAPES"):
    from jaxtyping import install_import_hook

    install_import_hook(["kinescan.ops", "kinescan.layers", "kinescan.models"], "beartype.beartype")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="module")
def dropped_sockets() -> Iterator[None]:
    """For modules whose servers and clients, which are not ours, leave sockets and event loops to the collector.

    Without it, their warnings come up in whatever test of another module the collector happens to run in.
    """
    yield
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random numbers."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_models() -> Iterator[None]:
    """Models that a test registers are its own: no other test of the process sees them."""
    from kinescan.models.catalog import REGISTERED  # after the import hook above

    before = dict(REGISTERED)
    yield
    REGISTERED.clear()
    REGISTERED.update(before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference values and real videos beside the checkout; tests that want them are skipped where they are absent."""
    if not (SHARED / "fixtures").is_dir():
        pytest.skip("no ../shared beside this checkout")
    return SHARED


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Iterator[Any]:
    """Reports travel between processes in UTF-8: a name that has bytes of no encoding is escaped in them."""
    data = yield
    return _escaped(data)


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {_escaped(key): _escaped(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_escaped(part) for part in value)
    return value
