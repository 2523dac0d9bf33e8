"""A VLM of random weights for benchmarks of streams, of any size; its frames are given as features."""

from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
import transformers
from transformers import InternVLConfig, InternVLForConditionalGeneration

from kinescan.vlm import Features


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a decoder, with the smallest of vision encoders, which takes no part.

    Attributes:
        layers: of the decoder.
        width: of its tokens; feed-forward networks are `expansion` times as wide.
        heads: of queries.
        key_heads: of keys.
        frame_tokens: of a frame, a square number.
        expansion: see above.
        spread: standard deviation of the weights.
        vocabulary: number of tokens.
    """

    layers: int
    width: int
    heads: int
    key_heads: int
    frame_tokens: int
    expansion: int = 4
    spread: float = 0.02
    vocabulary: int = 128

    def build(self, seed: int) -> InternVLForConditionalGeneration:
        """The model in evaluation mode."""
        torch.manual_seed(seed)
        side = round(self.frame_tokens**0.5)
        config = InternVLConfig(
            text_config={
                "model_type": "qwen2",
                "vocab_size": self.vocabulary,
                "hidden_size": self.width,
                "intermediate_size": self.expansion * self.width,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.key_heads,
                "max_position_embeddings": 2**20,
                "initializer_range": self.spread,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            },
            vision_config={
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "image_size": [8 * side, 8 * side],
                "patch_size": [4, 4],
            },
            image_seq_length=self.frame_tokens,
        )
        return InternVLForConditionalGeneration(config).eval()

    def features(self, generator: torch.Generator, device: torch.device | str = "cpu") -> Features:
        """A frame of random features."""
        side = round(self.frame_tokens**0.5)
        tokens = torch.randn(self.frame_tokens, self.width, generator=generator).to(device)
        return Features(tokens=tokens, grid=(side, side))


def save_folder(sizes: Sizes, seed: int, folder: Path) -> None:
    """The model as a folder that `kinescan ask` takes, with a tokenizer of bytes; no chat template."""
    sizes.build(seed).save_pretrained(folder)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    core = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[])
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens(["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"])
    transformers.PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(folder)
