import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

from kinescan.ops import triton_probe


def test_the_trivial_kernel_runs_in_the_interpreter() -> None:
    code = f"import {triton_probe.__name__} as probe; probe.launch('cpu')"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
