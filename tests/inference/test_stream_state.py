import os
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from kinescan.errors import CheckpointError
from kinescan.inference import StreamSession, load_stream_state, save_stream_state, stream
from kinescan.inference.stream_state import load_left_time
from kinescan.models.zoo import create_model

SIZES = {"patch_size": 16, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 16, "embed_dim": 16, "insert_after": 1}
FRAMES = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make(**options):
    torch.manual_seed(0)
    return create_model("pks4_vit_ti16", labels=["a", "b"], image_size=32, kinematic_width=8, window=3, causal=True,
                        **SIZES, **options)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "state.safetensors"
    assert len(list(stream(model, FRAMES, state=path))) == 3
    return path


METADATA = {"kinescan_stream_state": "1", "frames_seen": "3"}


def test_every_missing_tensor_is_named(saved, model):
    tensors = load_file(saved)
    assert {"scanner.scan", "scanner.conv_tail", "kinematic.correlation", "average", "class_tokens.0"} <= tensors.keys()
    # files of before have no average of the last seconds
    for name in tensors.keys() - {"recent"}:
        save_file({key: value for key, value in tensors.items() if key != name}, saved, metadata=METADATA)
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            stream(model, FRAMES, state=saved)


@pytest.mark.parametrize(
    "work",
    [
        lambda part: part[..., :-1].contiguous(),
        lambda part: part / 0,
        lambda part: part.long(),
        lambda part: part[None],
    ],
)
def test_every_damaged_tensor_is_named(saved, model, work):
    tensors = load_file(saved)
    for name in tensors:
        save_file({**tensors, name: work(tensors[name])}, saved, metadata=METADATA)
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            stream(model, FRAMES, state=saved)


@pytest.mark.parametrize("name", ["other", "class_tokens.x", "class_tokens.99", "class_tokens.", "scanner.other"])
def test_tensors_of_something_else_are_named(saved, model, name):
    save_file({**load_file(saved), name: torch.zeros(1)}, saved, metadata=METADATA)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        stream(model, FRAMES, state=saved)


@pytest.mark.parametrize("seen", ["", "-1", "three", "3.0", "0", "9" * 30, "\u0663", None])
def test_numbers_of_frames_that_are_none(saved, seen):
    metadata = {"kinescan_stream_state": "1"} | ({} if seen is None else {"frames_seen": seen})
    save_file(load_file(saved), saved, metadata=metadata)
    with pytest.raises(CheckpointError, match="read"):
        load_stream_state(saved)


@pytest.mark.parametrize("left", ["", "nan", "inf", "yesterday"])
def test_times_at_which_a_stream_was_left_that_are_none(saved, model, left):
    assert load_left_time(saved) == pytest.approx(time.time(), abs=600)
    save_file(load_file(saved), saved, metadata={**METADATA, "left_time": left})
    with pytest.raises(CheckpointError, match="left_time"):
        stream(model, FRAMES, state=saved)
    # files of before hold none
    save_file(load_file(saved), saved, metadata=METADATA)
    assert load_left_time(saved) is None


def test_files_that_are_none(saved, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("hello")
    saved.write_bytes(saved.read_bytes()[:-5])
    for path in (saved, tmp_path, tmp_path / "pipe", tmp_path / "text", tmp_path / "missing"):
        with pytest.raises(CheckpointError, match=str(path)):
            load_stream_state(path)


def test_other_weights_of_the_same_shape_are_refused(saved, model):
    other = make()
    assert len(list(stream(other, FRAMES, state=saved))) == 3
    with torch.no_grad():
        other.head.weight[0, 0] += 1e-3
    with pytest.raises(CheckpointError, match="written"):
        stream(other, FRAMES, state=saved)


def test_a_state_without_its_model_is_taken_by_its_shapes(model, tmp_path):
    session = StreamSession(model)
    for frame in FRAMES:
        session.push(frame)
    save_stream_state(session.state, tmp_path / "state.safetensors")
    later = StreamSession(model, state=load_stream_state(tmp_path / "state.safetensors", model=model))
    assert later.push(FRAMES[0]).frame_index == 3


def test_a_disk_that_is_full_for_a_minute_ends_nothing(model, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sys.modules[StreamSession.__module__], "_STATE_SECONDS", 0.0)
    calls = []
    whole = save_stream_state

    def full(state, path, **others):
        calls.append(1)
        if len(calls) == 1:
            raise CheckpointError("the stream's state cannot be written: No space left on device.")
        whole(state, path, **others)

    monkeypatch.setattr(sys.modules[StreamSession.__module__], "save_stream_state", full)
    assert len(list(stream(model, FRAMES, state=tmp_path / "state.safetensors"))) == 3
    assert "device" in caplog.text
    assert load_stream_state(tmp_path / "state.safetensors").frames_seen == 3
