"""A batch of paths as rows: those of `predict`, in any batch, and no file that ends it."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from kinescan.data.video import write_video
from kinescan.errors import ConfigError
from kinescan.inference.batch_predictor import BatchPredictor
from kinescan.inference.predictor import predict
from kinescan.models.zoo import create_model
from kinescan.runtime.urls import mask_url


@pytest.fixture
def model(tmp_path: Path) -> str:
    torch.manual_seed(0)
    create_model("pks4_vit_ti16", labels=["left", "right", "up"]).save_pretrained(str(tmp_path / "model"))
    return str(tmp_path / "model")


def test_rows_are_those_of_predict_whatever_the_batch(model: str, tmp_path: Path) -> None:
    paths = []
    for seed in range(2):
        pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        write_video(tmp_path / f"{seed}.mp4", pixels, fps=8)
        paths.append(str(tmp_path / f"{seed}.mp4"))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    paths += [str(tmp_path / "broken.mp4"), str(tmp_path / "lost.mp4"), "https://me:hunter2@127.0.0.1:9/a.mp4", ""]
    predictor = pickle.loads(pickle.dumps(BatchPredictor(model, top=2)))
    together = predictor({"path": np.array(paths, dtype=object), "mine": np.arange(6)})
    assert list(together["mine"]) == [0, 1, 2, 3, 4, 5]
    for index, path in enumerate(paths):
        [alone] = predictor.rows([path])
        assert alone == {name: together[name][index] for name in ("labels", "scores", "error")} | {
            "path": mask_url(path)
        }
    expected = predict(model, paths[:2], top=2)
    assert [tuple(labels) for labels in together["labels"][:2]] == [one.labels for one in expected]
    assert [tuple(scores) for scores in together["scores"][:2]] == [one.scores for one in expected]
    assert [error is None for error in together["error"]] == [True, True, False, False, False, False]
    assert "hunter2" not in str(predictor.rows(paths[4:5]))
    assert predictor._loaded is not None
    assert pickle.loads(pickle.dumps(predictor))._loaded is None


@pytest.mark.parametrize(
    "bad", ["x" * 300, "", "a\0b.mp4", "{folder}", "s3://bucket/folder", "ftp://h/a.mp4", "\udcff.mp4"]
)
def test_a_path_that_is_none_is_a_row_with_its_reason(bad: str, model: str, tmp_path: Path) -> None:
    [row] = BatchPredictor(model).rows([bad.format(folder=tmp_path)])
    assert (row["labels"], row["scores"]) == ([], [])
    # what Python says of numbers of values would be no reason that a user can act on
    assert row["error"]
    assert "unpack" not in row["error"]


@pytest.mark.parametrize(
    ("options", "named"), [({"precision": "float16"}, "float16"), ({"views": "8x2"}, "8x2"), ({"device": "tpu"}, "tpu")]
)
def test_what_is_wrong_with_the_call_is_no_reason_of_a_row(options: dict[str, str], named: str, model: str) -> None:
    with pytest.raises(ConfigError, match=named):
        BatchPredictor(model, **options).rows(["a.mp4"])  # type: ignore[arg-type]


def test_top_is_checked() -> None:
    with pytest.raises(ConfigError, match="top"):
        BatchPredictor("m", top=0)
