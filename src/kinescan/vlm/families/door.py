"""The only module of the VLMs where transformers is imported; its private parts: `runtime.transformers_internals`."""

import copy
import importlib.util
import logging
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from kinescan.errors import CheckpointError, ConfigError, DependencyError
from kinescan.runtime.optional_package import optional_package
from kinescan.runtime.torch_internals import held_tensors
from kinescan.runtime.transformers_internals import (
    attention_of,
    forget_attention,
    forget_hooks,
    knows_quantiser,
    knows_vlm,
    rope_frequencies,
    set_attention,
    without_report,
)
from kinescan.vlm.families.adapter import check_adapter, require_peft, why_not_in_layers, with_adapter
from kinescan.vlm.families.folder import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    CONFIG,
    PATTERNS,
    PICKLED_ADAPTER,
    PICKLED_PATTERNS,
    Stored,
    base_of_adapter,
    errors_named,
    find_folder,
    first_sentence,
    look_through,
    read_config,
    refusal,
)
from kinescan.vlm.families.refused import NOT_STORED, QUANTISERS

logger = logging.getLogger(__name__)

_REPORTED = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""Tensors that are missing or of another shape are in a report, by which `_check_report` refuses them."""

ATTENTION_NAME = "kinescan_stream"
COMPILED_NAME = "kinescan_compiled_stream"
"""Compiled layers are compiled for this name: all streams have the same."""


@contextmanager
def registered_attention(decoder: nn.Module, attention: Callable[..., Any], mask: Callable[..., Any]) -> Iterator[None]:
    """Within the block, `decoder` runs `attention` and builds its mask by `mask`; undone however the block ends.

    Both registries need an entry: without one for masks, transformers silently passes no mask.

    Raises:
        DependencyError: transformers is not installed.
        ConfigError: the decoder is inside such a block already.
    """
    transformers = import_transformers()
    config: Any = decoder.config
    before = attention_of(config)
    # one name for each stream: several may run in different threads
    name = f"{ATTENTION_NAME}_{id(decoder)}"
    if before == name:
        raise ConfigError("this stream is inside a forward already. Use one thread for each stream.")
    transformers.AttentionInterface.register(name, attention)
    transformers.AttentionMaskInterface.register(name, mask)
    set_attention(config, name)
    try:
        yield
    finally:
        set_attention(config, before)
        forget_attention(name)


def compile_layers(
    model_type: str, decoder: nn.Module, attention: Callable[..., Any], mask: Callable[..., Any]
) -> None:
    """From now on torch.compile runs the decoder's layers, but for their attention, which is `attention`.

    Args:
        model_type: of the whole model.
        decoder: a stream's own; the model is left alone.
        attention: the same function for all streams; torch.compile must not follow it.
        mask: which belongs to it.

    Raises:
        ConfigError: the decoder has no layers of the usual kind.
    """
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise ConfigError(f"{model_type}: the decoder has no list of layers to compile. Leave compiled out.")
    transformers = import_transformers()
    # stays registered: nothing else asks for this name
    transformers.AttentionInterface.register(COMPILED_NAME, attention)
    transformers.AttentionMaskInterface.register(COMPILED_NAME, mask)
    for layer in layers:
        layer.forward = torch.compile(layer.forward)
    set_attention(decoder.config, COMPILED_NAME)


def is_compiled(decoder: nn.Module) -> bool:
    """Whether `compile_layers` has been here."""
    return attention_of(decoder.config) == COMPILED_NAME


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
        pinned, rotary.attention_scaling = rope_frequencies(
            kind, rotary.config, frequencies.device, num_positions=num_positions
        )
    else:
        pinned = rotary.original_inv_freq.to(frequencies.device)
    rotary.inv_freq, rotary.rope_type = pinned, "default"
    try:
        yield
    finally:
        rotary.inv_freq, rotary.rope_type, rotary.attention_scaling = frequencies, kind, scaling


def share_weights(model: nn.Module) -> nn.Module:
    """A second tree of modules over the same weights.

    Attention and rotary frequencies can be exchanged in it, and transformers can leave its hooks and caches there,
    without a trace in `model`: other streams and plain forwards of `model`, in any thread, do not meet it. Parameters
    and buffers are the very tensors of `model`.

    Raises:
        ConfigError: something in the model cannot be copied, or its quantised weights cannot be unpacked.
    """
    _unpack(model)
    shared: dict[int, Any] = {}
    for module in model.modules():
        shared |= {id(value): value for value in (*held_tensors(module), *_quantised_tensors(module))}
    try:
        twin = copy.deepcopy(model, shared)
    # Wrappers may hold locks, handles, anything.
    except Exception as error:
        raise ConfigError(
            f"the modules of this {type(model).__name__} cannot be copied ({first_sentence(error)}) Give the "
            "transformers model itself, without wrappers."
        ) from None
    # what another stream's or a plain forward has left would be put there a second time
    for module in twin.modules():
        forget_hooks(module)
    return twin


def _unpack(model: nn.Module) -> None:
    """Unpacks quantised weights that wait for the model's own first forward, as compressed-tensors leaves them.

    A stream calls the parts of a model, never the whole, to which a quantiser's hook belongs.
    """
    if not getattr(model, "is_quantized", False):
        return
    try:
        with torch.no_grad(), redirect_stdout(sys.stderr):
            model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device))
    # A quantiser's kernels may fail in any way on a device that they were not made for.
    except Exception as error:
        raise ConfigError(
            f"the quantised weights of this {type(model).__name__} do not run here: {first_sentence(error)} Use "
            "another device, or weights that are not quantised."
        ) from error
    for module in model.modules():
        # bitsandbytes moves the scales from the weight to the module at the module's first forward, and vision layers
        # have had none: of a model and its twins, which share the weight, the first one would take them from all others
        init_state: Any = getattr(module, "init_8bit_state", None)
        if init_state is not None and getattr(module.weight, "CB", None) is not None:
            init_state()


def _quantised_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Tensors of a module's attributes of other classes, where bitsandbytes keeps weights and their scales."""
    for value in vars(module).values():
        if not isinstance(value, nn.Module | Tensor) and hasattr(value, "__dict__"):
            yield from (held for held in vars(value).values() if isinstance(held, Tensor))


