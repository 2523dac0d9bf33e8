import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from kinescan.data.video import write_video
from kinescan.errors import CheckpointError, ConfigError
from kinescan.inference.state_tensors import state_of
from kinescan.inference.stream import StreamSession, stream
from kinescan.inference.stream_batch import StreamBatch
from kinescan.inference.stream_state import load_stream_state, save_stream_state
from kinescan.inference.turns import Turn
from kinescan.models.pks4 import PKS4
from kinescan.models.still import SkipUnchanged
from kinescan.models.zoo import create_model
from kinescan.runs.evaluate import evaluate
from kinescan.runs.predict import prepare_prediction
from kinescan.runs.still import skip_in, still_settings
from kinescan.runs.stream import stream_source

SIZES: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "width": 32, "depth": 3, "heads": 2, "mlp_dim": 64, "embed_dim": 16,
    "insert_after": 2, "window": 3, "kinematic_width": 8, "causal": True,
}  # fmt: skip


def _model(seed: int = 0, **options: Any) -> PKS4:
    torch.manual_seed(seed)
    model = create_model("pks4_vit_ti16", labels=["left", "right"], **SIZES | options).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    assert isinstance(model, PKS4)
    return model


def _frames(num_frames: int = 8, seed: int = 1) -> torch.Tensor:
    """A square that moves over a background that stands still."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 255, (1, 3, 32, 32), generator=generator).repeat(num_frames, 1, 1, 1).byte()
    for t, frame in enumerate(frames):
        frame[:, 8:16, 3 * t : 3 * t + 8] = 255
    return frames


def _logits(predictions: Any) -> torch.Tensor:
    return torch.stack([prediction.logits for prediction in predictions])


def test_settings_are_taken_from_overrides() -> None:
    skip, others = still_settings(["still.pixel_threshold=6", "events.on=0.6", "still.refresh_seconds=2.5"])
    assert skip == SkipUnchanged(pixel_threshold=6, refresh_seconds=2.5)
    assert others == ["events.on=0.6"]
    assert still_settings(["events.on=0.6"])[0] is None


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("still.pixel_treshold=4", "pixel_threshold"),
        ("still.pixel_threshold=-1", "pixel_threshold"),
        ("still.refresh_seconds=0", "refresh_seconds"),
        ("still.refresh_frames=0.5", "refresh_frames"),
        ("still=4", "still"),
    ],
)
def test_wrong_settings_are_refused(override: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        still_settings([override])


def test_other_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="videomamba"):
        skip_in(create_model("videomamba_tiny", num_classes=2), SkipUnchanged())


def test_a_stream_at_threshold_0_follows_the_one_that_computes_everything() -> None:
    model, frames = _model(class_token_route="none"), _frames()
    plain = _logits(stream(model, frames))
    model.skip_unchanged = SkipUnchanged(pixel_threshold=0, token_threshold=0)
    skipping = _logits(stream(model, frames))
    torch.testing.assert_close(skipping[0], plain[0], atol=0, rtol=0)
    assert 0 < (skipping - plain).abs().max() < 0.2 * plain.abs().max()


def test_seconds_become_frames_at_the_models_distance() -> None:
    model = _model()
    model.skip_unchanged = SkipUnchanged(refresh_seconds=3)
    with pytest.raises(ConfigError, match="refresh_frames"):
        StreamSession(model)
    model.preprocessing = model.preprocessing.__class__(size=32, sampling="rate", frame_rate=4.0)
    session = StreamSession(model)
    assert session.skip_unchanged is not None
    assert session.skip_unchanged.refresh_frames == 12
    assert model.skip_unchanged.refresh_seconds == 3, "the model is left as it is"


def test_a_state_in_a_file_continues_with_and_without(tmp_path: Path) -> None:
    model, frames = _model(), _frames()
    model.skip_unchanged = SkipUnchanged(pixel_threshold=2)
    whole = _logits(stream(model, frames))
    first = StreamSession(model)
    for frame in frames[:4]:
        first.push(frame)
    save_stream_state(first.state, tmp_path / "state", model=model)
    state = load_stream_state(tmp_path / "state", model=model)
    torch.testing.assert_close(_logits(stream(model, frames[4:], state=state)), whole[4:], atol=1e-6, rtol=1e-6)
    model.skip_unchanged = None
    state = load_stream_state(tmp_path / "state", model=model)
    session = StreamSession(model, state=state)
    session.push(frames[4])
    assert session.state.still is None
    model.skip_unchanged = SkipUnchanged()
    resumed = StreamSession(model, state=session.state)
    resumed.push(frames[5])
    assert resumed.state.still is not None
    assert resumed.state.still.fraction.tolist() == [[1, 1]]


def test_a_damaged_or_foreign_state_is_refused(tmp_path: Path) -> None:
    model = _model()
    model.skip_unchanged = SkipUnchanged()
    session = StreamSession(model)
    session.push(_frames()[0])
    state = session.state
    assert state.still is not None
    state.still.keys_values = state.still.keys_values[:, :2]
    with pytest.raises(CheckpointError, match="keys_values"):
        StreamSession(model, state=state)
    tensors = {name: tensor for name, tensor in state.tensors().items() if name != "still.age"}
    with pytest.raises(CheckpointError, match="still"):
        state_of(tensors, 1)


def test_streams_of_a_batch_are_what_they_are_alone() -> None:
    """Of other ages, with other patches that change, one of them begun without skipping."""
    model = _model()
    sources = [_frames(seed=seed) for seed in (1, 2, 3)]
    plain = StreamSession(model)
    plain.push(sources[2][0])
    model.skip_unchanged = SkipUnchanged(pixel_threshold=0, token_threshold=0.2, refresh_frames=4)
    alone = [StreamSession(model), StreamSession(model), StreamSession(model, state=plain.state)]
    batched = [StreamSession(model), StreamSession(model), StreamSession(model, state=plain.state)]
    for session in (alone[0], batched[0]):
        session.push(sources[0][0])
    batch = StreamBatch(model, skip_unchanged=batched[0].skip_unchanged)
    for t in range(1, 6):
        turns = [Turn(frame_index=t, pixels=source[t], seconds=None, is_cut=False) for source in sources]
        found = batch.push(batched, turns)
        expected = [session.push(source[t]) for session, source in zip(alone, sources, strict=True)]
        torch.testing.assert_close(_logits(found), _logits(expected), atol=1e-5, rtol=1e-5)
    for one, other in zip(alone, batched, strict=True):
        assert one.state.still is not None
        assert other.state.still is not None
        torch.testing.assert_close(one.state.still.fraction, other.state.still.fraction)


def test_the_verbs_take_the_setting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = _model()
    model.save_pretrained(tmp_path / "model")
    for label in ("left", "right"):
        (tmp_path / "videos" / label).mkdir(parents=True)
        write_video(tmp_path / "videos" / label / "a.mp4", _frames(12), fps=4)
    file = tmp_path / "videos" / "left" / "a.mp4"
    place = str(tmp_path / "model")
    with caplog.at_level(logging.INFO):
        job = prepare_prediction([file], model=place, overrides=["still.pixel_threshold=4"], device="cpu")
    assert isinstance(job.model, PKS4)
    assert job.model.skip_unchanged == SkipUnchanged(pixel_threshold=4)
    assert "4 of 255" in caplog.text
    plain = prepare_prediction([file], model=place, device="cpu")
    [skipped], [whole] = job.run(), plain.run()
    assert skipped.scores != whole.scores
    predictions = list(stream_source(file, model=place, overrides=["still.pixel_threshold=4"], device="cpu"))
    assert len(predictions) == 12
    report = evaluate(
        place, data=tmp_path / "videos", device="cpu", views="8x1x1", overrides=["still.pixel_threshold=4"]
    )
    assert any("4 of 255" in note for note in report.notes)
    assert report.cost is not None
    assert report.cost.macs == evaluate(place, data=tmp_path / "videos", device="cpu", views="8x1x1").cost.macs
