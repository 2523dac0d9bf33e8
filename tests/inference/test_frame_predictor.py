from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kinescan.data.transforms import EvalTransform
from kinescan.data.video import VideoReader, write_video
from kinescan.errors import ConfigError, NonFiniteError, VideoError
from kinescan.inference.frame_predictor import predict_frames
from kinescan.inference.stream import stream
from kinescan.models.pks4 import PKS4
from kinescan.models.zoo import create_model

LABELS = ["background", "fall", "sit"]


def _model(*, frame_rate: float = 0.0, std: float = 0.3, **options: Any) -> PKS4:
    torch.manual_seed(0)
    settings = {"size": 32, "num_frames": 8, "frame_rate": frame_rate}
    options = {"depth": 2, "insert_after": 1, "output": "frames", "patch_size": 8, **options}
    model = create_model("pks4_vit_ti16", labels=LABELS, preprocessing=settings, **options)
    for name, parameter in model.named_parameters():
        if "expand" in name or "out_proj" in name or name == "head.weight":
            nn.init.normal_(parameter, std=std)
    assert isinstance(model, PKS4)
    return model.eval()


def _pictures(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 255, (count, 3, 4, 4), generator=generator, dtype=torch.uint8).float()
    return nn.functional.interpolate(coarse, (32, 32), mode="bilinear").byte()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "a.mp4"
    write_video(path, _pictures(29), fps=10)
    return path


def test_a_causal_model_passes_over_the_file_once_and_gives_what_it_gives_for_the_whole(video: Path) -> None:
    model = _model(causal=True)
    told: list[float] = []
    found = predict_frames(model, video, video_id="the video", on_frame=lambda seconds, scores: told.append(seconds))
    with VideoReader(video) as reader:
        clip = EvalTransform(model.preprocessing)(reader.read(range(29)).pixels)
    whole = model(clip)[0].softmax(-1).detach().numpy()
    np.testing.assert_allclose(found.scores, whole, atol=1e-4)
    assert (found.video_id, found.classes) == ("the video", tuple(LABELS))
    assert told == found.seconds.tolist() == pytest.approx([0.1 * k for k in range(29)])
    assert found.end_seconds == pytest.approx(2.9)


def test_a_long_file_costs_a_causal_model_no_more_memory_than_a_chunk(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    forward_stream = PKS4.forward_stream

    def watched(self: PKS4, clip: torch.Tensor, state: Any = None) -> Any:
        lengths.append(clip.shape[1])
        return forward_stream(self, clip, state)

    monkeypatch.setattr(PKS4, "forward_stream", watched)
    predict_frames(_model(causal=True), video)
    assert lengths == [8, 8, 8, 5]


def test_windows_overlap_and_the_middle_counts_most(video: Path) -> None:
    model = _model()
    found = predict_frames(model, video)
    with VideoReader(video) as reader:
        clip = EvalTransform(model.preprocessing)(reader.read(range(29)).pixels)
    sums, weights = torch.zeros(29, 3), torch.zeros(29, 1)
    for start in (0, 4, 8, 12, 16, 20, 21):
        weight = torch.tensor([1.0, 2, 3, 4, 4, 3, 2, 1])[:, None]
        sums[start : start + 8] += weight * model(clip[:, start : start + 8])[0].softmax(-1).detach()
        weights[start : start + 8] += weight
    np.testing.assert_allclose(found.scores, (sums / weights).numpy(), atol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("count", [1, 3, 8, 9])
def test_files_shorter_than_a_window_are_answered_too(tmp_path: Path, count: int, causal: bool) -> None:
    write_video(tmp_path / "a.mp4", _pictures(count), fps=10)
    found = predict_frames(_model(causal=causal), tmp_path / "a.mp4")
    assert found.scores.shape == (count, 3)
    np.testing.assert_allclose(found.scores.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_files_of_other_rates_give_the_same_answers_at_the_same_times(tmp_path: Path, causal: bool) -> None:
    model = _model(frame_rate=5, std=0.1, causal=causal)
    found = []
    for times in (1, 2, 4):
        path = tmp_path / f"{times}.mkv"
        write_video(path, _pictures(20).repeat_interleave(times, 0), fps=5 * times)
        found.append(predict_frames(model, path))
    for other in found[1:]:
        np.testing.assert_allclose(other.seconds, found[0].seconds, atol=1e-3)
        np.testing.assert_allclose(other.scores, found[0].scores, atol=0.05)
        assert other.scores.std(0).min() > 0.1


def test_overlapping_classes_get_a_probability_each(video: Path) -> None:
    found = predict_frames(_overlapping(), video)
    assert not found.has_background
    assert not np.allclose(found.scores.sum(1), 1, atol=0.05)


def _overlapping() -> PKS4:
    model = _model(causal=True)
    other = PKS4(
        replace(model.config, overlapping=True), labels=["walk", "fall", "sit"], preprocessing=model.preprocessing
    )
    other.load_state_dict(model.state_dict())
    return other


def test_a_model_of_clips_is_refused(video: Path) -> None:
    with pytest.raises(ConfigError, match="whole clips"):
        predict_frames(create_model("pks4_vit_ti16", labels=["a", "b"], depth=2, insert_after=1), video)


@pytest.mark.parametrize("overlap", [-0.1, 1.0])
def test_an_overlap_out_of_range_is_refused(video: Path, overlap: float) -> None:
    with pytest.raises(ConfigError, match="overlap"):
        predict_frames(_model(), video, overlap=overlap)


def test_broken_weights_and_missing_files_are_named(video: Path, tmp_path: Path) -> None:
    model = _model(causal=True)
    nn.init.constant_(model.head.bias, float("nan"))
    with pytest.raises(NonFiniteError, match="clip"):
        predict_frames(model, video, video_id="clip of mine")
    with pytest.raises(VideoError):
        predict_frames(_model(), tmp_path / "missing.mp4")
    with pytest.raises(ConfigError, match="stream"):
        predict_frames(_model(), "rtsp://camera/1")


@pytest.mark.parametrize("causal", [True, False])
def test_a_jump_of_the_clock_is_stretched_over_nothing(tmp_path: Path, causal: bool) -> None:
    times = torch.arange(29, dtype=torch.float64) / 10
    model, pictures = _model(frame_rate=10, causal=causal), _pictures(29)
    write_video(tmp_path / "b.mkv", pictures[17:], fps=10, codec="ffv1")
    write_video(
        tmp_path / "a.mkv", pictures, fps=10, codec="ffv1", pts_seconds=torch.where(times < 1.65, times, times + 7200)
    )
    found, after = predict_frames(model, tmp_path / "a.mkv"), predict_frames(model, tmp_path / "b.mkv")
    assert len(found.seconds) == 29
    np.testing.assert_allclose(found.scores[17:], after.scores, atol=1e-4)


def test_a_file_gives_what_its_stream_gives(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    times = (torch.rand(29, generator=generator, dtype=torch.float64) * 0.15 + 0.02).cumsum(0)
    write_video(tmp_path / "a.mkv", _pictures(29), fps=10, pts_seconds=times - times[0])
    for rate in (5, 30):
        model = _model(frame_rate=rate, causal=True)
        found, streamed = predict_frames(model, tmp_path / "a.mkv"), list(stream(model, tmp_path / "a.mkv"))
        assert found.seconds.tolist() == [prediction.seconds for prediction in streamed]
        scores = torch.stack([prediction.logits for prediction in streamed]).softmax(-1)
        np.testing.assert_allclose(found.scores, scores.numpy(), atol=1e-4)
