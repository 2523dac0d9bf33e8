from types import ModuleType
from typing import Any

import pytest
import torch

from kinescan.layers import chunks
from kinescan.profiling.activations import activation_bytes

SIZES: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "width": 32,
    "depth": 3,
    "heads": 2,
    "mlp_dim": 64,
    "embed_dim": 24,
}
MODULE = {"insert_after": 2, "window": 5, "kinematic_width": 16}
PEERS = ("ST-Adapter", "AIM", "EVL", "Side4Video")


@pytest.fixture
def memory(script: Any) -> ModuleType:
    return script("table1_memory")


def _build(memory: ModuleType, method: str) -> torch.nn.Module:
    sizes = SIZES if method in ("vit", *PEERS) else SIZES | MODULE
    return memory.build(method, "pks4_vit_b16", "vit_b16", **sizes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["pks4", "pks4, activation checkpointing", "Side4Video"])
def test_counting_without_memory_counts_what_real_tensors_take(memory: ModuleType, method: str, dtype: str) -> None:
    fake = memory.count(_build(memory, method), 2, dtype)
    real = memory.count(_build(memory, method), 2, dtype, fake=False)
    assert fake.standing == real.standing
    assert fake.kept == pytest.approx(real.kept, rel=0.02)
    assert fake.peak == pytest.approx(real.peak, rel=0.02)


@pytest.mark.parametrize("method", ["vit", "pks4"])
def test_what_is_kept_is_what_saved_tensor_hooks_see(memory: ModuleType, method: str) -> None:
    seen = activation_bytes(_build(memory, method), num_clips=2, num_frames=memory.FRAMES)
    clips = 2 * memory.FRAMES * 3 * 32 * 32 * 4  # kept for the patch convolution, and there before the step
    assert memory.count(_build(memory, method), 2, "float32").kept == pytest.approx(seen - clips, rel=0.005)


def test_what_a_block_keeps_in_bfloat16_is_what_a_hand_counts(memory: ModuleType) -> None:
    def kept(depth: int) -> int:
        model = memory.build("vit", "pks4_vit_b16", "vit_b16", **SIZES | {"depth": depth})
        kept: int = memory.count(model, 2, "bfloat16").kept
        return kept

    tokens = 2 * memory.FRAMES * (1 + 4 * 4)
    stream = (
        32 * 4 + 32 * 2
    )  # the residual stream, which is float32 on CUDA, and what attention adds to it, in bfloat16
    attention = (3 * 32 + 32) * 2 + 2 * 4  # queries, keys, values and what they give in bfloat16; a float32 a head
    hidden = 64 * 2
    weights = 32 * 32 * 2  # a copy in bfloat16 of those of the projection after attention; the others are made again
    assert kept(4) - kept(3) == tokens * (stream + attention + hidden) + weights


@pytest.mark.parametrize("method", ["pks4", "AIM"])
def test_the_residual_stream_is_counted_in_float32_as_on_cuda(
    memory: ModuleType, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, calls = set(), []
    norm = torch.nn.LayerNorm.forward

    def watched(self: torch.nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        out = norm(self, x)
        # The first of all, ln_pre, reads what the patch convolution gives, in bfloat16.
        seen.update({x.dtype, out.dtype} if calls else {out.dtype})
        calls.append(self)
        return out

    monkeypatch.setattr(torch.nn.LayerNorm, "forward", watched)
    memory.count(_build(memory, method), 2, "bfloat16")
    assert seen == {torch.float32}


def test_frames_without_gradients_are_counted_all_at_once_as_on_a_gpu(
    memory: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peak() -> int:
        model = memory.build("EVL", "pks4_vit_b16", "vit_b16", **SIZES | {"mlp_dim": 256})
        needed: int = memory.count(model, 16, "bfloat16").peak
        return needed

    whole = peak()
    monkeypatch.setattr(chunks, "CHUNK_VALUES", 1)
    assert peak() == whole


def test_memory_grows_with_clips_and_shrinks_with_activation_checkpointing_and_a_frozen_stem(
    memory: ModuleType,
) -> None:
    def kept(method: str, clips: int) -> int:
        return memory.count(_build(memory, method), clips, "float32").kept

    plain = kept("pks4", 4)
    assert plain == pytest.approx(2 * kept("pks4", 2), rel=0.01)
    assert (
        kept("pks4, frozen stem, activation checkpointing", 4) < kept("pks4, activation checkpointing", 4) < 0.7 * plain
    )


def test_activation_checkpointing_gives_the_same_gradients(memory: ModuleType) -> None:
    assert memory.checkpointing_difference() <= 1e-5


@pytest.mark.parametrize("setting", ["B16", "L14"])
@pytest.mark.parametrize("peer", PEERS)
def test_peers_train_as_many_parameters_as_published(memory: ModuleType, peer: str, setting: str) -> None:
    pks4, vit, _ = memory.SETTINGS[setting]
    trained = memory.num_trained(memory.build(peer, pks4, vit)) / 1e6
    # Of EVL on B/16 the table says 89; the layers that give its 350 on L/14 exactly give 98.8 there.
    tolerance = 0.12 if (peer, setting) == ("EVL", "B16") else 0.06
    assert trained == pytest.approx(memory.PAPER_MILLION[setting][peer], rel=tolerance)


@pytest.mark.parametrize("peer", PEERS)
def test_peers_train_what_is_theirs_and_nothing_of_the_backbone(memory: ModuleType, peer: str) -> None:
    model = _build(memory, peer)
    torch.manual_seed(0)
    memory.give_memory(model, "cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    logits = model(torch.randn(2, memory.FRAMES, 3, 32, 32))
    assert logits.shape == (2, memory.NUM_CLASSES)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        if name.startswith("vit."):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert torch.count_nonzero(parameter.grad), name
