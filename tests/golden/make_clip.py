"""Makes clip.safetensors: a tiny CLIP vision encoder with random weights, run by transformers in float64.

Source: transformers 5.23.0, CLIPVisionModelWithProjection. Run: python tests/golden/make_clip.py
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

SIZES = {"hidden_size": 24, "intermediate_size": 48, "projection_dim": 12, "num_hidden_layers": 2}
CONFIG = CLIPVisionConfig(**SIZES, num_attention_heads=3, image_size=12, patch_size=4, hidden_act="quick_gelu")


def main() -> None:
    torch.manual_seed(0)
    model = CLIPVisionModelWithProjection(CONFIG).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Every weight matters in the outputs, none keeps its start value.
            scale = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(scale + torch.randn_like(parameter) * (0.2 if parameter.ndim == 1 else 0.15))
        pixels = torch.randn(2, 3, 12, 12)
        outputs = model.double()(pixels.double(), output_hidden_states=True)
    tensors = {f"weights/{name}": tensor.float() for name, tensor in model.state_dict().items()}
    tensors |= {f"hidden_states/{i}_f64": hidden for i, hidden in enumerate(outputs.hidden_states)}
    tensors |= {"pixels": pixels, "image_embeds_f64": outputs.image_embeds}
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, Path(__file__).with_name("clip.safetensors")
    )


if __name__ == "__main__":
    main()
