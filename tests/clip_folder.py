"""A tiny CLIP model in the layout in which CLIP is published for transformers: weights, config, tokenizer."""

import json
from pathlib import Path
from typing import Any

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz.,_-'0123456789"
PAIRS = ("t h", "e </w>", "i n", "a n", "o p", "op e", "ope n</w>", "r u", "ru n</w>")
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def make_clip_folder(folder: Path, *, image_size: int = 32, patch_size: int = 8, seed: int = 0) -> Any:
    """Writes the folder and gives the transformers model; every weight is random and matters.

    Args:
        folder: to write into.
        image_size: side of a frame in pixels.
        patch_size: side of a patch in pixels.
        seed: of the weights.
    """
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    merges = [pair for pair in PAIRS if "</w>" not in pair.split()]
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), *("".join(pair.split()) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    start, end = (vocabulary[name] for name in ("<|startoftext|>", "<|endoftext|>"))
    text = {**TEXT, "vocab_size": len(vocabulary), "max_position_embeddings": 40}
    text |= {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    vision = {**VISION, "image_size": image_size, "patch_size": patch_size}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    torch.manual_seed(seed)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(scale + torch.randn_like(parameter) * 0.2)
        model.logit_scale.fill_(1.5)
    model.save_pretrained(folder)
    pixels = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return model
