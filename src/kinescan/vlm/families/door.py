"""The only place where transformers is imported, and where its private parts are touched."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kinescan.errors import CheckpointError, ConfigError, DependencyError

ATTENTION_NAME = "kinescan_stream"


@contextmanager
def registered_attention(decoder: nn.Module, attention: Callable[..., Any], mask: Callable[..., Any]) -> Iterator[None]:
    """Within the block, `decoder` runs `attention` and builds its mask by `mask`; undone however the block ends.

    Both registries need an entry: without one for masks, transformers silently passes no mask.

    Raises:
        DependencyError: transformers is not installed.
        ConfigError: the decoder is inside such a block already.
    """
    transformers = import_transformers()
    masks = transformers.AttentionMaskInterface._global_mapping
    functions = transformers.AttentionInterface._global_mapping
    config: Any = decoder.config
    before = config._attn_implementation
    # one name for each model: streams of different models may run in different threads
    name = f"{ATTENTION_NAME}_{id(decoder)}"
    if before == name:
        raise ConfigError("this model is inside another stream's forward already. Use one thread for each model.")
    transformers.AttentionInterface.register(name, attention)
    transformers.AttentionMaskInterface.register(name, mask)
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
        functions.pop(name, None)
        masks.pop(name, None)


@contextmanager
def pinned_rope(decoder: nn.Module, num_positions: int) -> Iterator[None]:
    """Within the block, rotary frequencies are those of a sequence of `num_positions`, however long it is so far.

    Frequencies that follow the current length (dynamic NTK) would rotate cached keys and new queries differently.
    Decoders with fixed frequencies are left alone.

    Args:
        decoder: the language model of a transformers VLM.
        num_positions: the declared horizon, in positions.
    """
    rotary: Any = decoder.rotary_emb
    kind = rotary.rope_type
    if not follows_length(decoder):
        yield
        return
    frequencies, scaling = rotary.inv_freq, rotary.attention_scaling
    longest = rotary.original_max_seq_len
    if num_positions > longest:
        import_transformers()
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        pinned, rotary.attention_scaling = ROPE_INIT_FUNCTIONS[kind](
            rotary.config, frequencies.device, seq_len=num_positions
        )
    else:
        pinned = rotary.original_inv_freq.to(frequencies.device)
    rotary.inv_freq, rotary.rope_type = pinned, "default"
    try:
        yield
    finally:
        rotary.inv_freq, rotary.rope_type, rotary.attention_scaling = frequencies, kind, scaling


HOOKED = "_output_capturing_hooks_installed"


def remember_hooks(model: nn.Module) -> Callable[[], None]:
    """A function that takes off the hooks which transformers leaves on a model at its first forward from now on.

    They collect hidden states for towers whose features come from an inner layer, and would stay for good.
    """
    before = [(module, set(module._forward_hooks), HOOKED in vars(module)) for module in model.modules()]

    def restore() -> None:
        for module, hooks, marked in before:
            for key, hook in list(module._forward_hooks.items()):
                if key not in hooks and getattr(hook, "__name__", "") == "output_capturing_hook":
                    del module._forward_hooks[key]
            if not marked:
                vars(module).pop(HOOKED, None)

    return restore


def follows_length(decoder: nn.Module) -> bool:
    """Whether the decoder's rotary frequencies change with the length of the sequence."""
    return "dynamic" in decoder.rotary_emb.rope_type  # type: ignore[union-attr, operator]


def check_layers(model_type: str, config: Any, decoder: nn.Module) -> None:
    """Raises ConfigError where a decoder layer is not plain full attention, or where its positions cannot be pinned."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if getattr(config, "use_sliding_window", False) and getattr(config, "sliding_window", None):
        kinds.add("sliding_attention")
    if strange := sorted(kinds - {"full_attention"}):
        raise ConfigError(
            f"{model_type}: the decoder has layers of kind {', '.join(strange)}; a compressed state needs "
            "full_attention in every layer. Use another checkpoint, or switch them off if it was trained so."
        )
    if decoder.rotary_emb.rope_type == "longrope":  # type: ignore[union-attr]
        raise ConfigError(f"{model_type}: rotary scaling 'longrope' switches with the length and is not supported.")


def load_pretrained(name: str, *, revision: str | None, dtype: str | torch.dtype) -> tuple[Any, Any]:
    """Model and tokenizer from a folder or a hub name; no image or video processor, so that torchvision is not needed.

    Raises:
        CheckpointError: there is none of that name, or it is no image-text-to-text model.
    """
    transformers = import_transformers()
    try:
        model = transformers.AutoModelForImageTextToText.from_pretrained(name, revision=revision, dtype=dtype)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name} cannot be loaded as a video VLM: {str(error).strip().splitlines()[0]} "
            "Give a folder with config.json, weights and tokenizer, or a name on the Hugging Face hub."
        ) from None
    return model.eval(), tokenizer


def find_file(name: str, file_name: str) -> str | None:
    """Path of a file in a model's folder or hub repository; None where it has none."""
    import_transformers()
    from transformers.utils import cached_file

    found: str | None = cached_file(
        name,
        file_name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found


def import_transformers() -> Any:
    """The transformers package.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise DependencyError(
            f"vlm needs transformers ({error}). Install it with: pip install 'kinescan[vlm]'"
        ) from None
    return transformers


def position_ids(positions: Tensor, device: torch.device) -> Tensor:
    """[n] or [3, n] positions as a decoder wants them: [1, n] or [3, 1, n]."""
    positions = positions.to(device)
    return positions[None] if positions.ndim == 1 else positions[:, None]
