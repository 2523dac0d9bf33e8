"""Tiny random models as folders in the layout of published checkpoints, processor files included."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import tokenizers
import transformers

_spec = importlib.util.spec_from_file_location("tiny_vlms", Path(__file__).with_name("conftest.py"))
tiny: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

CHAT_START, CHAT_END = 256, 257
_CONTENT = (
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'video' %}VIDEO{% elif c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
)
_CHAT = (
    "{% for m in messages %}FIRST<|im_start|>{{ m['role'] }}\n" + _CONTENT + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_HELPFUL = (
    "{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
)
_LLAVA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'][0]['text'] }} {% else %}"
    "{{ m['role'].upper() + ': ' }}{% for c in m['content'] if c['type'] == 'video' %}{{ '<video>\n' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] + ' ' }}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_ONEVISION = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
    "{% for c in m['content'] if c['type'] == 'video' %}{{ '<video>' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ '\n' + c['text'] }}{% endfor %}{{ '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_PERCEPTION = (
    "<|begin_of_text|>{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    + _CONTENT
    + "{{ '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_SMOL = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
    "{% if m['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    + _CONTENT
    + "<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def _template(text: str, video: str, image: str, first: str = "") -> str:
    return text.replace("VIDEO", video).replace("IMAGE", image).replace("FIRST", first)


_QWEN = ("<|vision_start|><|video_pad|><|vision_end|>", "<|vision_start|><|image_pad|><|vision_end|>")
TEMPLATES = {
    "qwen2_vl": _template(_CHAT, *_QWEN, _HELPFUL),
    "qwen2_5_vl": _template(_CHAT, *_QWEN, _HELPFUL),
    "qwen3_vl": _template(_CHAT, *_QWEN),
    "qwen3_vl_moe": _template(_CHAT, *_QWEN),
    "qwen3_5": _template(_CHAT, *_QWEN),
    "qwen3_5_moe": _template(_CHAT, *_QWEN),
    "internvl": _template(_CHAT, "{{ '<video>\n' }}", "{{ '<IMG_CONTEXT>\n' }}"),
    "llava_onevision": _ONEVISION,
    "llava_next_video": _LLAVA,
    "smolvlm": _template(_SMOL, "<video>", "<image>"),
    "perception_lm": _template(_PERCEPTION, "<|video|>", "<|image|>"),
    "video_llama_3": _template(_CHAT, "{{ '<|video_pad|>\n' }}", "{{ '<|image_pad|>\n' }}", _HELPFUL),
}
"""As published, but for tools and the like."""

WORDS = {
    "internvl": ("<video>", "<IMG_CONTEXT>"),
    "llava_onevision": ("<video>", "<image>"),
    "llava_next_video": ("<video>", "<image>"),
    "smolvlm": ("<video>", "<image>"),
    "perception_lm": ("<|video|>", "<|image|>"),
}
"""Names of the tokens that stand for a video and for an image; Qwen's by default."""

FURTHER_WORDS = {
    "smolvlm": ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
    "perception_lm": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}

_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_FREE = {
    "patch_size": 4,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "size": {"shortest_edge": 64, "longest_edge": 4096},
}
_QWEN3 = {**_FREE, **_HALF, "size": {"shortest_edge": 128, "longest_edge": 65536}}
PROCESSORS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLVideoProcessor", _FREE, {}),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor", _FREE, {}),
    "qwen3_vl": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor", _QWEN3, {}),
    "qwen3_vl_moe": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor", _QWEN3, {}),
    "qwen3_5": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor", _QWEN3, {}),
    "qwen3_5_moe": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor", _QWEN3, {}),
    "internvl": (
        "InternVLProcessor",
        "InternVLVideoProcessor",
        {"size": {"height": 16, "width": 16}},
        {"image_seq_length": 4},
    ),
    "llava_onevision": (
        "LlavaOnevisionProcessor",
        "LlavaOnevisionVideoProcessor",
        {**_HALF, "size": {"height": 24, "width": 24}},
        {"num_image_tokens": 36, "vision_feature_select_strategy": "full"},
    ),
    "llava_next_video": (
        "LlavaNextVideoProcessor",
        "LlavaNextVideoVideoProcessor",
        {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
        {"patch_size": 4, "vision_feature_select_strategy": "default"},
    ),
    "smolvlm": (
        "SmolVLMProcessor",
        "SmolVLMVideoProcessor",
        {**_HALF, "size": {"longest_edge": 16}, "max_image_size": {"longest_edge": 16}, "num_frames": 64, "fps": 1},
        {"image_seq_len": 4},
    ),
    "perception_lm": (
        "PerceptionLMProcessor",
        "PerceptionLMVideoProcessor",
        {**_HALF, "size": {"height": 24, "width": 24}},
        {"patch_size": 4, "pooling_ratio": 2},
    ),
    "video_llama_3": (
        "VideoLlama3Processor",
        "VideoLlama3VideoProcessor",
        {"patch_size": 4, "size": {"shortest_edge": 64, "longest_edge": 4096}, "use_token_compression": False},
        {},
    ),
}
"""Class of the processor and of its video processor, and the settings of both that are not their own."""

