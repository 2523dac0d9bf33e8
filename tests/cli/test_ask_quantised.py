"""`ask` with quantised weights, beside transformers' own generate; each where its package is installed."""

import importlib
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")

_spec = importlib.util.spec_from_file_location("ask_families", Path(__file__).with_name("test_ask_families.py"))
families = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(families)

clip = families.clip
BLOCKS = "model.language_model.layers"
GROUP = 32


def saved_by_transformers(folder, settings):
    """The weights of a folder, quantised as transformers does while it reads them."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, quantization_config=settings, device_map={"": "cpu"}, dtype=torch.float32
    )
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)


def bitsandbytes_4bit(folder):
    settings = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    saved_by_transformers(folder, settings)


def bitsandbytes_8bit(folder):
    # where columns with large activations are computed apart, they are found in all tokens of a call: then a result
    # depends on what is computed together, also of transformers' own forward
    saved_by_transformers(folder, transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0))


def torchao(folder):
    quantization = importlib.import_module("torchao.quantization")
    saved_by_transformers(folder, transformers.TorchAoConfig(quantization.Int8WeightOnlyConfig()))


def compressed_tensors(folder):
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    inputs = {**weights, "strategy": "token", "dynamic": True}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}},
        "ignore": ["lm_head", "re:.*vision.*", "re:.*multi_modal_projector.*"],
    }

    def pack(weight):
        scale = weight.abs().amax(1, keepdim=True) / 127
        return {"weight": (weight / scale).round().to(torch.int8), "weight_scale": scale}

    with_packed_layers(folder, settings, pack)


def fp8(folder):
    """In blocks, as Qwen and DeepSeek publish them; on a CPU transformers unpacks them."""
    settings = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head", "model.vision_tower", "model.multi_modal_projector"],
    }

    def pack(weight):
        scale = weight.abs().amax() / 448
        return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale_inv": scale.reshape(1, 1).float()}

    with_packed_layers(folder, settings, pack)


def gptq(folder):
    settings = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}

    def pack(weight):
        outputs, inputs = weight.shape
        groups = inputs // GROUP
        return {
            "qweight": random_words(inputs // 8, outputs),
            "qzeros": torch.full((groups, outputs // 8), 0x77777777, dtype=torch.int32),
            "scales": torch.rand(groups, outputs).half() * 0.06,
            "g_idx": (torch.arange(inputs) // GROUP).int(),
        }

    with_packed_layers(folder, {**settings, "block_name_to_quantize": BLOCKS, "checkpoint_format": "gptq"}, pack)


def awq(folder):
    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}

    def pack(weight):
        outputs, inputs = weight.shape
        groups = inputs // GROUP
        return {
            "qweight": random_words(inputs, outputs // 8),
            "qzeros": torch.full((groups, outputs // 8), -0x77777778, dtype=torch.int32),
            "scales": torch.rand(groups, outputs).half() * 0.06,
        }

    with_packed_layers(
        folder,
        {**settings, "modules_to_not_convert": ["model.vision_tower", "model.multi_modal_projector", "lm_head"]},
        pack,
    )


def random_words(*shape):
    """Eight numbers of four bits in each."""
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).int()


def with_packed_layers(folder, settings, pack):
    """The linear layers of the decoder replaced by the tensors that `pack` makes of their weights."""
    torch.manual_seed(0)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "language_model" in name and name.endswith("_proj.weight"):
            stem = name.removesuffix("weight")
            tensors |= {stem + part: packed.contiguous() for part, packed in pack(tensor).items()}
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    change_config(folder, quantization_config=settings)


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


METHODS = {
    "bitsandbytes_4bit": (bitsandbytes_4bit, "bitsandbytes"),
    "bitsandbytes_8bit": (bitsandbytes_8bit, "bitsandbytes"),
    "torchao": (torchao, "torchao"),
    "compressed_tensors": (compressed_tensors, "compressed_tensors"),
    "fp8": (fp8, "transformers"),
    "gptq": (gptq, "gptqmodel"),
    "awq": (awq, "gptqmodel"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
def test_quantised_weights_answer_as_generate_does(method, clip, tmp_path):
    quantise, package = METHODS[method]
    pytest.importorskip(package)
    pytest.importorskip("accelerate")
    folder = families.published.save("internvl", tmp_path / "internvl")
    quantise(folder)
    stored = json.loads((folder / "config.json").read_text())
    assert stored["quantization_config"]["quant_method"]
    asked = [families.QUESTION, "--model", folder, "--max-new-tokens", families.NEW_TOKENS]
    answer = families.document(clip, *asked, "--set", "hf_compat=true")["asked"][0]["answer"]
    assert answer == families.generated(folder, clip)


@pytest.mark.filterwarnings("ignore")
def test_settings_of_the_decoder_alone_are_followed(clip, tmp_path):
    """Where the table stands in `text_config`, transformers reads it there."""
    pytest.importorskip("bitsandbytes")
    folder = families.published.save("internvl", tmp_path / "internvl")
    bitsandbytes_4bit(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["quantization_config"] = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    vlm = families.load_vlm(folder)
    assert vlm.model.is_quantized


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantise", [bitsandbytes_4bit, bitsandbytes_8bit])
def test_a_stream_takes_nothing_from_the_quantised_model_nor_copies_it(quantise, tmp_path):
    """bitsandbytes keeps weights and scales outside of parameters, and moves them at a layer's first forward."""
    pytest.importorskip("bitsandbytes")
    folder = families.published.save("internvl", tmp_path / "internvl")
    quantise(folder)
    model = families.load_vlm(folder).model
    frames = torch.arange(4 * 3 * 16 * 16).reshape(4, 3, 16, 16).remainder(256).byte()
    untouched = families.load_vlm(folder).model
    pixels = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)

    def seen(model):
        with torch.no_grad():
            return model.model.get_image_features(pixels).pooler_output

    answers = []
    for _ in range(2):
        with families.open_stream(model) as stream:
            stream.push(frames)
            answers.append(stream.ask([5, 17], max_new_tokens=1).logits)
            ours = stream.family.decoder.layers[0].self_attn.q_proj
    assert torch.equal(*answers)
    assert torch.equal(seen(model), seen(untouched))
    theirs = model.model.language_model.layers[0].self_attn.q_proj
    for name in ("state", "quant_state"):
        for key, held in vars(getattr(theirs, name, object)).items():
            if isinstance(held, torch.Tensor) and key in ("CB", "SCB", "absmax", "code"):
                assert getattr(getattr(ours, name), key).data_ptr() == held.data_ptr()
