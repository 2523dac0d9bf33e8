from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from kinescan.errors import ConfigError, NonFiniteError, ShapeError
from kinescan.vlm import Features, PixelSettings, load_stream, open_stream, push_together
from kinescan.vlm.frames import to_frames

QUESTION = [5, 17, 200, 41, 8]


def start(model, **options):
    return open_stream(model, **{"pixels": PixelSettings(min_pixels=64, max_pixels=10_000), "budget": None, **options})


@pytest.fixture
def frames():
    return torch.randint(0, 256, (4, 3, 16, 24), dtype=torch.uint8)


def arrays(frames):
    return frames.permute(0, 2, 3, 1).contiguous().numpy()


FORMS = {
    "tensor": lambda frames: frames,
    "array": arrays,
    "array as tensors lie": lambda frames: frames.numpy(),
    "read-only array": lambda frames: np.frombuffer(arrays(frames).tobytes(), np.uint8).reshape(4, 16, 24, 3),
    "view": lambda frames: np.flip(arrays(frames.flip(3)), axis=2),
    "images": lambda frames: [Image.fromarray(one) for one in arrays(frames)],
    "list of tensors": list,
    "tuple of arrays": lambda frames: tuple(arrays(frames)),
    "list of clips": lambda frames: [frames[:3], arrays(frames)[3:]],
    "mixed": lambda frames: [frames[0], arrays(frames)[1], Image.fromarray(arrays(frames)[2]), frames[3:]],
}


@pytest.mark.parametrize("form", FORMS)
def test_frames_in_any_form_are_the_same(form, frames, vlm):
    given = FORMS[form](frames)
    assert torch.equal(to_frames(given), frames)
    with start(vlm("internvl")) as stream, start(vlm("internvl")) as other:
        stream.push(given)
        other.push(frames)
        said, expected = (one.ask(QUESTION, max_new_tokens=1).logits for one in (stream, other))
        assert torch.equal(said, expected)
        assert torch.equal(stream.encode(given)[2].tokens, other.encode(frames)[2].tokens)


def test_one_frame_in_any_form(frames):
    for one in (frames[0], arrays(frames)[0], Image.fromarray(arrays(frames)[0])):
        assert torch.equal(to_frames(one), frames[:1])
    grey = Image.fromarray(arrays(frames)[0]).convert("L")
    assert to_frames(grey).shape == (1, 3, 16, 24)


@pytest.mark.parametrize(
    "given",
    [
        [],
        (),
        None,
        "a.mp4",
        b"bytes",
        5,
        [1, 2, 3],
        [[1, 2], [3, 4]],
        np.zeros((4, 16, 24, 3)),
        np.zeros((16, 24), np.uint8),
        np.zeros((4, 16, 24, 4), np.uint8),
        np.zeros((0, 16, 24, 3), np.uint8),
        np.zeros((2, 2, 3, 16, 24), np.uint8),
        torch.zeros(4, 3, 16, 24),
        torch.zeros(16, 24, 3, dtype=torch.uint8),
        torch.zeros(0, 3, 16, 24, dtype=torch.uint8),
        torch.zeros(2, 3, 0, 24, dtype=torch.uint8),
        Image.new("F", (24, 16)),
        Image.new("I;16", (24, 16)),
        [torch.zeros(3, 16, 24, dtype=torch.uint8), torch.zeros(3, 8, 24, dtype=torch.uint8)],
        {"frames": 1},
        torch.zeros(2, 3, 16, 24, dtype=torch.uint8, device="meta"),
        torch.zeros(2, 3, 16, 24, dtype=torch.uint8).to_sparse(),
    ],
    ids=lambda given: type(given).__name__,
)
@pytest.mark.bad_input
def test_other_things_are_refused(given, vlm):
    with start(vlm("internvl")) as stream:
        with pytest.raises(ShapeError):
            stream.push(given)
        assert stream.stats.num_frames == 0


@pytest.mark.bad_input
def test_features_of_another_kind_are_refused(vlm, video):
    with start(vlm("internvl")) as stream, start(vlm("llava_onevision")) as other:
        sound = stream.encode(video(1))[0]
        for wrong in (
            [sound, video(1)],
            Features(tokens=sound.tokens[:, :5], grid=sound.grid),
            Features(tokens=sound.tokens, grid=(9, 9)),
            Features(tokens=sound.tokens.long(), grid=sound.grid),
        ):
            with pytest.raises(ShapeError):
                stream.push(wrong)
        with pytest.raises(NonFiniteError):
            stream.push(Features(tokens=sound.tokens / 0, grid=sound.grid))
        assert stream.stats.num_frames == other.stats.num_frames == 0
        stream.push(sound)


