"""Small random models of the four families, and the plain transformers forward to compare with."""

import functools

import pytest
import torch

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
Tokenizer, models, pre_tokenizers, decoders = (
    getattr(tokenizers, name) for name in ("Tokenizer", "models", "pre_tokenizers", "decoders")
)

VISION_START, VISION_END, VIDEO, IMAGE, END = 300, 301, 302, 303, 304
TEXT = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.15,
    "eos_token_id": END,
    "pad_token_id": None,
    "bos_token_id": None,
}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 48,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 64,
    "initializer_range": 0.1,
}
QWEN_IDS = {
    "video_token_id": VIDEO,
    "image_token_id": IMAGE,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}


def qwen2_5_vl():
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        },
        vision_config={**QWEN_VISION, "window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 2},
        **QWEN_IDS,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl():
    config = transformers.Qwen3VLConfig(
        text_config={
            **TEXT,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
        },
        vision_config={**QWEN_VISION, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        **QWEN_IDS,
    )
    return transformers.Qwen3VLForConditionalGeneration(config)


def llava_onevision():
    config = transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **TEXT},
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 24,
            "patch_size": 4,
            "vision_use_head": False,
        },
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config)


def internvl(rope=None):
    rope = rope or {"rope_type": "default", "rope_theta": 1e4}
    config = transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **TEXT, "rope_parameters": rope, "max_position_embeddings": 64},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [16, 16],
            "patch_size": [4, 4],
            "initializer_range": 0.1,
        },
        image_token_id=IMAGE,
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    return transformers.InternVLForConditionalGeneration(config)


def internvl_dynamic():
    return internvl({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})


@functools.cache
def build_tokenizer(chat_template=None):
    """A tokenizer of bytes, and of the words that the families' prompts hold as one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    words = ["<|im_start|>", "<|im_end|>", "<img>", "</img>"] + [f"<unused{n}>" for n in range(40)]
    words += ["<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<image>"]
    core.add_special_tokens(words)
    assert core.token_to_id("<|vision_start|>") == VISION_START
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, chat_template=chat_template)


@pytest.fixture
def tokenizer():
    """Gives a byte tokenizer, with or without a chat template."""
    return build_tokenizer


BUILDERS = {
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "llava_onevision": llava_onevision,
    "internvl": internvl,
    "internvl_dynamic": internvl_dynamic,
}
FAMILY_NAMES = ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl"]


@functools.cache
def build(name):
    torch.manual_seed(1)
    return BUILDERS[name]().eval()


@pytest.fixture
def vlm():
    """Gives a small random model by name; shared between tests, which must leave it as it is."""
    return build


@pytest.fixture
def build_fresh():
    """Gives a model of one's own, which has never run."""
    return lambda name: BUILDERS[name]().eval()


@pytest.fixture(params=FAMILY_NAMES)
def family_name(request):
    return request.param


@pytest.fixture
def video():
    """Gives uint8 frames [T, 3, H, W] of a size that a family takes as it is, different in every frame."""

    def make(num_frames, height=16, width=24):
        generator = torch.Generator().manual_seed(num_frames)
        return torch.randint(0, 256, (num_frames, 3, height, width), dtype=torch.uint8, generator=generator)

    return make


def plain_inputs(family, frames, question):
    """Arguments of the whole forward as transformers wants them, from all frames at once."""
    model = family.model
    kind = family.model_type
    if kind.startswith("qwen"):
        merged, merge = family.temporal_patch, family.merge**2
        patches = torch.cat([family.prepare(part) for part in frames.split(merged)])
        height, width = (side // family.patch for side in family.frame_size(*frames.shape[-2:]))
        steps = -(-len(frames) // merged)
        count = height * width // merge
        if kind == "qwen2_5_vl":
            ids = [VISION_START, *[VIDEO] * (steps * count), VISION_END]
        else:
            ids = [VISION_START, *[VIDEO] * count, VISION_END] * steps
            ids = [VISION_START, *ids, VISION_END] if family.hf_compat else ids
        ids = torch.tensor([ids + question])
        grid = torch.tensor([[steps, height, width]])
        inputs = {
            "input_ids": ids,
            "pixel_values_videos": patches,
            "video_grid_thw": grid,
            "mm_token_type_ids": (ids == VIDEO).int() * 2,
        }
        # Two frames a patch at one frame a second: what the processor derives from the frame rate.
        return inputs | ({"second_per_grid_ts": [2.0]} if kind == "qwen2_5_vl" else {})
    prepared = family.prepare(frames)
    if kind == "internvl":
        count = model.config.image_seq_length
        return {"input_ids": torch.tensor([[IMAGE] * count * len(frames) + question]), "pixel_values": prepared}
    count = 9
    ids = [VIDEO] * (count * len(frames) + 1) + question
    return {"input_ids": torch.tensor([ids]), "pixel_values_videos": prepared[None]}


@pytest.fixture
def plain():
    """Gives the arguments of the plain forward over the whole video."""
    return plain_inputs
