import io
import subprocess
import sys
import time

import pytest
import torch
from tests.folder_store import folder_store

from kinescan.data.transforms import EvalTransform
from kinescan.data.video import VideoReader, is_live, write_video
from kinescan.errors import CheckpointError, ConfigError, NonFiniteError, ShapeError, VideoError
from kinescan.inference.stream import StreamSession, stream
from kinescan.inference.stream_state import load_stream_state, save_stream_state


def random_frames(num_frames: int, height: int = 40, width: int = 48) -> torch.Tensor:
    return torch.randint(0, 256, (num_frames, 3, height, width), dtype=torch.uint8)


def offline_logits(model, frames: torch.Tensor) -> torch.Tensor:
    clip = EvalTransform(model.preprocessing, crops=1)(frames)
    with torch.no_grad():
        return model(clip)[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"average": "exponential"},
        {"class_token_route": "tsm", "border": "replicate"},
        {"correlation": False, "variation": False},
        {"scanner": False, "context_frames": 2},
    ],
)
def test_stream_gives_the_offline_logits_of_every_prefix(make_model, options):
    model = make_model(causal=True, **options)
    frames = random_frames(9)
    # a model that was trained to forget keeps its own average
    predictions = list(stream(model, frames, average=None if "average" in options else "mean"))
    assert [p.frame_index for p in predictions] == list(range(9))
    for t, prediction in enumerate(predictions):
        torch.testing.assert_close(prediction.logits, offline_logits(model, frames[: t + 1]), atol=1e-5, rtol=0)
    assert len({tuple(p.logits.tolist()) for p in predictions}) == 9


def test_stream_names_the_best_classes_with_their_probabilities(causal_model):
    [prediction] = stream(causal_model, random_frames(1), top=3)
    probabilities = prediction.logits.softmax(0)
    best = probabilities.argsort(descending=True)[:3]
    assert prediction.labels == tuple(causal_model.labels[i] for i in best)
    assert prediction.scores == pytest.approx(probabilities[best].tolist())
    assert prediction.seconds is None


def test_stream_of_a_file_equals_stream_of_its_frames(causal_model, tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, random_frames(7), fps=5)
    with VideoReader(path) as reader:
        entries = list(reader)
    from_file = list(stream(causal_model, path))
    from_pairs = list(stream(causal_model, entries))
    assert [p.seconds for p in from_file] == pytest.approx([0.2 * t for t in range(7)])
    for one, other in zip(from_file, from_pairs, strict=True):
        assert one.seconds == other.seconds
        assert torch.equal(one.logits, other.logits)


def test_stream_of_a_file_in_an_object_store_equals_stream_of_the_file(causal_model, tmp_path, monkeypatch):
    with folder_store(tmp_path / "store", monkeypatch) as store:
        write_video(store.folder / "a.mp4", random_frames(6), fps=8)
        address = f"{store.address}/a.mp4"
        assert not is_live(address)
        near = list(stream(causal_model, store.folder / "a.mp4"))
        far = list(stream(causal_model, address))
        assert len(far) == 6
        assert all(torch.equal(one.logits, other.logits) for one, other in zip(far, near, strict=True))
        with pytest.raises(VideoError, match=r"s3://bucket/b\.mp4"):
            list(stream(causal_model, f"{store.address}/b.mp4"))


def test_stream_of_a_live_source_equals_stream_of_the_file(causal_model, tmp_path):
    path = tmp_path / "a.ts"
    write_video(path, random_frames(7), fps=5)
    from_file, live = list(stream(causal_model, path)), list(stream(causal_model, f"file://{path}"))
    assert len(live) == 7
    for one, other in zip(from_file, live, strict=True):
        assert one.seconds == pytest.approx(other.seconds)
        assert torch.equal(one.logits, other.logits)


def test_stream_feeds_every_third_frame(causal_model):
    frames = random_frames(8)
    predictions = list(stream(causal_model, frames, every=3, average="mean"))
    assert [p.frame_index for p in predictions] == [0, 3, 6]
    torch.testing.assert_close(predictions[-1].logits, offline_logits(causal_model, frames[::3]), atol=1e-5, rtol=0)


