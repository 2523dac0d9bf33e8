from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from kinescan.errors import ConfigError, ShapeError
from kinescan.models.pks4 import PKS4
from kinescan.models.pks4_config import PKS4Config
from kinescan.models.pks4_state import PKS4State

TINY = PKS4Config(
    image_size=32,
    patch_size=8,
    width=32,
    depth=3,
    heads=2,
    mlp_dim=64,
    embed_dim=24,
    num_classes=5,
    insert_after=2,
    window=5,
    kinematic_width=16,
)
VARIANTS: dict[str, dict[str, Any]] = {
    "scanner alone": {"correlation": False, "variation": False},
    "scanner and variation": {"correlation": False},
    "encoder alone": {"scanner": False},
    "bidirectional": {"bidirectional": True},
    "after the first block": {"insert_after": 1},
    "no context": {"context_frames": 0},
    "context of 2": {"context_frames": 2},
    "context of 6": {"context_frames": 6},
    "fixed shift": {"class_token_route": "token_shift"},
    "tsm": {"class_token_route": "tsm"},
    "no route": {"class_token_route": "none"},
    "group norm": {"norm": "group"},
    "replicate": {"border": "replicate"},
    "literal": {"residual": "literal"},
    "exponential": {"average": "exponential"},
    "gate": {"gate": True},
    "difference": {"difference": True},
    "changes only": {"difference": True, "changes_only": True},
    "stem": {"stem_convolutions": 2},
}


def _awake(model: PKS4) -> PKS4:
    """Gives the projections that start at zero something to say."""
    for name, parameter in model.named_parameters():
        if (
            "expand" in name
            or "out_proj" in name
            or "class_token_routes" in name
            or name in ("head.weight", "difference.weight")
        ):
            nn.init.normal_(parameter, std=0.3)
    return model


def _clip(num_frames: int = 4, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, num_frames, 3, 32, 32)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("route", ["none", "conv", "token_shift", "tsm"])
def test_module_changes_nothing_at_the_start_bit_for_bit(route: str, train: bool) -> None:
    full = PKS4(replace(TINY, class_token_route=route)).train(train)
    bare = PKS4(replace(TINY, class_token_route=route, scanner=False, correlation=False, variation=False)).train(train)
    result = bare.load_state_dict(full.state_dict(), strict=False)
    assert not result.missing_keys
    assert {key.split(".")[0] for key in result.unexpected_keys} == {"kinematic", "scanner"}
    clip = _clip()
    assert torch.equal(full(clip), bare(clip))


