import subprocess
import sys
from pathlib import Path

import pytest

from kinescan.inference.export import export
from kinescan.models.zoo import create_model

SHOW = """
import transformers
model = transformers.AutoModelForVideoClassification.from_pretrained(FOLDER)
processor = transformers.pipeline("video-classification", model=FOLDER).video_processor
print(type(model).__name__, type(processor).__name__, model.config.id2label[1])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    target = tmp_path_factory.mktemp("transformers") / "model"
    model = create_model("vit_ti16", labels=["a", "b"], depth=1, image_size=32, preprocessing={"num_frames": 2})
    export(model, target, to="transformers")
    return target


def _run(code: str, folder: Path | None = None) -> str:
    code = f"FOLDER = {str(folder)!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "will not know" not in done.stderr
    assert "is not supported" not in done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "imports",
    [
        "import kinescan\nfrom transformers import AutoModelForVideoClassification",
        "from transformers import AutoConfig, AutoModelForVideoClassification, pipeline\nimport kinescan",
    ],
)
def test_plain_transformers_code_loads_an_export_in_either_order(folder: Path, imports: str) -> None:
    expected = "KinescanForVideoClassification KinescanVideoProcessor b"
    assert _run(f"{imports}\n{SHOW}", folder) == expected


def test_a_model_of_transformers_imported_by_itself_brings_the_lists_without_a_complaint(folder: Path) -> None:
    # its base class imports the list of configurations before it is there itself
    imports = "import kinescan\nfrom transformers.models.mamba import modeling_mamba"
    code = f"{imports}\nfrom transformers import AutoConfig\nprint(AutoConfig.from_pretrained(FOLDER).model_type)"
    assert _run(code, folder) == "kinescan"


def test_importing_kinescan_imports_neither_transformers_nor_torch() -> None:
    code = "import sys, kinescan\nprint([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    assert _run(code) == "[]"


def test_without_transformers_importing_kinescan_changes_nothing() -> None:
    code = """
import importlib.machinery, sys

class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "transformers" else super().find_spec(name, path, target)

sys.meta_path[:] = [Without if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
before = list(sys.meta_path)
import kinescan
print(sys.meta_path == before)
"""
    assert _run(code) == "True"


def test_a_transformers_that_changed_stays_usable() -> None:
    pytest.importorskip("transformers")
    code = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
import kinescan.registration as registration
registration._CLASSES = "kinescan.nowhere"
from transformers import AutoConfig
print(AutoConfig.__name__)
"""
    lines = _run(code).splitlines()
    assert lines[0].startswith("transformers' Auto classes will not know kinescan's models: ")
    assert lines[-1] == "AutoConfig"