def test_stream_state_keeps_its_size_and_frames_their_time(causal_model):
    session = StreamSession(causal_model)
    sizes, times = [], []
    for frame in random_frames(60):
        started = time.process_time()
        session.push(frame)
        times.append(time.process_time() - started)
        sizes.append(session.state.num_bytes())
    assert len(set(sizes)) == 1
    assert session.state.frames_seen == 60
    early, late = sorted(times[5:25])[10], sorted(times[40:])[10]
    assert late < 2 * early
    # No tensor of the state is a view of a longer history.
    held = sum(tensor.untyped_storage().nbytes() for tensor in session.state.tensors().values())
    session.push(random_frames(1)[0])
    assert sum(tensor.untyped_storage().nbytes() for tensor in session.state.tensors().values()) == held


def test_stream_goes_on_from_a_saved_state(causal_model, tmp_path):
    frames = random_frames(8)
    expected = list(stream(causal_model, frames))
    session = StreamSession(causal_model)
    for frame in frames[:5]:
        session.push(frame)
    save_stream_state(session.state, tmp_path / "state.safetensors")
    restored = load_stream_state(tmp_path / "state.safetensors")
    assert restored.num_bytes() == session.state.num_bytes()
    rest = StreamSession(causal_model, state=restored)
    for t in (5, 6, 7):
        prediction = rest.push(frames[t])
        assert prediction.frame_index == t
        assert torch.equal(prediction.logits, expected[t].logits)


def test_stream_keeps_its_state_in_a_file(causal_model, tmp_path):
    frames, path = random_frames(9), tmp_path / "state.safetensors"
    expected = list(stream(causal_model, frames))
    list(stream(causal_model, frames[:3], state=path))
    # left before its end
    predictions = stream(causal_model, frames[3:], state=str(path))
    next(predictions), next(predictions)
    predictions.close()
    assert load_stream_state(path).frames_seen == 5

    def breaks_off():
        yield frames[5]
        raise VideoError("camera", "broke off")

    with pytest.raises(VideoError, match="broke off"):
        list(stream(causal_model, breaks_off(), state=path))
    rest = list(stream(causal_model, frames[6:], state=path))
    for one, other in zip(rest, expected[6:], strict=True):
        assert torch.equal(one.logits, other.logits)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_stream_writes_its_state_on_the_way(causal_model, tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    monkeypatch.setattr(sys.modules[StreamSession.__module__], "_STATE_SECONDS", 0.0)
    predictions = stream(causal_model, random_frames(4), state=path)
    next(predictions)
    assert not path.exists()
    next(predictions), next(predictions)
    assert load_stream_state(path).frames_seen == 2


def test_stream_that_got_no_frame_leaves_the_state_as_it_was(causal_model, tmp_path):
    path = tmp_path / "state.safetensors"
    with pytest.raises(VideoError):
        list(stream(causal_model, tmp_path / "missing.mp4", state=path))
    assert not path.exists()
    list(stream(causal_model, random_frames(2), state=path))
    before = path.read_bytes()
    with pytest.raises(VideoError):
        list(stream(causal_model, tmp_path / "missing.mp4", state=path))
    assert path.read_bytes() == before


def test_stream_refuses_a_state_that_cannot_be_written_before_it_starts(causal_model, tmp_path):
    with pytest.raises(ConfigError, match=r"state: .*absent"):
        stream(causal_model, random_frames(1), state=tmp_path / "absent" / "state.safetensors")


@pytest.mark.parametrize("options", [{"embed_dim": 24}, {"expand": 3}])
def test_stream_refuses_the_state_of_another_model(causal_model, make_model, options):
    session = StreamSession(make_model(causal=True, **options))
    session.push(random_frames(1)[0])
    with pytest.raises(CheckpointError, match="pks4_vit_ti16"):
        StreamSession(causal_model, state=session.state)


def test_stream_takes_a_saved_model_by_its_folder(causal_model, tmp_path):
    causal_model.save_pretrained(tmp_path / "model")
    frames = random_frames(2)
    one, other = list(stream(causal_model, frames)), list(stream(tmp_path / "model", frames))
    assert torch.equal(one[-1].logits, other[-1].logits)


def test_stream_decodes_nothing_before_it_is_asked(causal_model):
    def source():
        raise AssertionError("asked too early")
        yield

    stream(causal_model, source())


def test_stream_makes_the_model_ready_before_a_live_source_is_opened(causal_model, monkeypatch):
    frames = random_frames(3)
    order = []
    forward = type(causal_model).stream_frames

    def watched(self, clip, state):
        order.append("model")
        return forward(self, clip, state)

    def opened(*_):
        order.append("source")
        yield from ((frame, t / 10) for t, frame in enumerate(frames))

    monkeypatch.setattr(type(causal_model), "stream_frames", watched)
    monkeypatch.setattr(sys.modules[StreamSession.__module__], "frames_of", opened)
    live = [found.logits for found in stream(causal_model, "rtsp://camera/1")]
    assert order[: order.index("source")] == ["model", "model"]
    order.clear()
    expected = [found.logits for found in stream(causal_model, "a.mp4")]
    assert order[0] == "source"
    torch.testing.assert_close(live, expected, rtol=0, atol=0)


def test_stream_leaves_the_mode_of_the_model(causal_model):
    causal_model.train()
    list(stream(causal_model, random_frames(1)))
    assert causal_model.training


def test_stream_refuses_a_model_that_looks_ahead(model):
    with pytest.raises(ConfigError, match=r"causal = true.*--set model.options.causal=true"):
        stream(model, random_frames(1))


@pytest.mark.parametrize("options", [{"every": 0}, {"top": 0}])
def test_stream_refuses_settings_out_of_range(causal_model, options):
    [(name, _)] = options.items()
    with pytest.raises(ConfigError, match=f"{name}.*1.*0"):
        stream(causal_model, random_frames(1), **options)


def test_stream_refuses_an_unknown_device(causal_model):
    with pytest.raises(ConfigError, match=r"device 'tpu9' is not available.*kinescan doctor"):
        stream(causal_model, random_frames(1), device="tpu9")


@pytest.mark.parametrize(
    ("frame", "given"),
    [
        (torch.zeros(3, 8, 8), r"float32 \[3, 8, 8\]"),
        (torch.zeros(8, 8, 4, dtype=torch.uint8), r"uint8 \[8, 8, 4\]"),
        ([0, 1], "list"),
    ],
)
def test_stream_says_which_frame_is_no_picture(causal_model, frame, given):
    predictions = stream(causal_model, [torch.zeros(3, 8, 8, dtype=torch.uint8), frame])
    next(predictions)
    with pytest.raises(ShapeError, match=rf"frame 1.*uint8 tensor \[3, H, W\].*{given}"):
        next(predictions)


def test_stream_names_the_frame_where_logits_are_not_finite(causal_model):
    predictions = stream(causal_model, random_frames(3))
    next(predictions)
    with torch.no_grad():
        causal_model.head.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"frame 1.*NaN"):
        next(predictions)


