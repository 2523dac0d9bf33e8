"""The names that published vision transformers give their parts, and what each part is called in ours."""

# Layout -> a name that only it has, then what such a checkpoint is; the order is that of detection.
MARKERS = {
    "kinescan": ("vit.conv1.weight", "a model of kinescan"),
    "open_clip_trunk": ("visual.trunk.patch_embed.proj.weight", "open_clip with a timm encoder"),
    "openai": ("visual.conv1.weight", "OpenAI CLIP or open_clip"),
    "openai_encoder": ("conv1.weight", "the vision encoder of OpenAI CLIP or open_clip alone"),
    "hugging_face": ("vision_model.embeddings.patch_embedding.weight", "Hugging Face CLIPModel or SiglipModel"),
    "hugging_face_encoder": (
        "embeddings.patch_embedding.weight",
        "Hugging Face CLIPVisionModel or SiglipVisionModel",
    ),
    "hugging_face_vit": (
        "embeddings.patch_embeddings.projection.weight",
        "Hugging Face ViTModel, ViTMAEModel or Dinov2Model, with or without registers",
    ),
    "hugging_face_vit_headed": (
        "vit.embeddings.patch_embeddings.projection.weight",
        "Hugging Face ViT or ViTMAE with a head",
    ),
    "hugging_face_dinov2_headed": (
        "dinov2.embeddings.patch_embeddings.projection.weight",
        "Hugging Face Dinov2 with a head",
    ),
    "hugging_face_registers_headed": (
        "dinov2_with_registers.embeddings.patch_embeddings.projection.weight",
        "Hugging Face Dinov2WithRegisters with a head",
    ),
    "hugging_face_dinov3": ("embeddings.patch_embeddings.weight", "Hugging Face DINOv3ViTModel"),
    "timm": ("patch_embed.proj.weight", "timm VisionTransformer, or the published files of DINOv2, DINOv3 and MAE"),
}
PREFIXES = {
    "open_clip_trunk": "visual.trunk.",
    "openai": "visual.",
    "hugging_face": "vision_model.",
    "hugging_face_vit_headed": "vit.",
    "hugging_face_dinov2_headed": "dinov2.",
    "hugging_face_registers_headed": "dinov2_with_registers.",
}
# Layout -> how the name of a tensor in its blocks starts.
EVIDENCE = {
    "open_clip_trunk": r"visual\.trunk\.blocks\.0\.",
    "openai": r"visual\.(transformer\.resblocks\.0\.|layer1\.0\.)",
    "openai_encoder": r"(transformer\.resblocks\.0\.|layer1\.0\.conv1\.)",
    "hugging_face": r"vision_model\.(encoder\.)?layers?\.0\.",
    "hugging_face_encoder": r"(encoder\.)?layers?\.0\.",
    "hugging_face_vit": r"(encoder\.|model\.)?layers?\.0\.",
    "hugging_face_vit_headed": r"vit\.(encoder\.|model\.)?layers?\.0\.",
    "hugging_face_dinov2_headed": r"dinov2\.(encoder\.|model\.)?layers?\.0\.",
    "hugging_face_registers_headed": r"dinov2_with_registers\.(encoder\.|model\.)?layers?\.0\.",
    "hugging_face_dinov3": r"(encoder\.|model\.)?layers?\.0\.",
    "timm": r"blocks\.0\.",
}
PUBLIC_NAMES = {"open_clip_trunk": "open_clip", "openai_encoder": "openai"}
"""Layout -> what reports call it, where that is not "hugging_face" or its own name."""