def follows_length(decoder: nn.Module) -> bool:
    """Whether the decoder's rotary frequencies change with the length of the sequence."""
    return "dynamic" in decoder.rotary_emb.rope_type  # type: ignore[union-attr, operator]


def check_layers(model_type: str, config: Any, decoder: nn.Module) -> None:
    """Raises ConfigError where a decoder layer is not plain full attention, or where its positions cannot be pinned."""
    check_config(model_type, config)
    if getattr(getattr(decoder, "rotary_emb", None), "rope_type", None) is None:
        raise ConfigError(
            f"{model_type}: the decoder has no rotary positions, which a stream needs. Use another model."
        )
    if decoder.rotary_emb.rope_type == "longrope":  # type: ignore[union-attr]
        raise ConfigError(f"{model_type}: rotary scaling 'longrope' switches with the length and is not supported.")


def check_config(model_type: str, config: Any) -> None:
    """Raises ConfigError where a decoder's config says that a layer is not plain full attention.

    Args:
        model_type: of the whole model.
        config: of its decoder.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(f"{model_type} is an encoder-decoder; a stream needs a decoder alone. Use another model.")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if getattr(config, "use_sliding_window", False) and getattr(config, "sliding_window", None):
        kinds.add("sliding_attention")
    if strange := sorted(kinds - {"full_attention"}):
        raise ConfigError(
            f"{model_type}: the decoder has layers of kind {', '.join(strange)}; a compressed state needs "
            "full_attention in every layer. Use another checkpoint, or switch them off if it was trained so."
        )


def load_pretrained(
    name: str | Path,
    *,
    families: Collection[str],
    revision: str | None,
    dtype: str | torch.dtype,
    prepare: Callable[[Path, str], None],
    device: torch.device,
    merge_adapter: bool = False,
) -> tuple[Any, Any, Path]:
    """Model, tokenizer and folder of a name; no image or video processor, so that torchvision is not needed.

    What can be found out cheaply is found out first: the family from config.json, the tokenizer, whether the weights
    are whole. No code that the folder brings is run, and pickled weights are read as tensors only.

    Args:
        name: a folder, or a name on the hub.
        families: model types that are supported.
        revision: branch, tag or commit on the hub.
        dtype: of the weights, or "auto".
        prepare: called with the folder and the model type before the weights are read; raises what it finds.
        device: where quantised weights are put; others are read into the CPU's memory.
        merge_adapter: where the name is an adapter of PEFT, its weights become part of the model's.

    Raises:
        CheckpointError: no such model is found, or it is damaged, incomplete, or brings its own code.
        ConfigError: the family is not supported.
        DependencyError: a package that the weights need is not installed.
    """
    transformers = import_transformers()
    folder = find_folder(name)
    is_on_hub = folder is None
    if folder is None:
        folder = _fetch(str(name), revision, (CONFIG, ADAPTER))
    if (base := base_of_adapter(folder)) is not None:
        require_peft(folder)
        if is_on_hub:
            folder = _fetch(str(name), revision, PATTERNS)
            if not (folder / ADAPTER_WEIGHTS).exists():
                folder = _fetch(str(name), revision, (PICKLED_ADAPTER,))
        check_adapter(folder)
        try:
            model, tokenizer, base_folder = load_pretrained(
                base, families=families, revision=None, dtype=dtype, prepare=prepare, device=device
            )
        except CheckpointError as error:
            raise CheckpointError(f"{folder} is an adapter of {base}: {error}") from None
        return with_adapter(model, folder, merge=merge_adapter), tokenizer, base_folder
    stored_config = read_config(folder, families, is_vlm)
    _check_stored_config(folder, stored_config)
    if (quantised := _quantisation(stored_config)) is not None:
        _check_quantiser(folder, quantised)
    if is_on_hub:
        folder = _fetch(str(name), revision, PATTERNS)
        if not any(folder.glob("*.safetensors")):
            folder = _fetch(str(name), revision, PICKLED_PATTERNS)
        stored_config = read_config(folder, families, is_vlm)
    stored = look_through(folder, stored_config)
    prepare(folder, stored_config["model_type"])
    with errors_named(folder):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    check_tokenizer(folder, tokenizer, config)
    if quantised is None:
        _compare_sizes(folder, config, stored)
    with errors_named(folder, quantised=quantised is not None), without_report():
        model, report = transformers.AutoModelForImageTextToText.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            local_files_only=True,
            weights_only=True,
            **_REPORTED,
            **({} if quantised is None else {"device_map": {"": device}}),
        )
    _check_report(folder, report)
    return model.eval(), tokenizer, folder


def _check_stored_config(folder: Path, stored: Mapping[str, Any]) -> None:
    """What a config says against its model, before the weights are fetched or read."""
    with errors_named(folder):
        config = import_transformers().AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        text = config.get_text_config(decoder=True)
    if config.is_encoder_decoder:
        text = config
    check_config(f"{folder} ({stored['model_type']})", text)


def unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model inside of a wrapper of PEFT, with the adapter's layers in it; others as they are.

    Raises:
        ConfigError: the adapter works in the wrapper's forward, not in layers.
    """
    inner = getattr(model, "get_base_model", None)
    if inner is None or not hasattr(model, "peft_config"):
        return model
    configs: Any = model.peft_config
    for config in configs.values():
        if (reason := why_not_in_layers(config)) is not None:
            raise ConfigError(f"the model's adapter cannot be used: {reason}.")
    found: nn.Module = inner()
    return found


