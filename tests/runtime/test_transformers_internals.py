"""Each test names what of ours breaks when transformers changes the private name behind it."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

transformers = pytest.importorskip("transformers")

from kinescan.runtime import transformers_internals as internals  # noqa: E402


class _Marked(internals.InitialisedWeights):
    def after_loading(self, module):
        module.seen = True


@pytest.fixture
def model():
    config = transformers.Qwen3Config(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    return transformers.Qwen3Model(config).eval()


def test_a_stream_needs_its_own_attention_and_takes_it_away_again(model):
    calls = []

    def attention(module, query, key, value, mask, **kwargs):
        calls.append(query.shape)
        return query.transpose(1, 2), None

    before = internals.attention_of(model.config)
    transformers.AttentionInterface.register("ours", attention)
    transformers.AttentionMaskInterface.register("ours", lambda *args, **kwargs: None)
    internals.set_attention(model.config, "ours")
    model(torch.zeros(1, 3, dtype=torch.long))
    internals.set_attention(model.config, before)
    assert calls == [(1, 2, 3, 8)]
    assert internals.attention_of(model.config) == before
    internals.forget_attention("ours")
    assert "ours" not in transformers.AttentionInterface()
    assert "ours" not in transformers.AttentionMaskInterface()


def test_two_streams_of_a_model_need_it_without_the_hooks_of_a_plain_forward(model):
    model(torch.zeros(1, 3, dtype=torch.long), output_hidden_states=True)
    hooked = [module for module in model.modules() if module._forward_hooks]
    assert hooked
    for module in model.modules():
        internals.forget_hooks(module)
    assert not any(module._forward_hooks for module in model.modules())
    again = model(torch.zeros(1, 3, dtype=torch.long), output_hidden_states=True)
    assert len(again.hidden_states) == 2


def test_a_stream_needs_the_name_of_a_decoders_cache(model):
    class Newer(nn.Module):
        def forward(self, inputs_embeds=None, cache=None):
            return cache

    class Older(nn.Module):
        def forward(self, inputs_embeds=None, past_key_values=None, **kwargs):
            return past_key_values

    names = [internals.cache_argument(decoder) for decoder in (Newer(), Older())]
    assert names == ["cache", "past_key_values"]
    cache = transformers.DynamicCache()
    model(torch.zeros(1, 3, dtype=torch.long), use_cache=True, **{internals.cache_argument(model): cache})
    assert cache.get_seq_length() == 3


def test_a_horizon_needs_the_frequencies_of_a_length(model):
    config = transformers.Qwen3Config(
        hidden_size=16, head_dim=8, max_position_embeddings=16,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    )  # fmt: skip
    near, far = (
        internals.rope_frequencies("dynamic", config, torch.device("cpu"), num_positions=length)[0]
        for length in (16, 64)
    )
    assert near.shape == far.shape == (4,)
    assert float(far[-1]) < float(near[-1])


def test_refusing_quantisers_that_would_be_left_out_needs_the_list_of_them():
    assert internals.knows_quantiser("bitsandbytes_4bit")
    assert not internals.knows_quantiser("ours")
    assert not internals.knows_quantiser(None)


def test_trying_a_family_without_an_adapter_needs_the_list_of_models_that_take_pictures():
    assert internals.knows_vlm("llava")
    assert not internals.knows_vlm("bert")
    assert not internals.knows_vlm("ours")


def test_a_pipeline_without_complaints_needs_the_list_of_names():
    mapping = transformers.models.auto.modeling_auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES
    internals.name_video_classifier("ours_for_a_test", "OursForVideoClassification")
    assert mapping.pop("ours_for_a_test") == "OursForVideoClassification"


def test_exported_weights_need_what_transformers_calls_after_loading():
    class Small(_Marked, transformers.PreTrainedModel):
        config_class = transformers.PreTrainedConfig

        def __init__(self, config):
            super().__init__(config)
            self.part = nn.Linear(2, 2)
            self.post_init()

    model = Small(transformers.PreTrainedConfig())
    model._initialize_weights(model.part)
    assert model.part.seen


def test_a_saved_processor_needs_the_name_beside_its_settings():
    processor = type("Processor", (), {})()
    internals.name_processor(processor, "OursProcessor")
    assert processor._processor_class == "OursProcessor"
    assert "_processor_class" in vars(transformers.processing_utils.ProcessorMixin) or any(
        "_processor_class" in Path(module.__file__).read_text(encoding="utf-8")
        for module in (transformers.processing_utils, transformers.image_processing_base)
    )


def test_missing_tensors_are_reported_once_needs_the_name_of_a_logger(model, tmp_path):
    """Its own report is a table of several lines, above ours of one."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("transformers")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    logger.addHandler(handler)
    try:
        with internals.without_report():
            _, found = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert set(found["missing_keys"]) == {"norm.weight"}
        assert said == []
        transformers.AutoModel.from_pretrained(tmp_path)
        assert len(said) == 1
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize("name", internals.__all__)
def test_every_name_has_a_test(name):
    assert name in Path(__file__).read_text(encoding="utf-8")
