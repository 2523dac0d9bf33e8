"""Lists, jobs and parts of predictions by Ray; Ray itself where it is installed."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kinescan.data.video import Limits, write_video
from kinescan.errors import ConfigError, DependencyError
from kinescan.inference.batch_predictor import BatchPredictor
from kinescan.models.zoo import create_model
from kinescan.runs import predict_ray, ray_cluster
from kinescan.runs.predict import prepare_prediction
from kinescan.runs.predict_ray import JOB_FILE, listed_paths, predict_by_ray
from kinescan.runs.ray_cluster import RaySettings


def test_every_line_of_a_list_is_a_row(tmp_path: Path) -> None:
    lines = [f"{number:05d}.mp4" for number in range(20_000)]
    for number in range(0, 20_000, 200):
        lines[number] = ("\0bad\0", "x" * 5000, "../é.mp4", '"quote', "https://me:pw@host/a.mp4")[number // 200 % 5]
    (tmp_path / "l.txt").write_text("# remark\n\n" + "\n".join(lines) + "\n")
    found = listed_paths([tmp_path / "l.txt"])
    assert len(found) == 20_000
    assert found[1] == str(tmp_path / "00001.mp4")
    assert found[800] == "https://me:pw@host/a.mp4"


def test_lists_with_columns(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text('label,path\nx,"a, b.mp4"\ny,s3://b/c.mp4\nz\n')
    assert listed_paths([tmp_path / "l.csv"]) == [str(tmp_path / "a, b.mp4"), "s3://b/c.mp4", ""]
    (tmp_path / "l.tsv").write_text("a.mp4\tx\nb.mp4\ty\n")
    assert listed_paths([tmp_path / "l.tsv"]) == [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]
    (tmp_path / "e.txt").write_text("\n# nothing\n")
    with pytest.raises(ConfigError):
        listed_paths([tmp_path / "e.txt"])


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv"])
@pytest.mark.parametrize("bad", ['"open.mp4', 'a"b.mp4', "x" * 200_000, '"' + "x" * 200_000, "a\x85b\x1cc\u2028d.mp4"])
def test_a_bad_line_takes_no_other_with_it(tmp_path: Path, suffix: str, bad: str) -> None:
    file = (tmp_path / "l").with_suffix(suffix)
    file.write_text("".join(f"{line}\r\n" for line in ["0.mp4", bad, *(f"{number}.mp4" for number in range(20_000))]))
    found = listed_paths([file])
    assert len(found) == 20_002
    assert (found[0], found[2], found[-1]) == (*[str(tmp_path / "0.mp4")] * 2, str(tmp_path / "19999.mp4"))
    assert bad.lstrip('"') in found[1]


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"part_rows": 0}, {"cpus": -1.0}, {"gpus": -0.5}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RaySettings(**wrong)


def test_a_folder_belongs_to_one_job(tmp_path: Path) -> None:
    job, settings = BatchPredictor("m"), RaySettings()
    predict_ray._claim(tmp_path, ["b.mp4"], job, settings)
    predict_ray._claim(tmp_path, ["a.mp4"], job, settings)
    (tmp_path / "part-000000.parquet").touch()
    predict_ray._claim(tmp_path, ["a.mp4"], job, settings)
    limited = BatchPredictor("m", limits=Limits(timeout_seconds=1.0))
    for paths, other, parts in (
        (["b.mp4"], job, 128),
        (["a.mp4"], BatchPredictor("n"), 128),
        (["a.mp4"], limited, 128),
        (["a.mp4"], job, 7),
    ):
        with pytest.raises(ConfigError, match=str(tmp_path)):
            predict_ray._claim(tmp_path, paths, other, RaySettings(part_rows=parts))
    (tmp_path / JOB_FILE).unlink()
    with pytest.raises(ConfigError, match=str(tmp_path)):
        predict_ray._claim(tmp_path, ["a.mp4"], job, settings)


def test_a_relative_line_of_a_list_at_an_address_is_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_ray, "read_text", lambda path, max_bytes: "a.mp4\nsub/b.mp4\nhttps://h/c.mp4\n")
    assert listed_paths(["s3://bucket/v/l.txt"]) == [
        "s3://bucket/v/a.mp4",
        "s3://bucket/v/sub/b.mp4",
        "https://h/c.mp4",
    ]


def _asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **options: Any) -> dict[str, Any]:
    """What the command line makes of its options."""
    found: dict[str, Any] = {}

    def predict_by_ray(paths: Any, output: Any, predictor: Any, settings: Any, **others: Any) -> None:
        found.update(predictor=predictor, settings=settings, **others)

    monkeypatch.setattr(predict_ray, "predict_by_ray", predict_by_ray)
    monkeypatch.chdir(tmp_path)
    predict_ray.predict_paths(["l.txt"], "out", **options)
    return found


def test_the_packaged_model_is_asked_as_one_process_asks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").touch()
    alone = prepare_prediction([tmp_path / "a.mp4"], model="motion")
    found = _asked(monkeypatch, tmp_path, model="motion")
    assert (found["predictor"].views, found["predictor"].precision) == (alone.views, alone.settings.precision)
    assert Path(found["predictor"].model).samefile(alone.folder)


@pytest.mark.parametrize("name", ["l.txt", "l.CSV", "https://host/l.tsv"])
def test_a_list_without_an_engine_names_the_engine(name: str) -> None:
    with pytest.raises(ConfigError, match="--engine ray") as refused:
        prepare_prediction([name], model="motion")
    assert name in str(refused.value)


def test_settings_of_predict_reach_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["ray.workers=3", "predict.precision=bfloat16", "still.pixel_threshold=6", "evaluation.views=8x2x1"]
    found = _asked(
        monkeypatch, tmp_path, model="motion", overrides=[*settings, "data.timeout_seconds=7"], modules=["mine"]
    )
    predictor = found["predictor"]
    assert (found["settings"].workers, predictor.precision, predictor.views) == (3, "bfloat16", "8x2x1")
    assert (found["skip"].pixel_threshold, predictor.limits.timeout_seconds, found["modules"]) == (6.0, 7.0, ["mine"])
    with pytest.raises(ConfigError, match="videos_per_batch"):
        _asked(monkeypatch, tmp_path, model="motion", overrides=["predict.videos_per_batch=4"])


def test_rows_of_other_weights_are_not_put_beside_those_that_are_there(tmp_path: Path) -> None:
    job, settings = BatchPredictor("m"), RaySettings()
    assert predict_ray._claim(tmp_path, ["a.mp4"], job, settings) is None
    assert predict_ray._same_weights(tmp_path, None, "of monday") == "of monday"
    (tmp_path / "part-000000.parquet").touch()
    before = predict_ray._claim(tmp_path, ["a.mp4"], job, settings)
    assert predict_ray._same_weights(tmp_path, before, "of monday") == "of monday"
    with pytest.raises(ConfigError, match="weights"):
        predict_ray._same_weights(tmp_path, before, "of tuesday")


class _Nodes:
    """Ray on two machines."""

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 4.0}


def test_workers_that_no_machine_has_room_for_are_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    ray_cluster.check_room(_Nodes(), RaySettings(workers=2, cpus=2.0))
    assert not caplog.records
    for asked, named in ((RaySettings(cpus=5.0), "cpus=5"), (RaySettings(gpus=0.5), r"gpus=0\.5")):
        with pytest.raises(ConfigError, match=named):
            ray_cluster.check_room(_Nodes(), asked)
    ray_cluster.check_room(_Nodes(), RaySettings(workers=5))
    assert len(caplog.records) == 1


class _NoRay:
    """Ray that must not be asked, or does not start."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def init(self, **_: Any) -> None:
        if self._error is None:
            pytest.fail("Ray's own init would try for minutes")
        raise self._error


