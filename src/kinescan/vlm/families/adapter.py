"""Adapters of PEFT: looked through before their base is read, put into its layers, compared with what was stored."""

import importlib.util
from pathlib import Path
from typing import Any

from kinescan.errors import CheckpointError, DependencyError
from kinescan.runtime.files import read_json_object
from kinescan.runtime.optional_package import optional_package
from kinescan.vlm.families.folder import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    PICKLED_ADAPTER,
    errors_named,
    first_sentence,
    refusal,
    stored_tensors,
)

_NAME = "default"
_SHARED = ("vblora_vector_bank", "prompt_encoder", ".tinylora_v.", ".unilora_theta_d.")
"""Names of tensors that layers have in common, which PEFT stores once: nothing is lost where a layer lacks them."""


def require_peft(folder: Path) -> None:
    """Raises DependencyError where the package is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise DependencyError(
            f"{folder} holds an adapter, which needs the package peft. Install it (pip install peft), or merge the "
            "adapter into its base model and save that."
        )


def check_adapter(folder: Path) -> None:
    """What can be seen without the base model.

    Raises:
        CheckpointError: weights are missing or cut, or the adapter is of a kind that no stream can use.
    """
    peft = optional_package("peft", extra=None)
    stored = read_json_object(folder / ADAPTER, error=CheckpointError)
    kinds = sorted(kind.value for kind in peft.PeftType)
    kind = stored.get("peft_type")
    if kind not in kinds:
        raise refusal(
            folder,
            f"{ADAPTER} says peft_type = {kind!r:.60}, which the installed peft does not know. It knows "
            f"{', '.join(kinds)}. Fetch the adapter again, or install the newest peft.",
        )
    with errors_named(folder):
        config = peft.PeftConfig.from_pretrained(str(folder))
    if (reason := why_not_in_layers(config)) is not None:
        raise refusal(folder, f"{reason}. Use an adapter that changes layers (LoRA, say), or merge it.")
    if not (folder / ADAPTER_WEIGHTS).exists():
        if not (folder / PICKLED_ADAPTER).exists():
            raise refusal(folder, f"it holds no weights of the adapter ({ADAPTER_WEIGHTS}). Fetch them.")
        return
    names = stored_tensors(folder / ADAPTER_WEIGHTS)
    for module in stored.get("modules_to_save") or ():
        if not any(str(module) in name.split(".") for name in names):
            raise refusal(
                folder, f"{ADAPTER} says that {module} is trained, and {ADAPTER_WEIGHTS} lacks it. Fetch both again."
            )


def why_not_in_layers(config: Any) -> str | None:
    """Why an adapter of these settings does nothing in the layers that a stream runs; None where it works there."""
    kind = getattr(config.peft_type, "value", config.peft_type)
    if config.is_prompt_learning or config.is_adaption_prompt:
        return f"an adapter of kind {kind} puts learned tokens before each forward, and a stream has no place for them"
    if kind == "XLORA" or getattr(config, "alora_invocation_tokens", None):
        return f"its layers ({kind}) depend on the whole input of a forward, which a stream has in parts"
    return None


def with_adapter(model: Any, folder: Path, *, merge: bool) -> Any:
    """The model with the layers of an adapter in it.

    Raises:
        CheckpointError: the adapter does not fit the model: tensors are missing, left over, or of another shape.
    """
    peft = optional_package("peft", extra=None)
    advice = (
        f"It belongs to another model, or is not whole: check base_model_name_or_path in {ADAPTER}, or fetch it again."
    )
    with errors_named(folder):
        try:
            adapted = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=False, adapter_name=_NAME)
        except RuntimeError as error:
            raise refusal(folder, f"{first_sentence(error)} {advice}") from None
        # once more, for what it says of tensors: layers without a stored one have random numbers
        loaded = adapted.load_adapter(str(folder), _NAME, is_trainable=False)
        missing = [name for name in loaded.missing_keys if not any(part in name for part in _SHARED)]
        for problem, names in (("lacks", missing), ("holds beside the base model's layers", loaded.unexpected_keys)):
            if names:
                named = ", ".join(sorted(names)[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
                raise refusal(folder, f"the adapter {problem} {named}. {advice}")
        inner = adapted.merge_and_unload() if merge else adapted
    return inner.eval()
