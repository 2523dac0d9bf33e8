import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kinescan.errors import ConfigError
from kinescan.models.videomamba.tuners.ssp import SSPConfig, SSPVideoMamba
from kinescan.models.zoo import create_model

CASES = {
    "ssp_a": {"image_size": 32, "depth": 4, "width": 48, "num_classes": 7, "num_frames": 4, "inner_width": 24},
    "ssp_init": {"image_size": 24, "depth": 3, "width": 32, "num_classes": 5, "num_frames": 3, "inner_width": 16},
}
PROMPTS = ("inner_prompt.", "dynamic_scales.", "prompt_attentions.")
# Of `_awake`, by code that met the published values at 1e-10.
PINNED = [-0.354700954347, -0.03068883899, 0.358088338172]
TINY: dict[str, Any] = {
    **{"image_size": 16, "patch_size": 8, "depth": 3, "width": 16, "num_frames": 4, "num_classes": 3},
    **{"inner_width": 8, "attention_width": 8, "attention_heads": 2},
}


def _published(case: str, shared: Path, **options: Any) -> tuple[SSPVideoMamba, dict[str, Tensor]]:
    values = load_file(shared / "fixtures" / "ssp.safetensors")
    values = {name.removeprefix(f"{case}/"): t for name, t in values.items() if name.startswith(f"{case}/")}
    config = SSPConfig(
        **{"patch_size": 8, "attention_width": 16, "importance_scope": "batch", **CASES[case], **options}
    )
    model = SSPVideoMamba(config, name="ssp_videomamba_tiny")
    state = {name.removeprefix("state_dict/"): t for name, t in values.items() if name.startswith("state_dict/")}
    model.load_state_dict({f"tuner.{k}" if k.startswith(PROMPTS) else k: t for k, t in state.items()}, strict=True)
    return model.eval(), values


def _watch(model: SSPVideoMamba) -> dict[str, Tensor]:
    """What goes into and comes out of every part, block by block, as the reference names it."""
    seen: dict[str, Tensor] = {}
    block = {"index": -1}

    def gather(module: object, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        block["index"] += 1
        start = f"idx{block['index']}"
        seen[f"{start}/ifg_in_f64"], (seen[f"{start}/ifg_out_f64"], seen[f"{start}/inter_out_f64"]) = inputs[0], output

    model.tuner.inner_prompt.register_forward_hook(gather)
    for k, attention in enumerate(model.tuner.prompt_attentions):

        def attend(module: object, inputs: tuple[Tensor], output: Tensor, k: int = k) -> None:
            seen[f"idx{block['index']}/weighted_tokens_f64"] = inputs[0]
            seen[f"idx{block['index']}/prompt_attn{k}_out_f64"] = output

        attention.register_forward_hook(attend)
    for index, layer in enumerate(model.blocks):

        def run(module: object, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...], index: int = index) -> None:
            seen[f"idx{index}/block_in_f64"], seen[f"idx{index}/block_out_f64"] = inputs[0], output[0]

        layer.register_forward_hook(run)
    return seen


