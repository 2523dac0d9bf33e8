"""Adapters of PEFT that do not fit their base."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")
from tests.vlm import published

from kinescan.errors import CheckpointError, ConfigError
from kinescan.vlm import load_vlm, open_stream


@pytest.fixture
def folder(tmp_path):
    return published.save("internvl", tmp_path / "internvl")


def of_other_layers(folder, path):
    """As an adapter of a model whose layers have other names: its tensors belong to none here."""
    stored = load_file(path)
    save_file({name.replace(".layers.", ".blocks."): tensor for name, tensor in stored.items()}, path)


def one_less(folder, path):
    stored = load_file(path)
    save_file({name: stored[name] for name in sorted(stored)[1:]}, path)


def one_more(folder, path):
    stored = load_file(path)
    name = sorted(stored)[0]
    save_file({**stored, name.replace("layers.0", "layers.17"): stored[name].clone()}, path)


BAD_ADAPTERS = {
    "of other layers": of_other_layers,
    "one tensor less": one_less,
    "one tensor more": one_more,
    "no weights": lambda folder, path: path.unlink(),
    "cut": lambda folder, path: path.write_bytes(path.read_bytes()[:-50]),
    "other rank": lambda folder, path: published.change(folder / "adapter_config.json", r=4),
    "strange type": lambda folder, path: published.change(folder / "adapter_config.json", peft_type="NONE_SUCH"),
    "a number for a type": lambda folder, path: published.change(folder / "adapter_config.json", peft_type=5),
    "learned tokens": lambda folder, path: published.change(
        folder / "adapter_config.json", peft_type="PROMPT_TUNING", task_type="CAUSAL_LM", num_virtual_tokens=3
    ),
    "invoked by tokens": lambda folder, path: published.change(
        folder / "adapter_config.json", alora_invocation_tokens=[3]
    ),
    "a module that is not stored": lambda folder, path: published.change(
        folder / "adapter_config.json", modules_to_save=["lm_head"]
    ),
    "no such layers": lambda folder, path: published.change(folder / "adapter_config.json", target_modules=["nothing"]),
}


@pytest.fixture
def stored_adapter(folder, vlm, tmp_path):
    """An adapter of the model in `folder`, as PEFT writes it."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(copy.deepcopy(vlm("internvl")), lora).save_pretrained(tmp_path / "adapter")
    published.change(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(folder))
    return tmp_path / "adapter"


@pytest.mark.bad_input
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", BAD_ADAPTERS)
@pytest.mark.parametrize("merge", [False, True])
def test_an_adapter_that_does_not_fit_is_refused(damage, merge, stored_adapter):
    """PEFT fills layers without a stored tensor with random numbers, and leaves out what belongs to none."""
    load_vlm(stored_adapter)
    BAD_ADAPTERS[damage](stored_adapter, stored_adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError) as raised:
        load_vlm(stored_adapter, merge_adapter=merge)
    assert str(stored_adapter) in str(raised.value)


@pytest.mark.bad_input
@pytest.mark.filterwarnings("ignore")
def test_a_stream_refuses_an_adapter_that_works_outside_of_layers(vlm):
    peft = pytest.importorskip("peft")
    learned = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=2, num_layers=3, token_dim=64, num_attention_heads=4
    )
    with pytest.raises(ConfigError, match="PROMPT_TUNING"):
        open_stream(peft.get_peft_model(copy.deepcopy(vlm("internvl")), learned).eval())
