import subprocess
import sys
from pathlib import Path

import pytest

from kinescan.inference.export import export
from kinescan.models.zoo import create_model

SHOW = """
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
    assert "is not supported" not in done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "imports",
    [
        "import kinescan as ks\nks.register_transformers()\nimport transformers",
        "import transformers\nfrom transformers import AutoConfig\nimport kinescan as ks\n"
        "ks.register_transformers()\nks.register_transformers()",
    ],
)
def test_auto_classes_load_an_export_once_registered(folder: Path, imports: str) -> None:
    expected = "KinescanForVideoClassification KinescanVideoProcessor b"
    assert _run(f"{imports}\n{SHOW}", folder) == expected


def test_importing_kinescan_imports_and_changes_nothing() -> None:
    code = """
import sys
before = list(sys.meta_path), list(sys.path_hooks)
import kinescan
print((sys.meta_path, sys.path_hooks) == before)
print([name for name in ("torch", "transformers", "numpy") if name in sys.modules])
"""
    assert _run(code).splitlines() == ["True", "[]"]


def test_without_transformers_the_error_names_the_extra() -> None:
    code = """
import sys
sys.modules["transformers"] = None
import kinescan
try:
    kinescan.register_transformers()
except kinescan.errors.DependencyError as error:
    print(error)
"""
    assert "kinescan[vlm]" in _run(code)