def test_without_temporal_parts_frames_are_averaged_in_any_order() -> None:
    model = PKS4(replace(TINY, class_token_route="none", scanner=False, correlation=False, variation=False)).eval()
    clip = _clip(6)
    torch.testing.assert_close(model(clip), model(clip[:, torch.randperm(6)]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_every_parameter(variant: str) -> None:
    model = _awake(PKS4(replace(TINY, **VARIANTS[variant])))
    logits = model(_clip(3))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    untrained = {name for name, p in model.named_parameters() if p.grad is None or not torch.count_nonzero(p.grad)}
    # Differences to the frame itself are zero, so that its own convolutions see nothing when there is no context.
    blind = {"kinematic.variation.encode.0.conv.weight", "kinematic.variation.reduce.conv.weight"}
    assert {n for n in untrained if not n.startswith("kinematic.variation")} == set()
    assert (untrained == set()) or (variant == "no context" and blind <= untrained)


@pytest.mark.parametrize("variant", ["scanner alone", "scanner and variation", "encoder alone", "group norm"])
def test_order_of_frames_matters(variant: str) -> None:
    model = _awake(PKS4(replace(TINY, class_token_route="none", **VARIANTS[variant]))).eval()
    clip = _clip()
    assert (model(clip) - model(clip.flip(1))).abs().max() > 1e-4


def test_literal_residual_adds_the_tokens_twice() -> None:
    model = PKS4(replace(TINY, residual="literal"))
    patches = torch.randn(1, 2, 16, 32)
    assert torch.equal(PKS4(TINY)._run_module(patches, PKS4State(), keep_state=False)[0], patches)
    torch.testing.assert_close(model._run_module(patches, PKS4State(), keep_state=False)[0], 2 * patches)


CAUSAL_VARIANTS = [name for name in VARIANTS if name != "bidirectional"]


@pytest.mark.parametrize("variant", CAUSAL_VARIANTS)
def test_stream_equals_offline_on_every_prefix(variant: str) -> None:
    model = _awake(PKS4(replace(TINY, causal=True, **VARIANTS[variant]))).eval()
    clip = _clip(7)
    with torch.no_grad():
        state, seen = None, []
        for t in range(7):
            logits, state = model.forward_stream(clip[:, t : t + 1], state)
            seen.append(logits[:, 0])
        for t in range(7):
            torch.testing.assert_close(seen[t], model(clip[:, : t + 1]), atol=1e-5, rtol=1e-5)


def test_stream_in_pieces_equals_frame_by_frame_and_state_keeps_its_size() -> None:
    model = _awake(PKS4(replace(TINY, causal=True))).eval()
    clip = _clip(12)
    with torch.no_grad():
        whole, end = model.forward_stream(clip)
        state, chunks, sizes = None, [], []
        for start, stop in ((0, 1), (1, 2), (2, 6), (6, 11), (11, 12)):
            logits, state = model.forward_stream(clip[:, start:stop], state)
            chunks.append(logits)
            sizes.append(state.num_bytes())
    torch.testing.assert_close(torch.cat(chunks, dim=1), whole, atol=1e-5, rtol=1e-5)
    assert len(set(sizes)) == 1
    assert end.num_bytes() == sizes[0]
    assert state.frames_seen == 12
    for name, tensor in end.tensors().items():
        torch.testing.assert_close(state.tensors()[name], tensor, atol=1e-5, rtol=1e-5)


def test_layer_depths_cover_the_image_vit_and_nothing_new() -> None:
    model = PKS4(TINY)
    depths = model.layer_depths()
    names = {name for name, _ in model.named_parameters()}
    assert {name for name in names if name.startswith("vit.")} == set(depths)
    assert depths["vit.conv1.weight"] == depths["vit.positional_embedding"] == depths["vit.ln_pre.bias"] == 0
    assert depths["vit.transformer.resblocks.0.attn.in_proj_weight"] == 1
    assert depths["vit.transformer.resblocks.2.mlp.c_fc.weight"] == 3
    assert depths["vit.ln_post.weight"] == depths["vit.proj"] == model.num_layers == 4


def test_gradients_of_the_causal_model_flow() -> None:
    model = _awake(PKS4(replace(TINY, causal=True)))
    model(_clip()).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_double_precision_runs() -> None:
    model = _awake(PKS4(TINY)).eval()
    clip = _clip()
    torch.testing.assert_close(model.double()(clip.double()).float(), model.float()(clip), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("route", ["conv", "tsm", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_computed_again_leaves_gradients_as_they_are_bit_for_bit(
    route: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, clip = _awake(PKS4(replace(TINY, class_token_route=route))), _clip()

    def gradients() -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model(clip)
        return list(torch.autograd.grad(logits.float().square().sum(), list(model.parameters())))

    given = gradients()
    for module in ("models.vit.vit_block", "layers.mamba"):
        monkeypatch.setattr(f"kinescan.{module}.checkpointed", lambda part, *inputs: part(*inputs))
    assert all(torch.equal(left, right) for left, right in zip(given, gradients(), strict=True))


def test_frames_in_pieces_give_the_same_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clip = _awake(PKS4(TINY)).eval(), _clip(5)
    with torch.no_grad():
        whole = model(clip)
        monkeypatch.setattr("kinescan.layers.chunks.CHUNK_VALUES", 3 * 17 * 96)
        torch.testing.assert_close(model(clip), whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "variant", [{}, {"class_token_route": "token_shift"}, {"class_token_route": "tsm"}, {"causal": True}]
)
def test_tokens_written_in_place_leave_logits_as_they_are_bit_for_bit(variant: dict[str, Any]) -> None:
    model, clip = _awake(PKS4(replace(TINY, **variant))).eval(), _clip()
    told: list[bool] = []
    for route in model.class_token_routes:
        route.register_forward_pre_hook(lambda _, inputs, words: told.append(words["in_place"]), with_kwargs=True)
    with torch.enable_grad():
        expected = model(clip)
    assert told == [False] * 6
    told.clear()
    with torch.no_grad():
        assert torch.equal(model(clip), expected)
    assert told == ([False] * 6 if variant.get("class_token_route") == "tsm" else [False] + [True] * 5)


def test_tokens_written_in_place_leave_what_hooks_keep_as_it_was() -> None:
    model, clip = _awake(PKS4(TINY)).eval(), _clip()
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    watched = [model.vit.ln_pre, model.scanner, model.kinematic]
    for block in model.vit.blocks:
        watched += [block.ln_1, block.ln_2, block.mlp.c_proj, block.drop_path]
    for module in watched:
        assert module is not None

        def keep(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
            tensors = [inputs[0], output[0] if isinstance(output, tuple) else output]
            kept.extend((tensor, tensor.clone()) for tensor in tensors)

        module.register_forward_hook(keep)
    with torch.no_grad():
        model(clip)
    assert len(kept) == 2 * (len(watched) + TINY.depth)  # drop_path stands behind both branches of a block
    assert all(torch.equal(tensor, copied) for tensor, copied in kept)


@pytest.mark.compile
def test_model_compiles_without_graph_breaks() -> None:
    model = _awake(PKS4(TINY)).eval()
    clip = _clip()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")  # inductor takes minutes on two cores
    with torch.no_grad():
        torch.testing.assert_close(compiled(clip), model(clip), atol=1e-4, rtol=1e-4)


@pytest.mark.compile
def test_training_step_in_bfloat16_compiles_without_graph_breaks() -> None:
    model = _awake(PKS4(TINY)).train()
    clip, weights = _clip(), dict(model.named_parameters())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = []
    for form in (model, compiled):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = form(clip)
        assert logits.dtype == torch.bfloat16
        found.append([logits, *torch.autograd.grad(logits.float().square().sum(), list(weights.values()))])
    for name, expected, given in zip(["logits", *weights], *found, strict=True):
        largest = expected.detach().abs().max().item()
        torch.testing.assert_close(given, expected, atol=0.05 * largest + 1e-6, rtol=0.0, msg=name)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 3, 32, 32), r"must have 5 axes, got \[4, 3, 32, 32\]"),
        ((1, 0, 3, 32, 32), "at least 1 frame"),
        ((1, 2, 1, 32, 32), "3 colour channels"),
        ((1, 2, 3, 40, 32), "frames.*32 x 32.*40 x 32"),
    ],
)
def test_wrong_clips_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        PKS4(TINY)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"insert_after": 3}, "insert_after.*1.*2.*3.*3"),
        ({"insert_after": 0}, "got 0"),
        ({"window": 8}, "window.*8"),
        ({"causal": True, "bidirectional": True}, "backwards"),
        ({"num_classes": 0}, "num_classes.*1.*0"),
        ({"average_rate": 0.0}, "average_rate"),
        ({"state_size": 0}, "state_size.*1"),
        ({"gate": True, "scanner": False}, "gate.*scanner"),
        ({"gate": True, "correlation": False, "variation": False}, "gate.*correlation"),
        ({"gate_ratio": 0.0}, "gate_ratio.*1"),
        ({"gate_ratio": float("nan")}, "gate_ratio.*nan"),
    ],
)
def test_wrong_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **fields)