_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
_ASKED = "QUESTION<|im_end|>\n<|im_start|>assistant\n"
_QWEN2_PROMPT = f"{_SYSTEM}<|im_start|>user\n<|vision_start|>FRAMES<|vision_end|>{_ASKED}"
_QWEN3_PROMPT = f"<|im_start|>user\n<|vision_start|>FRAMES<|vision_end|>{_ASKED}"
_QWEN3_PATCH = "<{mean:.1f} seconds><|vision_start|>TOKENS<|vision_end|>"
PROMPTS: dict[str, tuple[str, str, str]] = {
    "qwen2_vl": (_QWEN2_PROMPT, "TOKENS", ""),
    "qwen2_5_vl": (_QWEN2_PROMPT, "TOKENS", ""),
    "qwen3_vl": (_QWEN3_PROMPT, _QWEN3_PATCH, ""),
    "qwen3_vl_moe": (_QWEN3_PROMPT, _QWEN3_PATCH, ""),
    "qwen3_5": (_QWEN3_PROMPT, _QWEN3_PATCH, ""),
    "qwen3_5_moe": (_QWEN3_PROMPT, _QWEN3_PATCH, ""),
    "internvl": (f"<|im_start|>user\nFRAMES\n{_ASKED}", "Frame{number}: <img>TOKENS</img>", "\n"),
    "llava_onevision": ("<|im_start|>user FRAMES<video>\nQUESTION<|im_end|><|im_start|>assistant\n", "TOKENS", ""),
    "llava_next_video": ("USER: FRAMES\nQUESTION ASSISTANT:", "TOKENS", ""),
    # whose processor says here how many frames there are, and how long the video is
    "smolvlm": (
        "<|im_start|>User: You are provided the following series of frames from a video.\nFRAMES\n\n"
        "QUESTION<end_of_utterance>\nAssistant:",
        "\nFrame from 00:{seconds:02d}:<fake_token_around_image><global-img>TOKENS<fake_token_around_image>",
        "",
    ),
    "perception_lm": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nFRAMESQUESTION<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "TOKENS",
        "",
    ),
    "video_llama_3": (f"{_SYSTEM}<|im_start|>user\nFRAMES\n{_ASKED}", "Time {seconds:.1f}s:TOKENS", ","),
}
"""What the processor of each family makes of a video and a question: the whole, one patch of frames, between two.

Written down from the processors of transformers 5.23 (which need torchvision), but for what is said beside them.
"""


def prompt(family: str, question: str, num_patches: int, tokens: str) -> str:
    """The whole text of a video at a frame a second.

    Args:
        family: whose.
        question: behind the video.
        num_patches: temporal patches of the video.
        tokens: what stands for the features of one.
    """
    whole, patch, between = PROMPTS[family]
    merged = 2 if family.startswith("qwen") else 1
    patches = []
    for index in range(num_patches):
        first = index * merged
        patches.append(
            patch.format(number=first + 1, seconds=first, mean=first + (merged - 1) / 2).replace("TOKENS", tokens)
        )
    return whole.replace("FRAMES", between.join(patches)).replace("QUESTION", question)


def tokenizer(family: str) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of bytes, with the words of a family's prompts, and its chat template."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: index for index, letter in enumerate(alphabet)}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    further = FURTHER_WORDS.get(family, ())
    words = ["<|im_start|>", "<|im_end|>", "<img>", "</img>", *further]
    words += [f"<unused{n}>" for n in range(40 - len(further))]
    video, image = WORDS.get(family, ("<|video_pad|>", "<|image_pad|>"))
    words += ["<|vision_start|>", "<|vision_end|>", video, image]
    core.add_special_tokens(words)
    assert core.token_to_id(image) == tiny.IMAGE
    named = {"image_token": image, "video_token": video}
    if family == "internvl":
        named = {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": image,
            "video_token": video,
        }
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, chat_template=TEMPLATES[family], eos_token="<|im_end|>", extra_special_tokens=named
    )


def save(family: str, folder: Path) -> Path:
    """The folder, written."""
    tiny.build(family).save_pretrained(folder)
    tokenizer(family).save_pretrained(folder)
    kind, video_kind, video, further = PROCESSORS[family]
    # as `save_pretrained` of processors writes them since transformers 5
    stored = {"processor_class": kind, **further, "video_processor": {"video_processor_type": video_kind, **video}}
    (folder / "processor_config.json").write_text(json.dumps(stored))
    return folder


def change(path: Path, **values: Any) -> None:
    """Other values in a file of JSON."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
