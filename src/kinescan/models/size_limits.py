"""Upper limits of models' sizes: far above every published model, and far below what fills a machine's memory."""

from kinescan.errors import ConfigError
from kinescan.fields import check_most

LIMITS = {
    "image_size": 4096,
    "patch_size": 1024,
    "width": 16_384,
    "depth": 256,
    "heads": 1024,
    "mlp_dim": 131_072,
    "embed_dim": 65_536,
    "num_registers": 1024,
    "stem_convolutions": 8,
    "num_classes": 100_000,
    "context_frames": 64,
    "kinematic_width": 4096,
    "state_size": 1024,
    "conv_kernel": 64,
    "expand": 16,
    "num_frames": 4096,
    "tubelet_frames": 256,
    "bottleneck": 16_384,
    "rank": 16_384,
    "kernel_size": 255,
    "num_prompts": 1024,
    "inner_width": 16_384,
    "attention_width": 16_384,
    "attention_heads": 1024,
}
MOST_PATCHES = 128 * 128
"""Of a frame: attention compares all of them with each other."""


def check_sizes(config: object, *names: str) -> None:
    """Passes fields that are at least 1 and at most their limit; None stays what it is.

    Raises:
        ConfigError: one is outside, or makes more patches of a frame than a model can take.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            none = ", or None for no projection" if name == "embed_dim" else ""
            raise ConfigError(f"{name} must be at least 1{none}, got {value}.")
    check_at_most(config, *names)
    if {"image_size", "patch_size"} <= set(names):
        image, patch = (getattr(config, name) for name in ("image_size", "patch_size"))
        if (image // patch) ** 2 > MOST_PATCHES:
            raise ConfigError(
                f"image_size {image} with patch_size {patch} makes {(image // patch) ** 2} patches of a frame; at most "
                f"{MOST_PATCHES} are taken. Use larger patches or a smaller image."
            )


def check_at_most(config: object, *names: str) -> None:
    """Passes fields that are at most their limit.

    Raises:
        ConfigError: one is larger.
    """
    check_most(config, **{name: LIMITS[name] for name in names})
