"""Families that are known and refused, each for a reason."""

_WINDOWS = (
    "most of its layers attend within a sliding window, and the tokens of an image see later ones of it; a compressed "
    "state needs causal attention to everything in every layer"
)
_CROSS = "its frames enter through cross-attention layers, not as tokens between the text's"
_ENCODER_DECODER = "it is an encoder-decoder: all frames go through an encoder at once, before the first word"
_AUDIO = "its videos are interleaved with sound, second by second, and a stream carries frames alone"
_AXES = "its positions have several axes, by a rule of its own, and no family here has that rule"

REFUSED: dict[str, str] = {
    "cohere_compass": _AXES,
    "ernie4_5_vl_moe": _AXES,
    "glm4v": _AXES,
    "glm4v_moe": _AXES,
    "glm46v": _AXES,
    "glm_image": _AXES,
    "glm_ocr": _AXES,
    "hunyuan_vl": _AXES,
    "minicpmv4_7": _AXES,
    "paddleocr_vl": _AXES,
    "qwen4_exp": _AXES,
    "gemma3": _WINDOWS,
    "gemma3n": _WINDOWS,
    "gemma4": _WINDOWS,
    "gemma4_unified": _WINDOWS,
    "molmo2": "the tokens of all frames attend to each other in both directions, so that an early frame has to wait "
    "for the last",
    "qwen2_5_omni_thinker": _AUDIO,
    "qwen3_omni_moe_thinker": _AUDIO,
    "mllama": _CROSS,
    "idefics": _CROSS,
    "evolla": _CROSS,
    "florence2": _ENCODER_DECODER,
    "t5gemma2": _ENCODER_DECODER,
    "udop": _ENCODER_DECODER,
    "pix2struct": _ENCODER_DECODER,
    "vision-encoder-decoder": _ENCODER_DECODER,
    "instructblipvideo": "its frames pass a query transformer that sees the question, and no stream knows that before",
}

OWN_CODE: dict[str, str] = {
    "internvl_chat": "its name with -hf behind it (OpenGVLab/InternVL3-1B-hf, say)",
    "llava_qwen": "llava-hf/llava-onevision-qwen2-7b-ov-hf or another of llava-hf",
    "videollama3_qwen2": "lkhl/VideoLLaMA3-2B-Image-HF or lkhl/VideoLLaMA3-7B-Image-HF",
    "eagle_2_5_vl": "another family: transformers has no class of its own for this one",
    "minicpmv": "another family, or a checkpoint of it that was saved for transformers' own class",
    "videochat_flash_qwen": "another family: transformers has no class of its own for this one",
}
"""Model types that only the code in their repository runs, and what to use instead."""

QUANTISERS: dict[str, tuple[str, ...]] = {
    "bitsandbytes": ("bitsandbytes", "accelerate"),
    "bitsandbytes_4bit": ("bitsandbytes", "accelerate"),
    "bitsandbytes_8bit": ("bitsandbytes", "accelerate"),
    "gptq": ("gptqmodel", "optimum"),
    "awq": ("gptqmodel", "accelerate"),
    "compressed-tensors": ("compressed_tensors",),
    "torchao": ("torchao",),
}
"""Ways to quantise weights, and the modules that transformers reads them with."""

NOT_STORED: dict[str, str] = {
    "quanto": "transformers quantises so while it reads whole weights, and reads none that are. Take "
    "quantization_config out of config.json for weights that are whole, or use others",
    "gguf": "a GGUF file holds weights for llama.cpp. Use the folder or hub name of the same model for transformers, "
    "or take quantization_config out of config.json where its weights are whole",
}
"""Ways to quantise that transformers knows, and reads no stored weights of beside a config."""
