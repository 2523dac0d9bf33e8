"""VLMs without a family of their own: run where a check at opening passes, refused with a reason where not."""

import pytest
import torch
from tests.vlm.conftest import IMAGE, QWEN_VISION, ROPE, SIGLIP, TEXT, VIDEO, transformers

from kinescan.errors import ConfigError
from kinescan.vlm import open_stream
from kinescan.vlm.families.generic import Way
from kinescan.vlm.self_check import tolerance

QUESTION = [5, 17, 200, 41, 8]
LLAMA = {"model_type": "llama", **TEXT, "rope_parameters": ROPE}
CLIP = {**SIGLIP, "model_type": "clip_vision_model", "num_hidden_layers": 3}


def made(kind, config_class, **options):
    torch.manual_seed(1)
    config = getattr(transformers, config_class)(**options)
    return getattr(transformers, kind)(config).eval()


def llava():
    return made("LlavaForConditionalGeneration", "LlavaConfig", text_config=LLAMA, vision_config=CLIP,
                image_token_index=IMAGE)  # fmt: skip


def video_llava():
    return made("VideoLlavaForConditionalGeneration", "VideoLlavaConfig", text_config=LLAMA, vision_config=CLIP,
                image_token_index=IMAGE, video_token_index=VIDEO)  # fmt: skip


def idefics3():
    vision = {**SIGLIP, "model_type": "idefics3_vision", "image_size": 16}
    return made("Idefics3ForConditionalGeneration", "Idefics3Config", text_config=LLAMA, vision_config=vision,
                image_token_id=IMAGE, scale_factor=2)  # fmt: skip


def paligemma():
    return made("PaliGemmaForConditionalGeneration", "PaliGemmaConfig", text_config={**TEXT, "model_type": "gemma"},
                vision_config=SIGLIP, image_token_index=IMAGE, projection_dim=64)  # fmt: skip


def llava_next():
    return made("LlavaNextForConditionalGeneration", "LlavaNextConfig", text_config=LLAMA, vision_config=CLIP,
                image_token_index=IMAGE)  # fmt: skip


def glm4v():
    return made("Glm4vForConditionalGeneration", "Glm4vConfig", text_config=TEXT, vision_config=QWEN_VISION)


def gemma3():
    return made("Gemma3ForConditionalGeneration", "Gemma3Config", text_config=TEXT, vision_config=SIGLIP,
                image_token_id=IMAGE, mm_tokens_per_image=4)  # fmt: skip


WORK = {"llava": (llava, Way("image", 0), IMAGE), "video_llava": (video_llava, Way("video", 1), VIDEO),
        "idefics3": (idefics3, Way("image", 1), IMAGE)}  # fmt: skip


@pytest.mark.parametrize("name", WORK)
def test_answers_equal_forward_and_generate(name, video):
    build, way, token = WORK[name]
    model, frames = build(), video(5)
    with open_stream(model, budget=10_000) as stream:
        stream.push(frames)
        answer = stream.ask(QUESTION, max_new_tokens=8)
        family = stream.family
        assert family.way == way
        count = len(family.encode(frames[:1]).tokens)
    inputs = {
        "input_ids": torch.tensor([[token] * count * len(frames) + QUESTION]),
        way.argument: family.encoder_input(family.prepare(frames)),
    }
    with torch.no_grad():
        expected = model(**inputs).logits[0, -1]
    torch.testing.assert_close(answer.logits, expected, atol=1e-4, rtol=1e-4)
    whole = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert list(answer.token_ids) == whole[0, inputs["input_ids"].shape[1] :].tolist()[: len(answer.token_ids)]
    with open_stream(model, budget=6) as small:
        small.push(frames)
        assert (small.ask(QUESTION, max_new_tokens=1).logits - expected).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (paligemma, "text before"),
        (llava_next, "image_sizes"),
        (glm4v, "several axes"),
        (gemma3, "window"),
    ],
)
def test_models_that_cannot_run_frame_by_frame_are_refused(build, match):
    with pytest.raises(ConfigError, match=match):
        open_stream(build())


def test_a_model_that_lets_frames_meet_is_found_out(monkeypatch):
    """By the check alone: its features are those of all frames together."""
    model = llava()
    inner = type(model.model)
    plain = inner.get_image_features

    def meets(self, pixel_values, **options):
        output = plain(self, pixel_values, **options)
        features = torch.cat([part.flatten(0, -2) for part in output.pooler_output])
        output.pooler_output = [features + features.mean(0)]
        return output

    monkeypatch.setattr(inner, "get_image_features", meets)
    with pytest.raises(ConfigError, match="frame 1"):
        open_stream(model)


def test_tolerance_follows_the_dtype():
    assert tolerance(torch.float32) == 1e-3
    assert 1e-3 < tolerance(torch.float16) < tolerance(torch.bfloat16) < 0.1


def test_a_bfloat16_model_opens(video):
    with open_stream(llava().to(torch.bfloat16)) as stream:
        stream.push(video(3))
        assert stream.ask(QUESTION, max_new_tokens=2).token_ids
