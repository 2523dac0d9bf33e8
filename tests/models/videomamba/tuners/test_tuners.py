"""Each tuner: its parameter count, that it starts as its base, and what it refuses."""

import copy
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from kinescan.errors import ConfigError
from kinescan.layers import mamba
from kinescan.models.registry import register_model
from kinescan.models.videomamba import tuners
from kinescan.models.videomamba.tuned import split_frames
from kinescan.models.videomamba.videomamba import VideoMamba
from kinescan.models.zoo import create_model, from_pretrained
from kinescan.profiling.cost import count_cost
from kinescan.training.resume_check import refuse_changes

SIZES: dict[str, Any] = {"image_size": 16, "patch_size": 8, "depth": 2, "width": 16, "num_frames": 4}
CLIP = torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("tuner", "options", "added"),
    [
        ("full", {}, 0),
        ("linear_probe", {}, 0),
        ("adapter", {}, 2_379_776),  # the paper's table: 2.40 M
        ("st_adapter", {}, 2_684_160),  # 2.69 M
        ("vpt", {}, 1_474_560),  # 1.50 M
        ("vpt", {"deep": False}, 46_080),
        ("lora", {}, 1_804_288),
        ("lora", {"rank": 4, "targets": ("out_proj",)}, 221_184),
        ("state_offset", {}, 1_179_648),
    ],
)
def test_added_parameters_on_the_middle_size(tuner: str, options: dict[str, Any], added: int) -> None:
    with torch.device("meta"):
        model = create_model(f"{tuner}_videomamba_middle", num_classes=174, **options)
    assert sum(parameter.numel() for parameter in model.tuner.parameters()) == added
    head, norm = 174 * 577, 0 if tuner == "linear_probe" else 576
    assert model.num_trained == (73_745_454 if tuner == "full" else added + head + norm)


@pytest.mark.parametrize("tuner", ["full", "linear_probe", "adapter", "st_adapter", "lora", "state_offset"])
def test_start_is_the_base(tuner: str) -> None:
    torch.manual_seed(0)
    base = create_model("videomamba_tiny", num_classes=3, **SIZES).eval()
    model = create_model(f"{tuner}_videomamba_tiny", num_classes=3, **SIZES).eval()
    model.load_state_dict(base.state_dict(), strict=False)
    assert torch.equal(model(CLIP), base(CLIP))


def test_adapter_is_a_bottleneck_on_the_output_of_each_block() -> None:
    model = create_model("adapter_videomamba_tiny", num_classes=3, bottleneck=4, **SIZES)
    adapter = model.tuner.adapters[1]
    torch.nn.init.normal_(adapter.up.weight)
    hidden = torch.randn(1, 17, 16)
    expected = (
        hidden + torch.nn.functional.gelu(hidden @ adapter.down.weight.T + adapter.down.bias) @ adapter.up.weight.T
    )
    torch.testing.assert_close(model.tuner.leave(1, hidden), expected)


def test_st_adapter_mixes_neighbouring_frames_of_a_patch_and_leaves_the_class_token() -> None:
    model = create_model("st_adapter_videomamba_tiny", num_classes=3, bottleneck=4, **SIZES)
    adapter = model.tuner.adapters[0]
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    patches = torch.randn(1, 4, 4, 16)
    maps = adapter.fc1(patches).permute(0, 3, 1, 2)[..., None]  # [B, C, T, N, 1]
    torch.testing.assert_close(adapter(patches), adapter.fc2(adapter.conv(maps)[..., 0].permute(0, 2, 3, 1)))
    hidden = torch.randn(1, 17, 16)
    entered, _ = model.tuner.enter(0, hidden, None)
    assert torch.equal(entered[:, 0], hidden[:, 0])


def test_deep_prompts_replace_what_blocks_made_of_theirs_and_shallow_ones_stay() -> None:
    for deep in (True, False):
        model = create_model("vpt_videomamba_tiny", num_classes=3, num_prompts=2, deep=deep, **SIZES)
        hidden = model.tuner.begin(model.embed(CLIP))
        frames = split_frames(hidden, model.config)[1]
        assert torch.equal(frames[0, :, 4:], model.tuner.prompts[0])
        hidden, residual = model.blocks[0](hidden, None)
        entered, summed = model.tuner.enter(1, hidden, residual)
        if deep:
            assert torch.equal(split_frames(entered, model.config)[1][0, :, 4:], model.tuner.prompts[1])
            assert torch.count_nonzero(split_frames(summed, model.config)[1][:, :, 4:]) == 0
            assert torch.equal(
                split_frames(summed, model.config)[1][:, :, :4], split_frames(residual, model.config)[1][:, :, :4]
            )
        else:
            assert torch.equal(entered, hidden)
            assert torch.equal(summed, residual)


@pytest.mark.parametrize("targets", [("in_proj", "x_proj", "out_proj"), ("x_proj",)])
def test_merged_updates_give_the_same_logits_in_a_plain_model(tmp_path: Path, targets: tuple[str, ...]) -> None:
    options = {"rank": 2, "scale": 0.5, "targets": targets, "labels": ["a", "b", "c"]}
    model = create_model("lora_videomamba_tiny", **options, **SIZES).eval().double()
    before = model(CLIP.double())
    for parameter in model.tuner.parameters():
        torch.nn.init.normal_(parameter)
    merged = model.merged()
    assert type(merged) is VideoMamba
    assert (merged.name, merged.labels, merged.training) == ("videomamba_tiny", ("a", "b", "c"), False)
    assert (model(CLIP.double()) - before).abs().max() > 1e-5
    torch.testing.assert_close(merged(CLIP.double()), model(CLIP.double()), atol=1e-10, rtol=1e-10)
    merged.float().save_pretrained(tmp_path)
    assert torch.equal(from_pretrained(tmp_path)(CLIP), merged(CLIP))