def test_only_causal_models_stream() -> None:
    with pytest.raises(ConfigError, match=r"frames.*causal=True"):
        PKS4(TINY).forward_stream(_clip())


def test_state_of_another_batch_is_refused() -> None:
    model = PKS4(replace(TINY, causal=True)).eval()
    _, state = model.forward_stream(_clip(batch=2))
    with pytest.raises(ShapeError, match=r"belongs.*2.*3"):
        model.forward_stream(_clip(batch=3), state)


@pytest.mark.parametrize(
    "options", [{}, {"norm": "group", "bidirectional": True}, {"causal": True}, {"depth": 16, "insert_after": 3}]
)
def test_activation_checkpointing_gives_the_same_gradients_and_statistics_in_less_memory(
    options: dict[str, Any],
) -> None:
    states, kept = [], []
    for again in (False, True):
        torch.manual_seed(0)
        model = _awake(PKS4(replace(TINY, activation_checkpointing=again, drop_path=0.5, **options)))
        torch.manual_seed(1)
        saved: dict[int, int] = {}

        def keep(tensor: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(_clip()).square().sum()
        kept.append(sum(saved.values()))
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        states.append({**gradients, **dict(model.named_buffers())})
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert kept[1] < 0.7 * kept[0]


@pytest.mark.parametrize(("depth", "insert_after", "lengths"), [(15, 3, [1] * 15), (16, 3, [2, 1, *[2] * 6, 1])])
def test_blocks_of_a_deep_model_are_computed_again_in_pairs_that_the_module_does_not_cut(
    depth: int, insert_after: int, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _awake(PKS4(replace(TINY, depth=depth, insert_after=insert_after, activation_checkpointing=True)))
    runs: list[range] = []
    run = PKS4._run_blocks

    def counted(self: PKS4, indices: range, *rest: Any, **options: Any) -> Any:
        runs.append(indices)
        return run(self, indices, *rest, **options)

    monkeypatch.setattr(PKS4, "_run_blocks", counted)
    model(_clip())
    assert [len(indices) for indices in runs] == lengths
    assert [index for indices in runs for index in indices] == list(range(depth))


def test_a_frozen_stem_keeps_nothing_for_the_backward_pass() -> None:
    model = PKS4(TINY)
    stem = model.stem_parameters()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in stem)
    saved: list[int] = []
    at_module: list[tuple[int, bool]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.untyped_storage().nbytes())
        return tensor

    assert model.kinematic is not None
    model.kinematic.register_forward_pre_hook(
        lambda module, inputs: at_module.append((len(saved), inputs[0].requires_grad))
    )
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(_clip()).sum()
    assert at_module == [(0, False)]
    assert len(saved) > 0
    loss.backward()
    assert all((parameter.grad is None) == (name in stem) for name, parameter in model.named_parameters())


def test_stem_is_all_that_comes_before_the_module() -> None:
    model = PKS4(TINY)
    stem = model.stem_parameters()
    parts = {name.rpartition(".")[0] if "resblocks" not in name else name[:27] for name in stem}
    assert parts == {
        *("vit", "vit.conv1", "vit.ln_pre", "vit.transformer.resblocks.0", "vit.transformer.resblocks.1"),
        *(f"class_token_routes.{index}" for index in range(4)),
    }
    assert "vit.positional_embedding" in stem
    assert "vit.proj" not in stem


def test_stem_of_a_model_without_module_is_refused() -> None:
    bare = PKS4(replace(TINY, scanner=False, correlation=False, variation=False), name="vit_b16")
    with pytest.raises(ConfigError, match=r"vit_b16.*Leave train.freeze"):
        bare.stem_parameters()


def test_a_carried_state_keeps_only_its_own_memory_alive() -> None:
    model = _awake(PKS4(replace(TINY, causal=True))).eval()
    with torch.no_grad():
        _, state = model.forward_stream(_clip(24, batch=1))
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state.tensors().values()}
    assert sum(held.values()) == state.num_bytes()


