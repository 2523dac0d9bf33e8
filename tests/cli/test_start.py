import json
import subprocess
import sys
from typing import Any

import pytest

HEAVY = {
    *("torch", "numpy", "numba", "triton", "kornia", "matplotlib", "accelerate", "transformers", "av", "PIL"),
    *("huggingface_hub", "safetensors", "sympy", "psutil", "onnx", "openvino"),
}
MOST_MODULES = 500
"""A bare Python with typer and rich has some 350; torch alone brings 1,000 more."""
SCRIPT = """
import contextlib, io, json, sys
from kinescan.cli.main import VERBS, build_app

said = {}
for line in ([], *([verb] for verb in VERBS), ["data", "make"], ["data", "check"]):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        build_app(only="".join(line[:1]))(args=[*line, "--help"], prog_name="kinescan", standalone_mode=False)
    said[" ".join(line)] = printed.getvalue()
print(json.dumps({"said": said, "modules": sorted(sys.modules)}))
"""


@pytest.fixture(scope="module")
def after_every_help() -> dict[str, Any]:
    """What the help of every verb printed, and the modules of a process that printed all of them."""
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True)
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_help_of_every_verb_loads_nothing_heavy(after_every_help: dict[str, Any]) -> None:
    assert all("Usage:" in text for text in after_every_help["said"].values())
    loaded = {name.partition(".")[0] for name in after_every_help["modules"]}
    assert loaded & HEAVY == set()
    assert len(after_every_help["modules"]) <= MOST_MODULES


def test_help_loads_no_module_that_does_the_work(after_every_help: dict[str, Any]) -> None:
    ours = {name.partition(".")[2] for name in after_every_help["modules"] if name.startswith("kinescan.")}
    rooms = {name.partition(".")[0] for name in ours}
    assert rooms <= {"cli", "runs", "runtime", "studies", "web", "errors", "version"}
    assert {name for name in ours if name.startswith(("runs", "studies", "web"))} == {"runs", "studies", "web"}


LISTS = """
import contextlib, io, json, sys
from kinescan.cli.main import build_app

said = {}
kinds = ([], ["models"], ["recipes"], ["datasets"], ["backends"], ["settings"])
lists = [["list", *kind, *form] for kind in kinds for form in ([], ["--json"])]
for line in (*lists, ["recipe", "own_videos_cpu"], ["recipe"], ["list", "nothing"]):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = 0
        try:
            code = build_app(only=line[0])(args=line, standalone_mode=False) or 0
        except SystemExit as end:
            code = end.code
        except Exception as error:
            code = type(error).__name__
    said[" ".join(line)] = (code, printed.getvalue())
print(json.dumps({"said": said, "modules": sorted(sys.modules)}))
"""


def test_every_list_and_a_recipe_load_nothing_heavy() -> None:
    run = subprocess.run([sys.executable, "-c", LISTS], capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(run.stdout)
    answered = {line: text for line, (code, text) in found["said"].items() if not code}
    assert {"list", "list --json", "list settings", "list settings --json", "recipe own_videos_cpu"} <= answered.keys()
    assert all(answered.values())
    assert "pks4_vit_b16" in answered["list models"]
    assert "numba" in answered["list backends"]
    assert "optim.lr" in answered["list settings"]
    assert {name.partition(".")[0] for name in found["modules"]} & HEAVY == set()


def test_prediction_and_training_load_no_compiler() -> None:
    """torch._dynamo takes two seconds of CPU to load, which every command would wait for."""
    script = "import sys, kinescan.runs.predict, kinescan.runs.train; print('torch._dynamo' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    assert run.stdout.strip() == "False"
