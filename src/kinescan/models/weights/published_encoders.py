"""What published vision encoders have that their tensors do not tell."""

# (width, depth) -> attention heads of every plain encoder published in this size: CLIP and open_clip (MetaCLIP,
# DFN, CLIPA and TinyCLIP among them), timm's VisionTransformer, DeiT, DINO, DINOv2, DINOv3, MAE, I-JEPA, EVA, SigLIP.
# From 1152 on they are not width / 64.
HEADS = {
    (192, 12): 3,
    (256, 10): 4,
    (256, 14): 4,
    (256, 16): 4,
    (320, 14): 5,
    (384, 12): 6,
    (384, 36): 6,
    (512, 12): 8,
    (512, 20): 8,
    (640, 12): 10,
    (768, 12): 12,
    (832, 21): 13,
    (896, 12): 14,
    (896, 18): 14,
    (1024, 24): 16,
    (1152, 27): 16,
    (1280, 32): 16,
    (1408, 40): 16,
    (1664, 48): 16,
    (1792, 56): 16,
}
NARROW_HEADS = {(768, 8, 2304): 8}
"""(width, depth, MLP) -> heads, where the first two do not tell: timm's first vit_small."""
SIGLIP_HEADS = {(1536, 40): 16}
"""Of encoders that only SigLIP has in this size; others of this width have 12 or 24 heads."""

# model_type in a config.json of transformers -> activation, epsilon and heads where its file leaves them out.
_CLIP = ("quick_gelu", 1e-5, 12)
_SIGLIP = ("gelu_pytorch_tanh", 1e-6, 12)
HUGGING_FACE_DEFAULTS = {
    **dict.fromkeys(("clip", "clip_vision_model", "clipseg", "clipseg_vision_model", "git", "git_vision_model"), _CLIP),
    **dict.fromkeys(("chinese_clip", "chinese_clip_vision_model", "altclip", "altclip_vision_model"), _CLIP),
    **dict.fromkeys(("metaclip_2", "metaclip_2_vision_model", "owlvit", "owlvit_vision_model"), _CLIP),
    **dict.fromkeys(("owlv2", "owlv2_vision_model"), _CLIP),
    **dict.fromkeys(("siglip", "siglip_vision_model"), _SIGLIP),
    **dict.fromkeys(("idefics3_vision", "smolvlm_vision"), (*_SIGLIP[:2], 16)),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), ("gelu", 1e-6, 12)),
    "dinov3_vit": ("gelu", 1e-5, 6),
    **dict.fromkeys(("vit", "vit_mae", "ijepa", "dpt", "flava_image_model"), ("gelu", 1e-12, 12)),
    "vit_msn": ("gelu", 1e-6, 12),
}

HUGGING_FACE_FAMILIES = {
    **{kind: "clip" for kind, usual in HUGGING_FACE_DEFAULTS.items() if usual == _CLIP},
    **{kind: "siglip" for kind, usual in HUGGING_FACE_DEFAULTS.items() if usual[:2] == _SIGLIP[:2]},
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), "dinov2"),
    "dinov3_vit": "dinov3",
    **dict.fromkeys(("vit", "vit_mae", "vit_msn", "ijepa", "dpt", "flava_image_model"), "vit"),
}
"""model_type -> the family that the names of such a vision encoder's tensors tell."""
HUGGING_FACE_NAMES = {"clip": "CLIP", "siglip": "SigLIP", "dinov2": "DINOv2", "dinov3": "DINOv3", "vit": "ViT"}

# Names whose encoders turn queries and keys by tables that are not among their tensors: Perception Encoder, rope ViTs.
ROTARY_NAMES = r"(?i)(^|[^a-z0-9])(rope|pe[-_](core|lang|spatial)|eva02|naflex|naflexvit|mlcd)([^a-z0-9]|$)"
EVA_SIZES = {(1408, 40), (1024, 24)}
"""(width, depth) of the encoders of timm's class Eva that have no rotary positions (patches of 14 pixels)."""
