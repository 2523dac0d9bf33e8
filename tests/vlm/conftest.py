"""Small random models of the families, and the plain transformers forward to compare with."""

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

SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 4,
    "vision_use_head": False,
}
ROPE = {"rope_type": "default", "rope_theta": 1e4}


def qwen2_vl():
    config = transformers.Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": {**ROPE, "mrope_section": [2, 3, 3]}},
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "initializer_range": 0.1,
        },
        **QWEN_IDS,
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


def qwen3_vl_moe():
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    config = transformers.Qwen3VLMoeConfig(
        text_config={**TEXT, **experts, "rope_parameters": {**ROPE, "mrope_section": [4, 2, 2]}},
        vision_config={**QWEN_VISION, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        **QWEN_IDS,
    )
    return transformers.Qwen3VLMoeForConditionalGeneration(config)


def qwen3_5(layer_types=("full_attention",) * 3):
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8}
    rope = {**ROPE, "mrope_section": [4, 2, 2], "partial_rotary_factor": 1.0}
    config = transformers.Qwen3_5Config(
        text_config={
            **TEXT,
            **linear,
            "linear_value_head_dim": 8,
            "layer_types": [*layer_types],
            "rope_parameters": rope,
        },
        vision_config={**QWEN_VISION, "num_position_embeddings": 64},
        **QWEN_IDS,
    )
    return transformers.Qwen3_5ForConditionalGeneration(config)


def qwen3_5_moe():
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8}
    config = transformers.Qwen3_5MoeConfig(
        text_config={
            **TEXT,
            **experts,
            **linear,
            "shared_expert_intermediate_size": 32,
            "linear_value_head_dim": 8,
            "layer_types": ["full_attention"] * 3,
            "rope_parameters": {**ROPE, "mrope_section": [4, 2, 2], "partial_rotary_factor": 1.0},
        },
        vision_config={**QWEN_VISION, "num_position_embeddings": 64},
        **QWEN_IDS,
    )
    return transformers.Qwen3_5MoeForConditionalGeneration(config)


def qwen3_5_linear():
    return qwen3_5(("linear_attention", "linear_attention", "full_attention"))


def smolvlm():
    config = transformers.SmolVLMConfig(
        text_config={"model_type": "llama", **TEXT, "rope_parameters": ROPE},
        vision_config={**SIGLIP, "model_type": "smolvlm_vision", "image_size": 16, "initializer_range": 0.1},
        image_token_id=IMAGE,
        scale_factor=2,
    )
    return transformers.SmolVLMForConditionalGeneration(config)


def llava_next_video():
    config = transformers.LlavaNextVideoConfig(
        text_config={"model_type": "llama", **TEXT, "rope_parameters": ROPE},
        vision_config={**SIGLIP, "model_type": "clip_vision_model", "num_hidden_layers": 3},
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )
    return transformers.LlavaNextVideoForConditionalGeneration(config)


def video_llama_3():
    config = transformers.VideoLlama3Config(
        text_config={"model_type": "qwen2", **TEXT, "rope_parameters": ROPE},
        vision_config={**SIGLIP, "model_type": "video_llama_3_vision", "initializer_range": 0.1},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return transformers.VideoLlama3ForConditionalGeneration(config)


def perception_lm():
    # a tower of transformers stands for timm's, which needs torchvision
    config = transformers.PerceptionLMConfig(
        text_config={"model_type": "llama", **TEXT, "rope_parameters": ROPE},
        vision_config={**SIGLIP, "model_args": {"embed_dim": 32}},
        vision_use_cls_token=False,
        projector_pooling_ratio=2,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return transformers.PerceptionLMForConditionalGeneration(config)


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
    "qwen2_vl": qwen2_vl,
    "qwen3_vl_moe": qwen3_vl_moe,
    "qwen3_5": qwen3_5,
    "qwen3_5_moe": qwen3_5_moe,
    "qwen3_5_linear": qwen3_5_linear,
    "smolvlm": smolvlm,
    "llava_next_video": llava_next_video,
    "video_llama_3": video_llama_3,
    "perception_lm": perception_lm,
}
FAMILY_NAMES = ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl"]
"""Those that every test of a stream runs with."""
FURTHER_NAMES = [
    *("qwen2_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "smolvlm", "llava_next_video", "video_llama_3"),
    "perception_lm",
]
"""Those that are compared with transformers alone."""


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


@pytest.fixture(params=FURTHER_NAMES)
def further_name(request):
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
        if kind in ("qwen2_vl", "qwen2_5_vl"):
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
    if kind == "smolvlm":
        count = model.model.image_seq_len
        return {"input_ids": torch.tensor([[IMAGE] * count * len(frames) + question]), "pixel_values": prepared[None]}
    if kind in ("llava_next_video", "perception_lm"):
        count = 9
        ids = torch.tensor([[VIDEO] * count * len(frames) + question])
        return {"input_ids": ids, "pixel_values_videos": prepared[None]}
    if kind == "video_llama_3":
        prepared = torch.cat([family.prepare(frame[None]) for frame in frames])
        height, width = (side // family.patch for side in family.frame_size(*frames.shape[-2:]))
        ids = torch.tensor([[VIDEO] * (height * width // 4) * len(frames) + question])
        grid = torch.tensor([[len(frames), height, width]])
        sizes = {"video_grid_thw": grid, "video_merge_sizes": torch.tensor([2])}
        return {"input_ids": ids, "pixel_values_videos": prepared, **sizes}
    count = 9
    ids = [VIDEO] * (count * len(frames) + 1) + question
    return {"input_ids": torch.tensor([ids]), "pixel_values_videos": prepared[None]}


@pytest.fixture
def plain():
    """Gives the arguments of the plain forward over the whole video."""
    return plain_inputs
