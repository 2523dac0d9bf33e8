"""What is read from this machine alone refuses addresses by name, whatever their kind; a recipe is read at one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.loopback_store import serve

from kinescan.config import load_recipe
from kinescan.data.listing import list_videos
from kinescan.data.synthetic.writing import PictureConfig, write_dataset
from kinescan.errors import ConfigError, KinescanError
from kinescan.events.disk_queue import DiskQueue
from kinescan.events.recording import Recorder
from kinescan.inference.export import export
from kinescan.inference.model_source import resolve_model
from kinescan.models.weights.checkpoint_file import open_checkpoint
from kinescan.runs.compare import compare_reports
from kinescan.runs.convert import convert
from kinescan.runs.demo import clear_output
from kinescan.runs.train import train
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.output_folder import prepare_output
from kinescan.runtime.recipe_files import find_recipe
from kinescan.studies.compare import compare_runs
from kinescan.studies.report_page import write_report
from kinescan.studies.study import load_study

LOCAL_ALONE: dict[str, Callable[[str], Any]] = {
    "a model": resolve_model,
    "weights": open_checkpoint,
    "a study": load_study,
    "a report": write_report,
    "runs beside each other": lambda run: compare_runs([Path(run)]),
    "two reports": lambda run: compare_reports(run, run),
    "an export": lambda file: convert(Path(file), Path("labels.csv")),
    "an output": prepare_output,
    "an exported model": lambda folder: export("motion", folder, to="torch"),
    "a demo": lambda folder: clear_output(Path(folder)),
    "a queue": DiskQueue,
    "a recording": lambda folder: Recorder(f"{folder}/a.mp4"),
    "a made data set": lambda folder: write_dataset(folder, "clips", PictureConfig(), ("a",), []),
    "a file": lambda file: write_text(Path(file), "x"),
}
READ_ELSEWHERE_TOO: dict[str, Callable[[str], Any]] = {
    "a recipe": find_recipe,
    "videos": list_videos,
    "the folder of a list": lambda root: list_videos("l.csv", root=root),
}
UNREAD = (
    "az://container/x.toml",
    "memory://x/y",
    "file:///data/x",
    "abfss://container@account.dfs/x",
    "hf://datasets/x/y",
)


@pytest.mark.parametrize("address", ["s3://bucket/x", "gs://bucket/x", "https://host/x", *UNREAD])
@pytest.mark.parametrize("name", LOCAL_ALONE)
def test_an_address_of_what_is_here_alone(
    name: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KinescanError) as refused:
        LOCAL_ALONE[name](address)
    scheme = address.partition("://")[0]
    assert f"{scheme}://" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", UNREAD)
@pytest.mark.parametrize("name", READ_ELSEWHERE_TOO)
def test_an_address_of_another_kind(name: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "l.csv").write_text("path,label\na.mp4,x\n")
    with pytest.raises(KinescanError) as refused:
        READ_ELSEWHERE_TOO[name](address)
    scheme = address.partition("://")[0]
    # what was given, and what is allowed
    assert f"{scheme}://" in str(refused.value)
    assert "s3://" in str(refused.value)
    assert ("Leave file:// out" in str(refused.value)) == (scheme == "file")


def test_a_recipe_is_read_at_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('model = "pks4_vit_ti16"\n[data]\ntrain = "videos"\n')
    with serve(tmp_path) as (url, _):
        for recipe in (f"{url}/mine.toml", Path(f"{url}/mine.toml")):
            config = load_recipe(recipe, ["optim.epochs=3"])
            assert (config.model.name, config.data.train, config.optim.epochs) == ("pks4_vit_ti16", "videos", 3)
        with pytest.raises(ConfigError) as missing:
            load_recipe(f"{url}/other.toml")
    assert f"{url}/other.toml" in str(missing.value)


def test_a_recipe_at_an_address_imports_no_code_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "its_module.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "mine.toml").write_text(
        'model = {name = "its_model", module = "its_module"}\n[data]\ntrain = "videos"\n'
    )
    with serve(tmp_path) as (url, _), pytest.raises(ConfigError, match="--import its_module"):
        train(f"{url}/mine.toml")