@pytest.mark.parametrize("error", [Exception("timed out\nmore"), ConnectionError("x"), AssertionError()])
def test_whatever_ray_raises_at_its_start_is_an_error_of_ours(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=str(error).splitlines()[0] if str(error) else "AssertionError") as caught:
        ray_cluster.start(_NoRay(error), RaySettings())
    # none was asked for, so none is missed
    assert "RAY_ADDRESS" not in str(caught.value)


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
@pytest.mark.parametrize("by_environment", [True, False])
def test_a_cluster_that_is_not_there_is_told_at_once(
    form: str, by_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = form.format(f"127.0.0.1:{server.getsockname()[1]}")
        ray_cluster.knock(address)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if by_environment:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=address):
        ray_cluster.start(_NoRay(), RaySettings(address="" if by_environment else address))


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_a_cluster_that_answers_and_does_not_let_in_may_want_a_token(form: str) -> None:
    """Of a token that is missing or wrong, Ray 2.60 says that it "failed to connect"."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = form.format(f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(ConfigError) as refused:
            ray_cluster.start(_NoRay(ConnectionError("Failed to connect")), RaySettings(address=address))
    assert all(word in str(refused.value) for word in (address, "Failed", "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH"))


class _Cluster:
    """Ray on machines with a kinescan each, which they import where Ray's workers would; "" is none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, versions: dict[str, str | None]) -> None:
        self._versions, self.asked = versions, []
        self._here = ""
        affinity = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: (node, soft))
        monkeypatch.setattr(ray_cluster, "optional_package", lambda name, extra: affinity)
        monkeypatch.setattr(ray_cluster.importlib, "import_module", self._imported)

    def _imported(self, name: str) -> Any:
        found = self._versions[self._here] if name == "kinescan" and self._here else None
        if not found:
            raise ModuleNotFoundError(name)
        return SimpleNamespace(__version__=found)

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": name, "NodeManagerHostname": name, "Alive": version is not None}
            for name, version in self._versions.items()
        ]

    def remote(self, **options: Any) -> Any:
        def task(call: Callable[[], str]) -> Any:
            def on(scheduling_strategy: tuple[str, bool]) -> Any:
                return SimpleNamespace(remote=lambda: (call, scheduling_strategy))

            return SimpleNamespace(options=on)

        assert options == {"num_cpus": 0}
        return task

    def get(self, asked: list[Any]) -> list[str]:
        answers = []
        for call, (self._here, soft) in asked:
            self.asked.append((self._here, soft))
            answers.append(call())
        self._here = ""
        return answers


