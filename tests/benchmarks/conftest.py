import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
NAMES = (
    "curves",
    "findings",
    "headlines",
    "measure",
    "models_cpu",
    "models_gpu",
    "ops_gpu",
    "peers",
    "pks4_over_vit",
    "render",
    "stream",
    "suite",
    "ssp_grid",
    "ssp_grid_base",
    "ssp_tuners",
    "table1_memory",
    "training_compute",
    "training_compute_plot",
)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a script of benchmarks/ by its name, as the scripts there import each other."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in NAMES:
        sys.modules.pop(name, None)
