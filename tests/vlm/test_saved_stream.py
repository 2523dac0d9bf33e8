import json
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kinescan.errors import CheckpointError, KinescanError
from kinescan.runtime.fingerprint import fingerprint_of
from kinescan.vlm import PixelSettings, load_stream, load_vlm, open_stream
from kinescan.vlm.saved_stream import saved_settings
from kinescan.vlm.snapshot import read_snapshot

PIXELS = PixelSettings(min_pixels=64, max_pixels=10_000)
QUESTION = [5, 17, 200, 41, 8]


@pytest.fixture
def saved(vlm, video, tmp_path):
    """A saved stream with a waiting frame and a waiting patch."""
    path = tmp_path / "stream.safetensors"
    with open_stream(vlm("qwen3_vl"), pixels=PIXELS, budget=9, policy="h2o", chunk_tokens=8, patches_per_step=2) as one:
        one.push(video(7))
        one.save(path)
    return path


def parts_of(path):
    with safe_open(path, "pt") as file:
        return load_file(path), json.loads(file.metadata()["kinescan_stream"])


def write(path, tensors, facts):
    save_file(tensors, path, metadata={"kinescan_stream": json.dumps(facts)})


def test_other_weights_of_the_same_shape_are_refused(saved, vlm, build_fresh):
    model = vlm("qwen3_vl")
    torch.manual_seed(1)
    other = build_fresh("qwen3_vl")
    with load_stream(saved, other) as stream:
        assert stream.stats.num_frames == 7
    with torch.no_grad():
        other.model.language_model.layers[1].mlp.down_proj.weight[3, 5] += 1e-3
    with pytest.raises(CheckpointError, match="another"):
        load_stream(saved, other)
    assert fingerprint_of(model) != fingerprint_of(other)


def test_every_missing_tensor_is_named(saved, vlm):
    tensors, facts = parts_of(saved)
    assert {"frame0", "patch0.tokens", "patch0.deepstack1", "layer0.state.history"} <= tensors.keys()
    for name in tensors:
        write(saved, {key: value for key, value in tensors.items() if key != name}, facts)
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.").removesuffix("tokens")):
            load_stream(saved, vlm("qwen3_vl"))


def test_every_missing_fact_is_named(saved, vlm):
    tensors, facts = parts_of(saved)
    for holder in (facts, facts["intake"], facts["positions"]):
        for name in set(holder) - {"video_patches", "text_ids", "newest_seconds"}:
            value = holder.pop(name)
            write(saved, tensors, facts)
            with pytest.raises(CheckpointError, match=str(saved)):
                load_stream(saved, vlm("qwen3_vl"))
            holder[name] = value
    write(saved, tensors, facts)
    load_stream(saved, vlm("qwen3_vl"))


def test_streams_of_version_0_1_are_read(saved, vlm):
    """They call the position of the next patch "place", and count no patches."""
    tensors, facts = parts_of(saved)
    del facts["positions"]["video_patches"], facts["text_ids"], facts["intake"]["newest_seconds"]
    facts["place"] = facts.pop("patch_position")
    write(saved, tensors, facts)
    assert load_stream(saved, vlm("qwen3_vl")).patch_position == facts["place"] != "first"


