from typing import Any

import pytest
import torch

from kinescan.errors import NonFiniteError
from kinescan.inference import StreamSession, load_stream_state, save_stream_state
from kinescan.inference.export import export
from kinescan.inference.exported import ExportedStep, load_exported
from kinescan.inference.stream import StreamPrediction
from kinescan.inference.stream_batch import StreamBatch
from kinescan.inference.turns import Turn
from kinescan.models.pks4 import PKS4
from kinescan.models.zoo import create_model

TOLERANCE = 1e-5
SIZES = {"patch_size": 16, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 16, "embed_dim": 16, "insert_after": 1}


def causal(**options: Any) -> PKS4:
    torch.manual_seed(0)
    model = create_model(
        *["pks4_vit_ti16"], labels=["a", "b", "c"], image_size=32, kinematic_width=8, window=3, causal=True,
        **{**SIZES, **options},
    )  # fmt: skip
    assert isinstance(model, PKS4)
    # a module at its start adds nothing, and a mistake in its state would not be seen
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def turn(index: int, seed: int, *, is_cut: bool = False) -> Turn:
    generator = torch.Generator().manual_seed(1000 * seed + index)
    pixels = torch.randint(0, 256, (3, 40, 48), generator=generator, dtype=torch.uint8)
    return Turn(index, pixels, 0.1 * index, is_cut)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"average": "exponential"},
        {"output": "frames", "overlapping": True},
        {"border": "replicate"},
        {"scanner": False},
    ],
    ids=["clips", "own average", "frames", "border", "no scanner"],
)
def test_streams_of_any_age_give_what_each_gives_alone(options, tmp_path):
    """They join at different frames, leave passes out, and one begins anew on its way."""
    model = causal(**options)
    batch = StreamBatch(model)
    together = [StreamSession(model) for _ in range(3)]
    alone = [StreamSession(model) for _ in range(3)]
    passes = [[0], [0, 1], [1, 0], [0, 1, 2], [2, 1], [0, 2], [0, 1, 2], [1, 2, 0]]
    counts = [0, 0, 0]
    for members in passes:
        turns = []
        for member in members:
            turns.append(turn(counts[member], member, is_cut=member == 1 and counts[member] == 4))
            counts[member] += 1
        found = batch.push([together[member] for member in members], turns)
        for member, given, entry in zip(members, turns, found, strict=True):
            if given.is_cut:
                alone[member].restart()
            expected = alone[member].push(given.pixels, frame_index=given.frame_index, seconds=given.seconds)
            assert isinstance(entry, StreamPrediction)
            torch.testing.assert_close(entry.logits, expected.logits, atol=TOLERANCE, rtol=0)
            assert entry.frame_index == expected.frame_index
    # a file that a batch wrote is continued by a single stream
    for member in range(3):
        save_stream_state(together[member].state, tmp_path / "state", model=model)
        later = StreamSession(model, state=load_stream_state(tmp_path / "state", model=model))
        frame = turn(99, member).pixels
        expected = alone[member].push(frame).logits
        torch.testing.assert_close(later.push(frame).logits, expected, atol=TOLERANCE, rtol=0)


def test_one_streams_trouble_is_its_own(monkeypatch):
    model = causal()
    sessions = [StreamSession(model) for _ in range(3)]
    taken = StreamSession.take

    def take(self: StreamSession, *given: Any, **more: Any) -> StreamPrediction:
        if self is sessions[1]:
            raise NonFiniteError("logits")
        return taken(self, *given, **more)

    monkeypatch.setattr(StreamSession, "take", take)
    found = StreamBatch(model).push(sessions, [turn(0, seed) for seed in range(3)])
    assert [type(entry) for entry in found] == [StreamPrediction, NonFiniteError, StreamPrediction]
    assert [session.state.frames_seen for session in sessions] == [1, 0, 1]


def test_a_state_holds_no_memory_of_the_batch():
    model = causal()
    sessions = [StreamSession(model) for _ in range(3)]
    StreamBatch(model).push(sessions, [turn(0, seed) for seed in range(3)])
    for tensor in sessions[0].state.tensors().values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@pytest.mark.parametrize(
    ("options", "batch_size"),
    [({}, "dynamic"), ({"average": "exponential"}, 2), ({"output": "frames", "overlapping": True}, 2)],
)
def test_streams_of_an_exported_step_go_in_one_pass(options, batch_size, tmp_path, monkeypatch):
    export(causal(**options), tmp_path, to="onnx", step=True, batch=batch_size)
    step = load_exported(tmp_path)
    assert isinstance(step, ExportedStep)
    batch, passes = StreamBatch(step), []
    together, alone = ([StreamSession(step) for _ in range(3)] for _ in range(2))
    take = step.take

    def counted(frames, state, *, first):
        passes.append(len(frames))
        return take(frames, state, first=first)

    for round_, members in enumerate([[0], [0, 1], [1, 2, 0], [2, 1], [0, 1, 2]]):
        turns = [turn(round_, member) for member in members]
        monkeypatch.setattr(step, "take", counted)
        found = batch.push([together[member] for member in members], turns)
        monkeypatch.setattr(step, "take", take)
        for member, given, entry in zip(members, turns, found, strict=True):
            expected = alone[member].push(given.pixels, frame_index=given.frame_index, seconds=given.seconds)
            assert isinstance(entry, StreamPrediction)
            torch.testing.assert_close(entry.logits, expected.logits, atol=TOLERANCE, rtol=0)
    assert passes == [2, 3, 2, 3]
    for member in range(3):
        assert together[member].state.frames_seen == alone[member].state.frames_seen