def test_every_machine_is_asked_for_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ray_cluster.__version__
    alike = _Cluster(monkeypatch, {"first": own, "gone": None, "second": own})
    ray_cluster.check_versions(alike)
    # a task that may run anywhere would ask one machine twice
    assert alike.asked == [("first", False), ("second", False)]
    for other, told in (("0.0.1", "kinescan 0.0.1"), ("", "no kinescan")):
        with pytest.raises(ConfigError) as refused:
            ray_cluster.check_versions(_Cluster(monkeypatch, {"first": own, "second": other}))
        assert all(word in str(refused.value) for word in ("second", told, own))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, extra: str) -> None:
        raise DependencyError(f"{name} {extra}")

    monkeypatch.setattr(predict_ray, "optional_package", absent)
    with pytest.raises(DependencyError, match="pyarrow"):
        predict_by_ray([tmp_path / "a.mp4"], tmp_path / "out", BatchPredictor("m"))


def test_only_parts_that_are_not_there_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what Ray would give back made here: a driver that ends in the middle loses nothing and doubles nothing."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    pytest.importorskip("ray.data", reason="ray is not installed")
    (tmp_path / "l.txt").write_text("\n".join(f"{number}.mp4" for number in range(7)))
    asked: list[int] = []

    def answered(parts: dict[int, list[str]], *_: Any) -> Any:
        for number, paths in reversed(parts.items()):
            asked.append(number)
            if len(asked) == 3:
                raise KeyboardInterrupt
            yield number, [{"path": path, "labels": ["x"], "scores": [0.5], "error": None} for path in paths], "w"

    monkeypatch.setattr(predict_ray, "_predicted", answered)
    call = ([tmp_path / "l.txt"], tmp_path / "out", BatchPredictor("m"), RaySettings(part_rows=2))
    with pytest.raises(KeyboardInterrupt):
        predict_by_ray(*call)
    found = predict_by_ray(*call)
    assert (asked, found.num_skipped, found.num_rows, found.num_failed) == ([3, 2, 1, 1, 0], 2, 7, 0)
    rows = [
        row for file in sorted((tmp_path / "out").glob("*.parquet")) for row in parquet.read_table(file).to_pylist()
    ]
    assert [row["number"] for row in rows] == list(range(7))
    assert [Path(row["path"]).name for row in rows] == [f"{number}.mp4" for number in range(7)]


def test_ray_gives_the_rows_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.data", reason="ray is not installed: pip install 'kinescan[ray]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    torch.manual_seed(0)
    create_model("pks4_vit_ti16", labels=["left", "right"]).save_pretrained(str(tmp_path / "model"))
    for seed in range(3):
        pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        write_video(tmp_path / f"{seed}.mp4", pixels, fps=8)
    (tmp_path / "l.txt").write_text("0.mp4\nlost.mp4\n1.mp4\n2.mp4\n")
    predictor = BatchPredictor(str(tmp_path / "model"), top=2)
    found = predict_by_ray([tmp_path / "l.txt"], tmp_path / "out", predictor, RaySettings(part_rows=3))
    assert (found.num_rows, found.num_failed, found.num_parts) == (4, 1, 2)
    rows = [
        row for file in sorted((tmp_path / "out").glob("*.parquet")) for row in parquet.read_table(file).to_pylist()
    ]
    assert [{key: row[key] for key in row if key != "number"} for row in rows] == predictor.rows(
        listed_paths([tmp_path / "l.txt"])
    )
    assert json.loads((tmp_path / "out" / JOB_FILE).read_text())["rows"] == 4