def test_limited_streams_of_version_0_1_are_read(vlm, video, tmp_path):
    """They call patch indices "places" and the layers' ratios "budget_shares"."""
    path = tmp_path / "stream.safetensors"
    options = {"budget": 9, "budget_ratios": (2, 1, 1), "memory_budget": "20 tokens", "memory_policy": "redundancy"}
    with open_stream(vlm("qwen3_vl"), pixels=PIXELS, **options) as one:
        one.push(video(7))
        one.save(path)
        answer = one.ask(QUESTION, max_new_tokens=1).logits
    tensors, facts = parts_of(path)
    renamed = {name.replace("patch_indices", "places"): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    facts["config"]["budget_shares"] = facts["config"].pop("budget_ratios")
    write(path, renamed, facts)
    with load_stream(path, vlm("qwen3_vl")) as again:
        assert again.config.budget_ratios == (2.0, 1.0, 1.0)
        assert torch.equal(again.ask(QUESTION, max_new_tokens=1).logits, answer)


@pytest.mark.parametrize(
    "work",
    [
        lambda tensor: tensor[..., :-1].contiguous(),
        lambda tensor: tensor.double() if tensor.is_floating_point() else tensor.float(),
        lambda tensor: tensor * float("nan") if tensor.is_floating_point() else tensor.int() - 1000,
        lambda tensor: tensor[None].contiguous(),
    ],
)
def test_every_damaged_tensor_is_named(saved, vlm, work):
    tensors, facts = parts_of(saved)
    for name in tensors:
        write(saved, {**tensors, name: work(tensors[name])}, facts)
        with pytest.raises(CheckpointError):
            load_stream(saved, vlm("qwen3_vl"))


def test_more_than_a_stream_is_refused(saved, vlm):
    tensors, facts = parts_of(saved)
    write(saved, {**tensors, "layer7.state.keys": torch.zeros(1)}, facts)
    with pytest.raises(CheckpointError, match=r"layer7\.state\.keys"):
        load_stream(saved, vlm("qwen3_vl"))


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 2**70), st.floats(), st.text(max_size=3),
    st.lists(st.integers(-2, 9), max_size=3), st.just({}),
)  # fmt: skip


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_fact_may_be_anything(saved, vlm, data):
    tensors, facts = parts_of(saved)
    original = json.dumps(facts)
    holder = data.draw(st.sampled_from([facts, facts["intake"], facts["positions"], facts["config"], facts["pixels"]]))
    name = data.draw(st.sampled_from(sorted(holder)))
    holder[name] = data.draw(VALUES)
    write(saved, tensors, facts)
    try:
        load_stream(saved, vlm("qwen3_vl")).close()
    except KinescanError:
        pass
    finally:
        write(saved, tensors, json.loads(original))


@pytest.mark.parametrize("header", ["[" * 5000, "{", "[]", "3", '{"format": 1}', '{"format": 9}', "{}"])
def test_headers_that_are_none(header, saved, vlm):
    save_file(parts_of(saved)[0], saved, metadata={"kinescan_stream": header})
    with pytest.raises(CheckpointError, match=str(saved)):
        load_stream(saved, vlm("qwen3_vl"))


def test_files_that_are_none(saved, vlm, tmp_path):
    saved.write_bytes(saved.read_bytes()[:-10])
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("hello")
    for path in (saved, tmp_path, tmp_path / "pipe", tmp_path / "text", tmp_path / "missing"):
        with pytest.raises(CheckpointError, match=str(path)):
            load_stream(path, vlm("qwen3_vl"))


def test_a_save_that_fails_leaves_the_old_file(vlm, video, tmp_path, monkeypatch):
    path = tmp_path / "stream.safetensors"
    with open_stream(vlm("internvl")) as stream:
        stream.push(video(2))
        stream.save(path)
        before = path.read_bytes()

        def full(tensors, file, metadata):
            file.write_bytes(b"part")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("kinescan.vlm.snapshot.save_file", full)
        with pytest.raises(CheckpointError, match="space"):
            stream.save(path)
        monkeypatch.undo()
        assert [one.name for one in tmp_path.iterdir()] == [path.name]
        assert path.read_bytes() == before
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").write_text("")
        for unwritable in (tmp_path / "folder", tmp_path / "file" / "a.safetensors"):
            with pytest.raises(CheckpointError, match="written"):
                stream.save(unwritable)
        assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder", path.name]
        stream.push(video(1))


@pytest.mark.bad_input
@pytest.mark.parametrize("path", [None, 3, b"a.state", "", "a\0b", ".", "/", ["a.state"]], ids=repr)
def test_paths_that_are_none(path, saved, vlm):
    """A number would be an open file of the process, for the system."""
    with load_stream(saved, vlm("qwen3_vl")) as stream:
        with pytest.raises(CheckpointError):
            stream.save(path)
        with pytest.raises(CheckpointError):
            load_stream(path, vlm("qwen3_vl"))
        with pytest.raises(CheckpointError):
            load_vlm(path)


def test_settings_are_read_without_the_tensors(saved, monkeypatch):
    """Which may be gigabytes, and are read once the model is there."""

    class Headers:
        def __init__(self, path, framework):
            self.file = safe_open(path, framework)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def metadata(self):
            return self.file.metadata()

    facts = read_snapshot(saved)[1]
    monkeypatch.setattr("kinescan.vlm.snapshot.safe_open", Headers)
    assert saved_settings(saved)[0].budget == facts["config"]["budget"] == 9