def test_stream_of_a_file_that_is_no_video(causal_model, tmp_path):
    path = tmp_path / "notes.mp4"
    path.write_text("not a video")
    with pytest.raises(VideoError, match=r"notes\.mp4"):
        next(stream(causal_model, path))


def test_load_stream_state_says_what_is_wrong(tmp_path, causal_model):
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        load_stream_state(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("text")
    with pytest.raises(CheckpointError, match="read"):
        load_stream_state(tmp_path / "text.safetensors")
    causal_model.save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="tensors"):
        load_stream_state(tmp_path / "model" / "model.safetensors")


def test_save_stream_state_says_that_it_cannot_write(causal_model, tmp_path):
    session = StreamSession(causal_model)
    session.push(random_frames(1)[0])
    with pytest.raises(CheckpointError, match="written"):
        save_stream_state(session.state, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="written"):
        save_stream_state(session.state, tmp_path / "file" / "state.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_stream_is_the_same_however_its_frames_are_given(causal_model, tmp_path):
    frames = random_frames(6)
    expected = [prediction.scores for prediction in stream(causal_model, frames)]
    last = frames.permute(0, 2, 3, 1).numpy()
    for given in (last, list(last), frames.numpy(), iter(frames)):
        assert [prediction.scores for prediction in stream(causal_model, given)] == expected
    write_video(tmp_path / "a.ts", frames, fps=8)
    content = (tmp_path / "a.ts").read_bytes()
    expected = [prediction.scores for prediction in stream(causal_model, tmp_path / "a.ts")]
    for source in (content, io.BytesIO(content)):
        assert [prediction.scores for prediction in stream(causal_model, source)] == expected
    with subprocess.Popen(["cat", tmp_path / "a.ts"], stdout=subprocess.PIPE) as program:
        assert [prediction.scores for prediction in stream(causal_model, program.stdout)] == expected


def test_stream_computes_in_the_precision_asked_for(causal_model):
    frames = random_frames(3)
    exact = [prediction.scores[0] for prediction in stream(causal_model, frames)]
    rounded = [prediction.scores[0] for prediction in stream(causal_model, frames, precision="bfloat16")]
    assert exact != rounded
    assert rounded == pytest.approx(exact, abs=0.05)
    with pytest.raises(ConfigError):
        stream(causal_model, frames, precision="float16")
