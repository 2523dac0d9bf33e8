import sys

import pytest
import torch
from tests.mentions import mentions

from kinescan.errors import ConfigError, DependencyError
from kinescan.runtime.transformers_internals import cache_argument
from kinescan.vlm import open_stream
from kinescan.vlm.attention import attend_through
from kinescan.vlm.families.door import follows_length, import_transformers, pinned_rope


def test_missing_transformers_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DependencyError, match=r"pip install 'kinescan\[vlm\]'"):
        import_transformers()


def test_a_forward_inside_another_is_refused(vlm):
    stream = open_stream(vlm("internvl"))
    decoder = stream.family.decoder
    with attend_through(decoder, stream.cache):
        with pytest.raises(ConfigError, match="inside"), attend_through(decoder, stream.cache):
            pass
        assert decoder.config._attn_implementation.startswith("kinescan_stream")
    assert decoder.config._attn_implementation == "sdpa"


def test_streams_of_two_models_do_not_meet(vlm):
    first, second = open_stream(vlm("internvl")), open_stream(vlm("llava_onevision"))
    with attend_through(first.family.decoder, first.cache):
        with attend_through(second.family.decoder, second.cache):
            pass
        hidden = torch.zeros(1, 2, 64)
        with torch.no_grad():
            decoder = first.family.decoder
            decoder(inputs_embeds=hidden, **{cache_argument(decoder): first.cache})
    assert first.cache.num_tokens == 2
    assert second.cache.num_tokens == 0


def test_pinned_frequencies_are_undone_after_an_error(vlm):
    decoder = vlm("internvl_dynamic").model.language_model
    rotary = decoder.rotary_emb
    before = (rotary.inv_freq, rotary.rope_type, rotary.attention_scaling)

    def fail_inside():
        with pinned_rope(decoder, 500):
            assert not torch.equal(rotary.inv_freq, before[0])
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert (rotary.inv_freq, rotary.rope_type, rotary.attention_scaling) == before
    with pinned_rope(decoder, 10):  # shorter than what it was trained for: its own frequencies
        assert torch.equal(rotary.inv_freq, rotary.original_inv_freq)


def test_fixed_frequencies_are_left_alone(vlm):
    decoder = vlm("internvl").model.language_model
    before = decoder.rotary_emb.inv_freq
    assert not follows_length(decoder)
    with pinned_rope(decoder, 500):
        assert decoder.rotary_emb.inv_freq is before


def test_switching_frequencies_are_refused(vlm, monkeypatch):
    model = vlm("internvl")
    monkeypatch.setattr(model.model.language_model.rotary_emb, "rope_type", "longrope")
    with pytest.raises(ConfigError, match="'longrope'"):
        open_stream(model)


def _unpacked_at_first(model):
    """As compressed-tensors leaves a model: a hook of the whole model makes the weights before its first forward."""
    layers = [layer.self_attn.q_proj for layer in model.model.language_model.layers]
    packed = [layer.weight.data for layer in layers]
    for layer in layers:
        del layer.weight

    def unpack(module, args):
        hook.remove()
        for layer, weight in zip(layers, packed, strict=True):
            layer.weight = torch.nn.Parameter(weight, requires_grad=False)

    hook = model.register_forward_pre_hook(unpack)
    model.is_quantized = True
    return hook


def test_weights_that_the_first_forward_unpacks(build_fresh, video):
    torch.manual_seed(3)
    model = build_fresh("internvl")
    answers = []
    for packed in (False, True):
        if packed:
            _unpacked_at_first(model)
        with open_stream(model) as stream:
            stream.push(video(3))
            answers.append(stream.ask([5, 17], max_new_tokens=2).logits)
    assert torch.equal(*answers)


@pytest.mark.bad_input
def test_quantised_weights_that_do_not_run_are_an_error(build_fresh):
    model = build_fresh("internvl")
    _unpacked_at_first(model).remove()
    with pytest.raises(ConfigError) as raised:
        open_stream(model)
    assert mentions(str(raised.value), "quantised", "weight")