# Parts that VisionTransformer does not have: a pattern that their names match -> what to call them.
UNSUPPORTED = {
    r"(^|\.)(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|base_layer)\b": "adapters (LoRA) that are not merged",
    r"\.(SCB|absmax|qweight|qzeros|g_idx|weight_scale|weight_scale_inv|quant_map)$": "quantised weights",
    r"(^|\.)(dist_token|distillation_token|head_dist)": "a distillation token",
    r"(^|\.)(q_norm|k_norm|norm_q|norm_k|q_ln|k_ln)\.": "query and key norms",
    r"(^|\.)mlp\.(w12|w1|w2|gate_proj|fc1_g|weights_in)\.": "a gated MLP",
    r"(^|\.)(rel_pos_bias|relative_position_bias_table|relative_position_bias|rel_pos_[hw])": "relative positions",
    r"(^|\.)layer1\.0\.": "a ResNet",
    r"(^|\.)message_(fc|ln|attn)\.": "a video model's messages between frames",
    r"(^|\.)(temporal|time)_\w+": "a video model's parts that look along time",
    r"(^|\.)(proj_l|proj_w|blocks_token_only)\b": "attention heads that are mixed (CaiT)",
    r"(^|\.)lambda_[qk][12]$": "differential attention",
    r"^attn_pool\.(query$|ln_|attn\.[qkv]_proj_weight)": "an attentional pooler (CoCa)",
    r"(^|\.)(class_pos_emb|rope\.freqs|freqs|freqs_cis|rope\.inv_freq)\b": "rotary positions of another kind",
    r"(^|\.)patch_embed\.(backbone|proj\.\d)": "patches made by a convolutional network",
}

# What may be left out of a vision encoder: masks of pretraining, and heads, poolers and decoders that come after it.
LEFT_OUT = (
    r"(embeddings\.)?(mask_token|position_ids)$|(head|head_drop|pre_logits|classifier|fc|pooler\.dense|decoder\w*|neck|"
    r"local_cls_norm)(\.|$)|decoder_pos_embed$"
)
# What stands beside a vision encoder and changes what comes out of it: projections that are not one matrix.
BESIDE_ENCODER = r"(.*\.)?(visual|vision|image)_?(head|proj|projection|projector)?\."

CLIP_MODULES = {
    "embeddings.patch_embedding": "conv1.",
    "pre_layrnorm": "ln_pre.",
    "pre_layernorm": "ln_pre.",
    "post_layernorm": "ln_post.",
    "head.attention": "attn_pool.attn.",
    "head.attention.out_proj": "attn_pool.attn.out_proj.",
    "head.layernorm": "attn_pool.norm.",
    "head.mlp.fc1": "attn_pool.mlp.c_fc.",
    "head.mlp.fc2": "attn_pool.mlp.c_proj.",
}
CLIP_BLOCK = r"(?:encoder\.)?layers?\.(\d+)\.(.+)"
CLIP_BLOCK_MODULES = {
    "layer_norm1": "ln_1.",
    "self_attn.q_proj": "attn.q_proj_",
    "self_attn.k_proj": "attn.k_proj_",
    "self_attn.v_proj": "attn.v_proj_",
    "self_attn.out_proj": "attn.out_proj.",
    "layer_norm2": "ln_2.",
    "mlp.fc1": "mlp.c_fc.",
    "mlp.fc2": "mlp.c_proj.",
}

VIT_MODULES = {
    "embeddings.patch_embeddings.projection": "conv1.",
    "embeddings.patch_embeddings": "conv1.",
    "layernorm": "ln_post.",
    "norm": "ln_post.",
}
# transformers 5 renamed what its earlier versions saved: both are published.
VIT_BLOCK = r"(?:encoder\.|model\.)?layers?\.(\d+)\.(.+)"
VIT_BLOCK_MODULES = {
    "norm1": "ln_1.",
    "layernorm_before": "ln_1.",
    "attention.q_proj": "attn.q_proj_",
    "attention.k_proj": "attn.k_proj_",
    "attention.v_proj": "attn.v_proj_",
    "attention.o_proj": "attn.out_proj.",
    "attention.attention.query": "attn.q_proj_",
    "attention.attention.key": "attn.k_proj_",
    "attention.attention.value": "attn.v_proj_",
    "attention.output.dense": "attn.out_proj.",
    "layer_scale1": "ls_1.",
    "norm2": "ln_2.",
    "layernorm_after": "ln_2.",
    "mlp.fc1": "mlp.c_fc.",
    "mlp.fc2": "mlp.c_proj.",
    "mlp.up_proj": "mlp.c_fc.",
    "mlp.down_proj": "mlp.c_proj.",
    "intermediate.dense": "mlp.c_fc.",
    "output.dense": "mlp.c_proj.",
    "layer_scale2": "ls_2.",
}