def check_tokenizer(folder: Path, tokenizer: Any, config: Any) -> None:
    """Raises CheckpointError where a tokenizer gives no tokens, or some that the model does not know."""
    with errors_named(folder):
        ids = list(tokenizer.encode("What happens after that?", add_special_tokens=False))
        vocab_size = int(config.get_text_config(decoder=True).vocab_size)
    if not ids or max(ids) >= vocab_size or min(ids) < 0:
        raise refusal(
            folder,
            f"its tokenizer gives {ids[:5] or 'no tokens'} for a question, and the model has {vocab_size} tokens. "
            "Save the tokenizer that the model was trained with beside it.",
        )


def _fetch(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    # Connection, names, rights, disk: the hub's own errors are of many kinds.
    except Exception as error:
        raise refusal(
            name,
            f"no such folder, and the hub did not give it: {first_sentence(error)} Check name and connection.",
        ) from None


def _quantisation(stored: Mapping[str, Any]) -> Any:
    """`quantization_config` of a config, or of the decoder's within it, where transformers looks for it, too."""
    text = stored.get("text_config")
    within = text.get("quantization_config") if isinstance(text, Mapping) else None
    given = stored.get("quantization_config")
    return within if given is None else given


def _check_quantiser(folder: Path, settings: Any) -> None:
    """Raises CheckpointError where weights are quantised in a way that transformers would leave out silently.

    Args:
        folder: of the model.
        settings: what `_quantisation` found.
    """
    if not isinstance(settings, dict):
        raise refusal(folder, f"{CONFIG} says quantization_config = {settings!r:.60}, not a table. Fetch it again.")
    method = settings.get("quant_method")
    for bits in ("4bit", "8bit"):
        # transformers asks these two first, and its names of the method have the bits in them
        if settings.get(f"load_in_{bits}"):
            method = f"bitsandbytes_{bits}"
            break
    if (reason := NOT_STORED.get(str(method))) is not None:
        raise refusal(folder, f"{CONFIG} says weights quantised by {method!r}: {reason}.")
    for module in QUANTISERS.get(str(method), ()):
        if importlib.util.find_spec(module) is None:
            raise DependencyError(
                f"{folder} holds weights quantised by {method!r}, which need the package {module.replace('_', '-')}. "
                f"Install it (pip install {' '.join(QUANTISERS[str(method)]).replace('_', '-')}), or use the weights "
                "that are not quantised."
            )
    if not isinstance(method, str) or not knows_quantiser(method):
        raise refusal(
            folder, f"config.json says weights quantised by {method!r}, which transformers does not know. Use others."
        )


def _compare_sizes(folder: Path, config: Any, stored: Stored) -> None:
    """Before memory is taken: a model that its weights could not fill by half, or as they are, is not that of these."""
    if stored.packed is not None:
        raise refusal(
            folder,
            f"its weights are quantised ({stored.packed}), and {CONFIG} does not say how (quantization_config): they "
            "would be read as other numbers. Fetch both again, or use the weights that are not quantised.",
        )
    transformers = import_transformers()
    with errors_named(folder), torch.device("meta"):
        empty = transformers.AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    described = sum(parameter.numel() for parameter in empty.parameters())
    if described > 2 * stored.num_elements:
        raise refusal(
            folder,
            f"config.json describes {described:,} parameters, and the weights hold {stored.num_elements:,} numbers. "
            "Fetch both again.",
        )


def _check_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Raises CheckpointError where tensors are missing or of another shape: they would be random numbers."""
    if other := sorted(report.get("mismatched_keys") or ()):
        name, stored, wanted = other[0]
        raise refusal(
            folder,
            f"{name} has the shape {list(stored)} in its weights, and {list(wanted)} by config.json. Fetch or save "
            "both again.",
        )
    lacking = sorted(str(key) for key in report.get("missing_keys") or ())
    if lacking:
        named = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise refusal(folder, f"its weights lack {named}, which would be random. Fetch or save them again.")
    if left_over := sorted(str(key) for key in report.get("unexpected_keys") or ()):
        logger.warning("%s: %d tensors belong to no part of the model: %s", folder, len(left_over), left_over[0])


def is_vlm(model_type: Any) -> bool:
    """Whether transformers has a class of VLMs of that type."""
    return isinstance(model_type, str) and knows_vlm(model_type)


def import_transformers() -> Any:
    """The transformers package.

    Raises:
        DependencyError: it is not installed.
    """
    return optional_package("transformers", extra="vlm")
