"""Every family of vision encoders in transformers: results are equal, or the file is refused; nothing in between."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinescan.errors import CheckpointError
from kinescan.models.vit.vit import VisionTransformer
from kinescan.models.vit.vit_config import ViTConfig
from kinescan.models.weights.checkpoint_file import open_checkpoint
from kinescan.models.weights.vit_weights import load_pretrained, read_vision_encoder

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZES |= {"image_size": 16, "patch_size": 4}
XCLIP = {"num_frames": 2, "mit_hidden_size": 32, "mit_intermediate_size": 48, "mit_num_attention_heads": 4}
# Model, config (None: a model of text and images), options.
EQUAL: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", {}),
    "clip with text": ("CLIPModel", None, {}),
    "metaclip2": ("MetaClip2VisionModel", "MetaClip2VisionConfig", {"hidden_act": "gelu"}),
    "chinese": ("ChineseCLIPVisionModel", "ChineseCLIPVisionConfig", {}),
    "altclip": ("AltCLIPVisionModel", "AltCLIPVisionConfig", {}),
    "clipseg": ("CLIPSegVisionModel", "CLIPSegVisionConfig", {}),
    "git": ("GitVisionModel", "GitVisionConfig", {}),
    "owlvit": ("OwlViTVisionModel", "OwlViTVisionConfig", {}),
    "owlv2": ("Owlv2VisionModel", "Owlv2VisionConfig", {}),
    "owlvit with heads": ("OwlViTForObjectDetection", None, {}),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", {}),
    "siglip without a pool": ("SiglipVisionModel", "SiglipVisionConfig", {"vision_use_head": False}),
    "siglip with text": ("SiglipModel", None, {}),
    "idefics3": ("Idefics3VisionTransformer", "Idefics3VisionConfig", {}),
    "vit": ("ViTModel", "ViTConfig", {"qkv_bias": False}),
    "msn": ("ViTMSNModel", "ViTMSNConfig", {}),
    "mae": ("ViTMAEModel", "ViTMAEConfig", {"mask_ratio": 0.0}),
    "ijepa": ("IJepaModel", "IJepaConfig", {}),
    "dpt": ("DPTModel", "DPTConfig", {}),
    "flava": ("FlavaImageModel", "FlavaImageConfig", {}),
    "dinov2": ("Dinov2Model", "Dinov2Config", {"mlp_ratio": 2}),
    "dinov2 with registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {"mlp_ratio": 2}),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", {"num_register_tokens": 2}),
    "dinov3 with key bias": ("DINOv3ViTModel", "DINOv3ViTConfig", {"key_bias": True}),
    "dinov3 without query bias": ("DINOv3ViTModel", "DINOv3ViTConfig", {"query_bias": False}),
    "dinov3 without value bias": ("DINOv3ViTModel", "DINOv3ViTConfig", {"value_bias": False}),
    "dinov3 without biases": (
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        dict.fromkeys(("query_bias", "value_bias", "proj_bias", "mlp_bias"), False),
    ),
}
REFUSED: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "naflex": ("Siglip2VisionModel", "Siglip2VisionConfig", {"num_patches": 16}),
    "dinov2 giant": ("Dinov2Model", "Dinov2Config", {"use_swiglu_ffn": True}),
    "dinov3 gated": ("DINOv3ViTModel", "DINOv3ViTConfig", {"use_gated_mlp": True}),
    "other activation": ("ViTModel", "ViTConfig", {"hidden_act": "relu"}),
    "xclip": ("XCLIPVisionModel", "XCLIPVisionConfig", XCLIP),
    "deit": ("DeiTModel", "DeiTConfig", {}),
    "beit": ("BeitModel", "BeitConfig", {"use_absolute_position_embeddings": True}),
    "beit relative": ("BeitModel", "BeitConfig", {"use_relative_position_bias": True}),
    "data2vec": ("Data2VecVisionModel", "Data2VecVisionConfig", {"use_absolute_position_embeddings": True}),
    "aimv2": ("Aimv2VisionModel", "Aimv2VisionConfig", {}),
    "mlcd": ("MLCDVisionModel", "MLCDVisionConfig", {}),
    "internvl": ("InternVLVisionModel", "InternVLVisionConfig", {"image_size": [16, 16], "patch_size": [4, 4]}),
    "pixio": ("PixioModel", "PixioConfig", {}),
    "blip": ("BlipVisionModel", "BlipVisionConfig", {}),
    "vilt": ("ViltModel", "ViltConfig", {}),
    "yolos": ("YolosModel", "YolosConfig", {"image_size": [16, 16]}),
    "videomae": ("VideoMAEModel", "VideoMAEConfig", {"num_frames": 2}),
    "vivit": ("VivitModel", "VivitConfig", {"num_frames": 2, "tubelet_size": [2, 4, 4]}),
    "timesformer": ("TimesformerModel", "TimesformerConfig", {"num_frames": 2}),
}


def _build(model: str, config: str | None, options: dict[str, Any]) -> Any:
    if not hasattr(transformers, model):
        pytest.skip(f"this transformers has no {model}")
    cls = getattr(transformers, model)
    if config is None:
        text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
        text |= {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "projection_size": 32}
        built = cls(cls.config_class(text_config=text, vision_config=SIZES, projection_dim=32))
    else:
        built = cls(getattr(transformers, config)(**(SIZES | options)))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return built.eval()


def _vision_part(model: Any, name: str) -> nn.Module:
    for path in ("owlvit.vision_model", "vision_model"):
        part: Any = model
        for step in path.split("."):
            part = getattr(part, step, None)
        if part is not None and (" with " in name):
            return part
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize("name", EQUAL)
def test_a_family_that_loads_gives_the_same(name: str, with_config: bool, tmp_path: Path) -> None:
    theirs = _build(*EQUAL[name])
    theirs.save_pretrained(tmp_path)
    options: dict[str, Any] = {}
    if not with_config:
        (tmp_path / "config.json").unlink()
        options = {"heads": 4, "image_size": 16, "activation": "gelu"} if name == "metaclip2" else {"heads": 4}
        options |= {"image_size": 16}
    pretrained = read_vision_encoder(open_checkpoint(tmp_path), prefix="")
    vit = VisionTransformer(ViTConfig(**(pretrained.sizes | pretrained.conventions | options))).eval()
    assert load_pretrained(vit, pretrained).missing == ()
    pixels = torch.randn(2, 3, 16, 16)
    extra = {"noise": torch.arange(16.0).expand(2, 16)} if name == "mae" else {}
    with torch.no_grad():
        expected: Tensor = _vision_part(theirs, name)(pixels, **extra).last_hidden_state
        tokens = vit.forward_features(pixels)
        # Some give the tokens before their last norm, some after it. An epsilon of 1e-6 for 1e-12 is all that differs
        # where no config tells one family from another.
        found = min((given - expected).abs().max().item() for given in (tokens, vit.ln_post(tokens)))
    assert found < (5e-5 if name == "msn" else 1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "with_config"),
    # Without its config nothing tells another activation.
    [(name, told) for name in REFUSED for told in (True, False) if told or name != "other activation"],
)
def test_every_other_family_is_refused(name: str, with_config: bool, tmp_path: Path) -> None:
    _build(*REFUSED[name]).save_pretrained(tmp_path)
    if not with_config:
        (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError):
        read_vision_encoder(open_checkpoint(tmp_path))