TIMM_MODULES = {
    "patch_embed.proj": "conv1.",
    "norm_pre": "ln_pre.",
    "norm": "ln_post.",
    "fc_norm": "ln_post.",
    "attn_pool.q": "attn_pool.attn.q_proj_",
    "attn_pool.kv": "attn_pool.attn.kv_proj_",
    "attn_pool.proj": "attn_pool.attn.out_proj.",
    "attn_pool.norm": "attn_pool.norm.",
    "attn_pool.mlp.fc1": "attn_pool.mlp.c_fc.",
    "attn_pool.mlp.fc2": "attn_pool.mlp.c_proj.",
}
TIMM_BLOCK = r"blocks\.(\d+)\.(.+)"
TIMM_BLOCK_MODULES = {
    "norm1": "ln_1.",
    "attn.qkv": "attn.in_proj_",
    "attn.proj": "attn.out_proj.",
    "ls1": "ls_1.",
    "norm2": "ln_2.",
    "mlp.fc1": "mlp.c_fc.",
    "mlp.fc2": "mlp.c_proj.",
    "ls2": "ls_2.",
}

# Single tensors: their name -> ours, and how many axes of size 1 are in front.
CLIP_TENSORS = {
    "embeddings.class_embedding": ("class_embedding", 0),
    "embeddings.position_embedding.weight": ("positional_embedding", 0),
    "head.probe": ("attn_pool.probe", 2),
}
VIT_TENSORS = {
    "embeddings.cls_token": ("class_embedding", 2),
    "embeddings.position_embeddings": ("positional_embedding", 1),
    "embeddings.register_tokens": ("register_tokens", 1),
}
TIMM_TENSORS = {
    "cls_token": ("class_embedding", 2),
    "pos_embed": ("positional_embedding", 1),
    "reg_token": ("register_tokens", 1),
    "register_tokens": ("register_tokens", 1),
    "storage_tokens": ("register_tokens", 1),
    "attn_pool.latent": ("attn_pool.probe", 2),
}

BLOCK_NAMES = (
    *("ln_1.weight", "ln_1.bias", "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight"),
    *("attn.out_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias"),
    *("mlp.c_proj.weight", "mlp.c_proj.bias"),
)
SCALE_NAMES = ("ls_1.gamma", "ls_2.gamma")
ENCODER_NAMES = ("conv1.weight", "class_embedding", "positional_embedding", "ln_post.weight", "ln_post.bias")
BLOCK_BIASES = ("attn.out_proj.bias", "mlp.c_fc.bias", "mlp.c_proj.bias")
"""Of products: a layer without one is a layer with zeros."""
STEM = "stem."
"""Of the names of convolutions and norms before the patches, which no layout but our own has."""
OPTIONAL_NAMES = ("conv1.bias", "ln_pre.weight", "ln_pre.bias", "proj", "register_tokens")
POOL_NAMES = (
    *("attn_pool.probe", "attn_pool.attn.in_proj_weight", "attn_pool.attn.in_proj_bias"),
    *("attn_pool.attn.out_proj.weight", "attn_pool.attn.out_proj.bias", "attn_pool.norm.weight"),
    *("attn_pool.norm.bias", "attn_pool.mlp.c_fc.weight", "attn_pool.mlp.c_fc.bias"),
    *("attn_pool.mlp.c_proj.weight", "attn_pool.mlp.c_proj.bias"),
)