def test_a_stream_leaves_the_state_that_it_was_given() -> None:
    model = _awake(PKS4(replace(TINY, causal=True))).eval()
    frames = _clip(6, batch=1)
    with torch.no_grad():
        _, state = model.forward_stream(frames[:, :3])
        before = {name: tensor.clone() for name, tensor in state.tensors().items()}
        first, _ = model.forward_stream(frames[:, 3:], state)
        again, _ = model.forward_stream(frames[:, 3:], state)
    assert state.frames_seen == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())
    assert torch.equal(first, again)


def test_a_running_mean_does_not_freeze_under_autocast() -> None:
    # In bfloat16 a step of 1 / t is rounded away from some hundred frames on.
    off = {"scanner": False, "correlation": False, "variation": False, "class_token_route": "none"}
    model = PKS4(replace(TINY, causal=True, **off)).eval()
    first, second = torch.zeros(1, 400, 3, *_clip().shape[3:]), torch.ones(1, 400, 3, *_clip().shape[3:])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        ends = [model.forward_stream(clip[:, :1])[1].average for clip in (first, second)]
        _, state = model.forward_stream(first)
        _, state = model.forward_stream(second, state)
    assert state.average is not None
    assert state.average.dtype == torch.float32
    torch.testing.assert_close(state.average, (ends[0] + ends[1]) / 2, atol=1e-4, rtol=1e-3)


