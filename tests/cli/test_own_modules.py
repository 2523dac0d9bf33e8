"""docs/own_module.md, by command line: its GRU scanner trains, is scored, predicts, streams and goes on."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import kinescan as ks
from kinescan.models import registry
from kinescan.models.zoo import create_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own_module.md"
BLOCKS = dict(
    zip(("module", "check"), re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL), strict=True)
)
RECIPE = re.findall(r"```toml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)[0]
TOUCHING = "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n"


def forget() -> None:
    """As in a new process: the module is not imported."""
    registry.REGISTERED.clear()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("my_scanner", "stranger_code")]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    forget()


@pytest.fixture
def fresh(kinescan: Any) -> Callable[..., Any]:
    """Runs a command line as a new process would, with nothing imported before."""

    def run(*arguments: str | Path) -> Any:
        forget()
        return kinescan(*arguments)

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, videos: Path, tiny: list[str]) -> Path:
    """The folder in which the page's command lines are run; kinescan train gru.toml ran there."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_scanner.py").write_text(BLOCKS["module"], encoding="utf-8")
    (folder / "gru.toml").write_text(RECIPE, encoding="utf-8")
    (folder / "videos").symlink_to(videos)
    settings = [word for setting in [*tiny, "optim.epochs=1"] for word in ("--set", setting)]
    # A process of its own, as each that torchrun starts.
    command = [sys.executable, "-m", "kinescan", "train", "gru.toml", "--output", "runs/gru", *settings, "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 3
    return folder


def test_the_module_is_short() -> None:
    assert len([line for line in BLOCKS["module"].splitlines() if line.strip()]) < 40


def test_what_was_trained_is_scored_predicts_and_streams(
    fresh: Any, trained: Path, videos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(trained)
    own = ("--import", "my_scanner")
    saved = json.loads((trained / "runs/gru/checkpoints/best/config.json").read_text("utf-8"))
    assert (saved["model"], saved["module"], saved["config"]["hidden"]) == ("pks4_gru_ti16", "my_scanner", 32)
    scored = fresh("eval", "runs/gru", *own, "--json", "--device", "cpu")
    assert scored.exit_code == 0, scored.stderr
    assert json.loads(scored.stdout)["model"] == "pks4_gru_ti16"
    video = videos / "dark" / "0.mp4"
    predicted = fresh("predict", *own, video, "--model", "runs/gru", "--json", "--device", "cpu")
    assert predicted.exit_code == 0, predicted.stderr
    state = tmp_path / "state.safetensors"
    whole = fresh("stream", video, "--model", "runs/gru", *own, "--json", "--device", "cpu")
    assert whole.exit_code == 0, whole.stderr
    kept = [
        fresh("stream", video, "--model", "runs/gru", *own, "--json", "--device", "cpu", "--state", state)
        for _ in range(2)
    ]
    first, second = (json.loads(run.stdout.splitlines()[-1]) for run in kept)
    assert json.loads(whole.stdout.splitlines()[-1])["scores"] == first["scores"]
    assert first["scores"] != second["scores"]
    profiled = fresh("profile", "pks4_gru_ti16", *own, "--repeats", "0", "--json")
    assert profiled.exit_code == 0, profiled.stderr
    assert "pks4_gru_ti16" in json.loads(fresh("list", "models", "--json", *own).stdout)["models"]


def test_the_run_goes_on_by_its_folder(fresh: Any, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    assert tomllib.loads((trained / "runs/gru/recipe.toml").read_text("utf-8"))["model"]["module"] == "my_scanner"
    arguments = ("train", "runs/gru", "--resume", "--set", "optim.epochs=2", "--json")
    for line in (arguments, ("train", "runs/gru/recipe.toml", "--output", "another")):
        refused = fresh(*line)
        assert refused.exit_code == 2
        assert "--import my_scanner" in refused.stderr
    resumed = fresh(*arguments, "--import", "my_scanner")
    assert resumed.exit_code == 0, resumed.stderr
    assert json.loads(resumed.stdout)["steps"] == 6


def test_a_stream_gives_what_whole_clips_give(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.syspath_prepend(trained)
    # The block loads the run: its weights are made to matter, as those of a new scanner add nothing yet.
    original = ks.from_pretrained

    def stirred(folder: str) -> Any:
        model = original(folder)
        torch.nn.init.normal_(model.scanner.out.weight)
        torch.nn.init.normal_(model.head.weight)
        return model

    monkeypatch.setattr(ks, "from_pretrained", stirred, raising=False)
    namespace: dict[str, Any] = {}
    exec(BLOCKS["check"], namespace)
    assert len(namespace["after_each_frame"]) == 6
    assert (namespace["after_each_frame"][0] - namespace["after_each_frame"][1]).abs().max() > 1e-3


def test_an_unknown_model_says_which_module_it_needs(
    fresh: Any, trained: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    for arguments in (
        ("eval", "runs/gru"),
        ("predict", videos / "dark" / "0.mp4", "--model", "runs/gru"),
        ("stream", videos / "dark" / "0.mp4", "--model", "runs/gru"),
        ("export", "runs/gru", "out", "--to", "torch"),
        ("profile", "runs/gru"),
    ):
        refused = fresh(*arguments)
        assert refused.exit_code == 1, refused.output
        assert "CheckpointError" in refused.stderr
        assert "--import my_scanner" in refused.stderr
    assert "my_scanner" not in sys.modules


@pytest.mark.parametrize("in_the_run", [True, False])
def test_a_strangers_run_imports_nothing(
    fresh: Any, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_the_run: bool
) -> None:
    """Also not where the command is run in the very folder of the code, and for models that kinescan knows."""
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("stranger_code", None)
    run = tmp_path / "run"
    options = {"patch_size": 16, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 16, "embed_dim": 16}
    model = create_model("vit_ti16", labels=["bright", "dark"], image_size=32, **options)
    model.save_pretrained(run / "checkpoints" / "best")
    model.save_pretrained(run / "checkpoints" / "last")
    config = run / "checkpoints" / "best" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | {"module": "stranger_code"}), "utf-8")
    # Of data that is absent, so that training ends where it would begin.
    recipe = '[model]\nname = "vit_ti16"\nmodule = "stranger_code"\n[data]\ntrain = "absent"\n'
    (run / "recipe.toml").write_text(recipe, encoding="utf-8")
    code = (run if in_the_run else tmp_path) / "stranger_code.py"
    code.write_text(TOUCHING, encoding="utf-8")
    monkeypatch.chdir(code.parent)
    video = videos / "dark" / "0.mp4"
    assert fresh("predict", video, "--model", run, "--device", "cpu").exit_code == 0
    fresh("eval", run, "--device", "cpu")
    fresh("eval", run, "--data", videos, "--device", "cpu")
    fresh("stream", video, "--model", run)
    fresh("train", run, "--resume")
    fresh("train", run / "recipe.toml", "--resume")
    fresh("train", run / "recipe.toml", "--dry-run")
    fresh("profile", run, "--repeats", "0")
    fresh("data", "check", run / "recipe.toml", "--quick")
    fresh("recipe", run / "recipe.toml")
    fresh("list", "recipes", "--recipes", run)
    assert not code.with_suffix(".ran").exists()
    # The same line with the user's word for it.
    fresh("predict", video, "--model", run, "--device", "cpu", "--import", "stranger_code")
    assert code.with_suffix(".ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("my_scanner", "import nothing_of_this_name\n", "nothing_of_this_name"),
        ("my_scanner", "x = 1 / 0\n", "ZeroDivisionError"),
        ("my_scanner", "raise SystemExit(3)\n", "SystemExit"),
        ("my_scanner", "def broken(:\n", "SyntaxError"),
        ("my_scanner", 'import kinescan as ks\nks.register_model("vit_b16", None, None)\n', "vit_b16"),
        ("my_scanner.py", "", "my_scanner?"),
        ("./my_scanner.py", "", "my_scanner?"),
        ("absent_module", "", "absent_module"),
        ("my_scanner.part", "", "my_scanner.part"),
        ("", "", "my_module"),
    ],
)
def test_modules_that_cannot_be_imported(
    fresh: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_scanner.py").write_text(content, encoding="utf-8")
    refused = fresh("list", "models", "--import", name)
    assert refused.exit_code == 2, refused.output
    assert refused.stderr.startswith("ConfigError: ")
    assert said in refused.stderr


def test_a_file_called_like_a_module_of_python_is_said(
    fresh: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("", encoding="utf-8")
    refused = fresh("list", "models", "--import", "json")
    assert refused.exit_code == 2
    assert "Rename" in refused.stderr