@pytest.mark.bad_input
def test_features_that_only_look_like_those_of_the_model_are_refused(family_name, vlm, video):
    """A level too few would be left out silently, and each answer be another one."""
    with start(vlm(family_name)) as stream:
        one = stream.encode(video(2))[0]
        rows, columns = one.grid
        for other in (
            replace(one, deepstack=(*one.deepstack, one.tokens)),
            *([replace(one, deepstack=one.deepstack[1:])] if one.deepstack else []),
            replace(one, tokens=one.tokens.numpy()),
            replace(one, grid=(float(rows), columns)),
            replace(one, grid=(-rows, -columns)),
            replace(one, grid=(rows,)),
            replace(one, grid=None),
        ):
            with pytest.raises(ShapeError):
                stream.push([other])
        assert stream.stats.num_frames == 0
        stream.push([one])


@pytest.mark.bad_input
def test_a_model_without_its_head_is_named(vlm):
    with pytest.raises(ConfigError, match=r"Model.*head"):
        open_stream(vlm("qwen2_vl").model)


@pytest.mark.parametrize(
    "seconds",
    [[float("nan"), 1.0], [0.0, float("inf")], [1.0, 0.5], [0.0], [0.0, 1.0, 2.0], "01", ["a", "b"], [None, 1.0], 3.0,
     [0.0, 1e300], [0.0, 1_700_000_000_000.0], [0, 10**400]],
    ids=lambda seconds: f"{seconds!s:.40}",
)  # fmt: skip
@pytest.mark.bad_input
def test_impossible_times_are_refused(seconds, vlm, video):
    with start(vlm("qwen2_5_vl")) as stream:
        with pytest.raises(ConfigError, match="seconds"):
            stream.push(video(2), seconds=seconds)
        assert stream.stats.num_frames == 0


@pytest.mark.bad_input
def test_times_ascend_over_all_pushes(vlm, video):
    with start(vlm("qwen2_5_vl")) as stream:
        stream.push(video(2), seconds=np.array([5.0, 6.0]))
        with pytest.raises(ConfigError, match=r"6.*5\.5 s"):
            stream.push(video(2), seconds=[5.5, 7.0])
        features = stream.encode(video(2))
        with pytest.raises(ConfigError, match="end at 6 s"):
            stream.push(features, seconds=[1.0])
        stream.push(video(2)[0], seconds=6.0)
        stream.push(video(2)[1], seconds=torch.tensor([8.0]))
        assert stream.stats.num_frames == 4


@pytest.mark.bad_input
@pytest.mark.parametrize("how", ["frames", "features", "together"])
@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), float("-inf"), 4.0, -1.0, "7", None, True])
def test_a_later_push_takes_no_other_times_than_the_first(how, seconds, vlm, video):
    """None is no time: where it stands for one frame of several, the push is refused."""
    with start(vlm("qwen2_5_vl")) as stream:
        stream.push(video(2), seconds=[5.0, 6.0])
        before = stream.stats
        frames = video(4) if how != "features" else stream.encode(video(4))
        times = [7.0, 8.0, 9.0, seconds] if how != "features" else [7.0, seconds]
        push = (
            (lambda given, seconds: push_together([stream], [given], seconds=[seconds])) if how == "together" else None
        )
        with pytest.raises(ConfigError, match="seconds"):
            (push or stream.push)(frames, seconds=times)
        assert stream.stats == before
        assert stream.seen_seconds == 6.0
        stream.push(frames, seconds=[7.0, 9.0] if how == "features" else [7.0, 8.0, 9.0, 9.0])


def test_frames_without_times_follow_those_with_times(vlm, video):
    model, frames = vlm("qwen2_5_vl"), video(8)
    with start(model, fps=2.0) as stream, start(model, fps=2.0) as other:
        stream.push(frames[:4], seconds=[10.0, 10.5, 20.0, 20.5])
        stream.push(frames[4:])
        other.push(frames, seconds=[10.0, 10.5, 20.0, 20.5, 21.0, 21.5, 22.0, 22.5])
        assert torch.equal(*(one.ask(QUESTION, max_new_tokens=1).logits for one in (stream, other)))


@pytest.mark.parametrize("how", ["push", "encode"])
def test_a_first_push_that_fails_fixes_no_size(how, vlm, video):
    with start(vlm("qwen3_vl")) as stream:
        if how == "push":
            with pytest.raises(ConfigError):
                stream.push(video(2, height=32), seconds=[1.0, 0.0])
        else:
            with pytest.raises(ShapeError):
                stream.encode(video(1, height=32))
        stream.push(video(2))
        assert stream.stats.num_frames == 2
        with pytest.raises(ShapeError, match="frames changed"):
            stream.push(video(2, height=32))


def test_features_are_seen_to_the_last_frame_of_their_patch(family_name, vlm, video, tmp_path):
    with start(vlm(family_name), fps=2.0) as frames, start(vlm(family_name), fps=2.0) as features:
        frames.push(video(4))
        features.push(features.encode(video(4)))
        assert features.seen_seconds == frames.seen_seconds == 1.5
        features.save(tmp_path / "a.state")
        with load_stream(tmp_path / "a.state", vlm(family_name)) as later:
            assert later.seen_seconds == 1.5