AVERAGING: dict[str, Any] = {
    "scanner": False,
    "correlation": False,
    "variation": False,
    "class_token_route": "none",
}
FRAMES: dict[str, dict[str, Any]] = {"full": {}, "scanner alone": VARIANTS["scanner alone"], "plain ViT": AVERAGING}


@pytest.mark.parametrize("variant", FRAMES)
def test_frames_of_a_causal_model_are_the_same_whole_and_in_chunks(variant: str) -> None:
    model = _awake(PKS4(replace(TINY, causal=True, output="frames", **FRAMES[variant]))).eval()
    clip = _clip(7)
    whole = model(clip)
    assert whole.shape == (2, 7, 5)
    first, state = model.forward_stream(clip[:, :3])
    second, state = model.forward_stream(clip[:, 3:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, atol=1e-4, rtol=1e-4)
    assert state.frames_seen == 7
    assert state.average is None


def test_what_changed_since_the_frame_before_starts_as_nothing_and_a_first_frame_differs_from_none() -> None:
    model = PKS4(replace(TINY, causal=True, difference=True)).eval()
    bare = PKS4(replace(TINY, causal=True)).eval()
    assert bare.load_state_dict(model.state_dict(), strict=False).unexpected_keys == ["difference.weight"]
    clip = _clip(3)
    assert torch.equal(model(clip), bare(clip))
    model, still = _awake(model), clip[:, :1].expand(-1, 3, -1, -1, -1)
    bare.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(model(still), bare(still))
    assert not torch.allclose(model(clip), bare(clip), atol=1e-3)


def test_of_changes_alone_what_stands_still_is_not_seen() -> None:
    model = _awake(PKS4(replace(TINY, causal=True, difference=True, changes_only=True, output="frames"))).eval()
    clip = _clip(4)
    room = torch.randn(1, 1, 3, *clip.shape[-2:])
    torch.testing.assert_close(model(clip + room), model(clip), atol=1e-4, rtol=1e-4)
    still = clip[:, :1].expand(-1, 4, -1, -1, -1)
    assert torch.equal(model(still), model(torch.zeros_like(clip)))
    assert not torch.allclose(model(clip), model(still), atol=1e-3)
    with pytest.raises(ConfigError, match="difference = true"):
        replace(TINY, changes_only=True)


def test_a_frame_answers_for_itself_and_not_for_an_average() -> None:
    causal = _awake(PKS4(replace(TINY, causal=True, output="frames"))).eval()
    average = PKS4(replace(TINY, causal=True)).eval()
    average.load_state_dict(causal.state_dict())
    clip = _clip(6)
    torch.testing.assert_close(causal(clip).mean(dim=1), average(clip), atol=1e-4, rtol=1e-4)
    plain = PKS4(replace(TINY, output="frames", **AVERAGING)).eval()
    torch.testing.assert_close(plain(clip)[:, 3], plain(clip[:, 3:4])[:, 0], atol=1e-5, rtol=1e-5)


def test_a_model_of_frames_that_looks_ahead_hears_of_later_frames() -> None:
    model = _awake(PKS4(replace(TINY, output="frames"))).eval()
    clip = _clip(6)
    changed = clip.clone()
    changed[:, 5] = 0
    assert not torch.allclose(model(clip)[:, 4], model(changed)[:, 4])


def test_the_state_of_other_streams_is_refused_where_a_model_answers_for_frames() -> None:
    model = PKS4(replace(TINY, causal=True, output="frames")).eval()
    _, state = model.forward_stream(_clip(2))
    with pytest.raises(ShapeError, match="belongs to 2 clips"):
        model.forward_stream(_clip(2, batch=3), state)


def test_overlapping_needs_answers_for_frames() -> None:
    with pytest.raises(ConfigError, match='output = "frames"'):
        replace(TINY, overlapping=True)