@pytest.mark.parametrize("case", CASES)
def test_float64_matches_every_published_intermediate_and_gradient(case: str, shared: Path) -> None:
    model, values = _published(case, shared)
    model.double().requires_grad_(True)
    seen = _watch(model)
    clip = values["x"].transpose(1, 2).double().requires_grad_()
    seen["logits_f64"] = model(clip)
    expected = {name for name in values if name.startswith("idx")} | {"logits_f64"}
    assert set(seen) == expected
    for name, tensor in seen.items():
        torch.testing.assert_close(tensor, values[name], atol=1e-10, rtol=1e-9, msg=lambda text, name=name: name + text)
    (seen["logits_f64"] * values["loss_w"]).sum().backward()
    gradients = {name.removeprefix("tuner."): parameter.grad for name, parameter in model.named_parameters()}
    checked = [name for name in values if name.startswith("grad_f64/")]
    assert len(checked) > 40
    for name in checked:
        error = (gradients[name.removeprefix("grad_f64/")] - values[name]).abs().max()
        assert error <= 1e-8 * values[name].abs().max().clamp(min=1e-9), name
    error = (clip.grad.transpose(1, 2) - values["dx_f64"]).abs().max()
    assert error <= 1e-8 * values["dx_f64"].abs().max()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_one_clip_alone_matches_published_values_in_both_scopes(case: str, scope: str, shared: Path) -> None:
    model, values = _published(case, shared, importance_scope=scope)
    clip = values["x"][:1].transpose(1, 2).double()
    logits = model.double()(clip)
    torch.testing.assert_close(logits, values["logits_sample0_alone_f64"], atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_training_mode_matches_published_values(case: str, shared: Path) -> None:
    model, values = _published(case, shared)
    logits = model.double().train()(values["x"].transpose(1, 2).double())
    torch.testing.assert_close(logits, values["logits_train_f64"], atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_float32_matches_published_values(case: str, shared: Path) -> None:
    model, values = _published(case, shared)
    logits = model(values["x"].transpose(1, 2))
    torch.testing.assert_close(logits.double(), values["logits_f64"], atol=1e-5, rtol=1e-5)


def _awake(scope: str) -> SSPVideoMamba:
    torch.manual_seed(0)
    model = SSPVideoMamba(SSPConfig(**TINY, importance_scope=scope), name="ssp_videomamba_tiny")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.double().eval()


def test_logits_do_not_depend_on_batch_mates_unless_asked() -> None:
    clips = torch.randn(2, 4, 3, 16, 16, dtype=torch.float64)
    clips[1] *= 100
    differences = {}
    for scope in ("sample", "batch"):
        model = _awake(scope)
        both = torch.stack([model(clips)[0], model(clips.flip(0))[1]])
        alone = torch.stack([model(clips[:1])[0]] * 2)
        differences[scope] = (both - alone).abs().max().item()
    assert differences["sample"] < 1e-12
    assert differences["batch"] > 1e-9


def test_outputs_stay_what_they_were() -> None:
    clip = torch.randn(1, 4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(_awake("sample")(clip)[0].tolist(), PINNED, atol=1e-8, rtol=1e-8)


def test_start_is_the_base_but_for_the_room_of_the_prompts() -> None:
    model = SSPVideoMamba(SSPConfig(**TINY), name="ssp_videomamba_tiny")
    clip = torch.randn(1, 4, 3, 16, 16)
    hidden = model.embed(clip)
    with_room = model.tuner.begin(hidden)
    assert with_room.shape[1] == 1 + 4 * (4 + 3)
    assert torch.equal(with_room[:, 1:].unflatten(1, (4, 7))[:, :, :4].flatten(1, 2), hidden[:, 1:])
    assert torch.equal(model.tuner.enter(1, with_room, None)[0], with_room)


@pytest.mark.parametrize(
    ("size", "prompts", "trained", "total"),
    [
        ("tiny", 1_384_154, 1_417_928, 8_374_280),
        ("small", 1_901_210, 1_968_584, 27_382_856),
        ("middle", 2_418_274, 2_519_248, 76_163_728),
    ],
)
def test_parameter_counts(size: str, prompts: int, trained: int, total: int) -> None:
    with torch.device("meta"):
        model = create_model(f"ssp_videomamba_{size}", num_classes=174)
    assert sum(parameter.numel() for parameter in model.tuner.parameters()) == prompts
    assert (model.num_trained, model.num_parameters) == (trained, total)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_prompts": 0}, "num_prompts"),
        ({"inner_width": 0}, "inner_width"),
        ({"attention_width": 9}, "attention_width"),
        ({"importance_scope": "world"}, "importance_scope"),
    ],
)
def test_impossible_prompts_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        create_model("ssp_videomamba_tiny", **{**{k: v for k, v in TINY.items() if k != "num_classes"}, **options})


def test_autocast_comes_close_to_float32() -> None:
    model = _awake("sample").float()
    clip = torch.randn(2, 4, 3, 16, 16)
    exact = model(clip)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(clip).float()
    assert (logits - exact).abs().max() <= 5e-2 * exact.abs().max()


def test_prompts_of_one_frame() -> None:
    model = SSPVideoMamba(SSPConfig(**{**TINY, "num_frames": 1}), name="ssp_videomamba_tiny")
    assert model(torch.zeros(1, 1, 3, 16, 16)).isfinite().all()