def test_a_model_in_training_that_is_merged_stays_as_it_is() -> None:
    model = create_model("lora_videomamba_tiny", num_classes=3, **SIZES).double()
    torch.nn.init.normal_(model.tuner.updates[0]["out_proj"].up.weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = model.merged()
    assert merged.training
    assert merged.cls_token.dtype == torch.float64
    torch.nn.init.zeros_(merged.layers[0].mixer.in_proj.weight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_offsets_are_read_as_if_they_were_added_to_every_state(monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("state_offset_videomamba_tiny", num_classes=3, **SIZES).eval()
    bare = copy.deepcopy(model)
    pending = []
    for forwards, backwards in zip(model.tuner.forwards, model.tuner.backwards, strict=True):
        for module in (forwards, backwards):
            torch.nn.init.normal_(module.offset)
            pending.append(module.offset)
    expected = model(CLIP)

    def scan_with_offset(
        u: Any, delta: Any, A: Any, B: Any, C: Any, *, D: Any, z: Any, delta_bias: Any, **_: Any
    ) -> Any:
        offset, outs = pending.pop(0), []
        state = torch.zeros(u.shape[0], *A.shape)
        for t in range(u.shape[1]):
            step = torch.nn.functional.softplus(delta[:, t] + delta_bias)
            state = torch.exp(step[..., None] * A) * state + (step * u[:, t])[..., None] * B[:, t, None]
            read = ((state + offset) * C[:, t, None]).sum(dim=-1)
            outs.append((read + D * u[:, t]) * torch.nn.functional.silu(z[:, t]))
        return torch.stack(outs, dim=1), state

    monkeypatch.setattr(mamba, "selective_scan", scan_with_offset)
    torch.testing.assert_close(bare(CLIP), expected, atol=1e-5, rtol=1e-5)
    assert pending == []


@pytest.mark.parametrize("tuner", ["lora", "state_offset"])
def test_what_is_added_inside_a_block_survives_activation_checkpointing_and_is_counted(tuner: str) -> None:
    gradients = []
    for recomputed in (False, True):
        torch.manual_seed(0)
        name = f"{tuner}_videomamba_tiny"
        model = create_model(name, num_classes=3, activation_checkpointing=recomputed, **SIZES)
        for parameter in model.tuner.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        model(CLIP).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.tuner.parameters()])
    for plain, again in zip(*gradients, strict=True):
        assert torch.count_nonzero(plain)
        torch.testing.assert_close(again, plain)
    parts = {part.name: part for part in count_cost(model).parts}
    tokens, inner, state_size = 17, 32, 16
    macs = {"lora": tokens * 8 * (16 + 64 + 2 * (32 + 33) + 32 + 16), "state_offset": tokens * 2 * inner * state_size}
    assert parts["tuner"].macs.products == 2 * macs[tuner]
    assert parts["tuner"].num_trained == sum(parameter.numel() for parameter in model.tuner.parameters())


@pytest.mark.parametrize(
    ("tuner", "options", "message"),
    [
        ("adapter", {"bottleneck": 0}, "bottleneck"),
        ("st_adapter", {"bottleneck": 0}, "bottleneck"),
        ("st_adapter", {"kernel_size": 2}, "2. Use 3"),
        ("vpt", {"num_prompts": 0}, "num_prompts"),
        ("adapter", {"botleneck": 3}, "adapter_videomamba_tiny"),
        ("lora", {"rank": 0}, "rank"),
        ("lora", {"scale": 0.0}, "scale"),
        ("lora", {"scale": float("nan")}, "scale"),
        ("lora", {"targets": ()}, "targets"),
        ("lora", {"targets": ("x_proj", "x_proj")}, "targets"),
        ("lora", {"targets": ("xproj",)}, "x_proj"),
    ],
)
def test_impossible_tuners_are_refused(tuner: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        create_model(f"{tuner}_videomamba_tiny", **SIZES, **options)


def test_head_only_is_the_old_name_of_the_linear_probe(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = create_model("head_only_videomamba_tiny", depth=1, labels=["left", "right"])
    assert "linear_probe_videomamba_tiny" in caplog.text
    assert model.name == "linear_probe_videomamba_tiny"
    with pytest.warns(DeprecationWarning, match="LinearProbeVideoMamba"):
        assert tuners.HeadOnlyVideoMamba is type(model)
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    saved = config.read_text(encoding="utf-8").replace("linear_probe_videomamba", "head_only_videomamba")
    config.write_text(saved, encoding="utf-8")
    assert from_pretrained(tmp_path).name == "linear_probe_videomamba_tiny"
    with pytest.raises(ConfigError, match="head_only_videomamba_tiny"):
        register_model("head_only_videomamba_tiny", model.config, type(model))


def test_a_run_with_the_old_names_resumes_under_the_current_ones(tmp_path: Path) -> None:
    def settings(name: str, kernel: str) -> dict[str, object]:
        return {"model": {"name": f"{name}_videomamba_tiny", "options": {kernel: 3}}}

    refuse_changes(settings("head_only", "taps"), settings("linear_probe", "kernel_size"), tmp_path)
    with pytest.raises(ConfigError, match="kernel_size"):
        refuse_changes(settings("head_only", "taps"), settings("linear_probe", "depth"), tmp_path)
