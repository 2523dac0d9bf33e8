"""What a model's folder says of its weights and answers, and whether these are so."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.mentions import mentions

pytest.importorskip("transformers")
from tests.vlm import published
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from kinescan.errors import CheckpointError, KinescanError
from kinescan.vlm import Generation, load_vlm, open_stream
from kinescan.vlm.families.refused import NOT_STORED, QUANTISERS


@pytest.fixture
def folder(tmp_path):
    return published.save("internvl", tmp_path / "internvl")


@pytest.mark.bad_input
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", sorted(AUTO_QUANTIZATION_CONFIG_MAPPING))
def test_every_way_to_quantise_that_transformers_knows_is_read_or_refused_by_name(method, folder):
    """Its package is not installed, or it wants a GPU, or stored weights are none of it: nothing else comes out."""
    published.change(folder / "config.json", quantization_config={"quant_method": method})
    said = None
    try:
        loaded = load_vlm(folder)
    except KinescanError as error:
        said = str(error)
    if method in (*QUANTISERS, *NOT_STORED):
        assert mentions(said or "", str(folder), method)
    elif said is not None:
        assert str(folder) in said
    else:
        assert all(parameter.isfinite().all() for parameter in loaded.model.parameters())


@pytest.mark.bad_input
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.float8_e4m3fn], ids=str)
def test_quantised_weights_without_their_settings_are_refused(dtype, folder):
    """transformers reads such numbers as if they were weights, and answers at random."""
    path = folder / "model.safetensors"
    stored = load_file(path)
    name = next(name for name in sorted(stored) if name.endswith("q_proj.weight"))
    save_file({**stored, name: (100 * stored[name]).to(dtype)}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as raised:
        load_vlm(folder)
    assert mentions(str(raised.value), str(folder), name, "quantization_config")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in ("hot", -1, 1e9)),
        *(("top_p", value) for value in (2, "x")),
        *(("top_k", value) for value in (-1, 1.5)),
        *(("repetition_penalty", value) for value in (0, "x")),
        *(("stop_strings", value) for value in ([3], [""], 3)),
        *(("eos_token_id", value) for value in ("end", 1.5, [304, "end"], True)),
    ],
)
def test_a_generation_config_of_other_values_is_named_before_a_video_is_watched(name, value, folder):
    stored = {"do_sample": True, "temperature": 1.0, name: value}
    (folder / "generation_config.json").write_text(json.dumps(stored))

    def begin():
        vlm = load_vlm(folder)
        open_stream(vlm.model, vlm.tokenizer, pixels=vlm.pixels)
        Generation().of_model(vlm.model.generation_config)

    with pytest.raises(KinescanError, match="generation_config"):
        begin()
