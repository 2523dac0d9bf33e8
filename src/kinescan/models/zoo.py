import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kinescan.errors import CheckpointError, ConfigError
from kinescan.models.catalog import current_model_name
from kinescan.models.classifier import VideoClassifier
from kinescan.models.pks4 import PKS4
from kinescan.models.registry import MODELS, Architecture, find_model, list_models, require_model
from kinescan.models.saving import saved_model
from kinescan.models.skeleton import shapes_only
from kinescan.models.text_head import TextHead, start_from_texts
from kinescan.models.videomamba.tuned import TunedVideoMamba
from kinescan.models.weights.checkpoint_file import open_checkpoint
from kinescan.models.weights.labels import refuse_other_classes, reorder_head
from kinescan.models.weights.vit_weights import Pretrained
from kinescan.preprocessing import Preprocessing
from kinescan.runtime.error_text import first_line
from kinescan.settings import OLD_NAMES, build_settings, closest, current_names, to_plain

logger = logging.getLogger(__name__)

_ANSWERS = ("output", "overlapping", "unit_embeddings")
"""Fields of a config that belong to the classes of a head: what a logit answers for, and what it compares."""


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    labels: Sequence[str] | None = None,
    weights: str | Path | None = None,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    new_head: bool = True,
    text: TextHead | Mapping[str, Any] | None = None,
    **options: Any,
) -> VideoClassifier:
    """A model by name, with new weights or on a pretrained backbone.

    With `weights`, sizes are read from the tensors: "pks4_vit_b16" on a smaller encoder is a smaller model. What was
    loaded, missing, left over and resized is in `model.load_report` and logged.

    Args:
        name: one of `list_models()`.
        num_classes: size of the head; by default the number of labels, or that of the config.
        labels: class names in the order of the logits.
        weights: a vision encoder (CLIP, SigLIP, DINOv2, DINOv3, MAE, a plain ViT; see docs/backbones.md) or a saved
            kinescan model: file, folder, or name on the Hugging Face hub.
            A saved model gives its head too, if the classes are the same, in whatever order.
        preprocessing: how pixels become a clip; or some of its fields, the others being what comes with the weights,
            else CLIP's. Its size is the model's image_size.
        new_head: start with a new head where the weights were trained on other classes; False refuses them.
        text: start the head from the class names, read by CLIP's text encoder; see `TextHead` and docs/text_heads.md.
            A head that the weights hold for the same classes stays as it is.
        **options: fields of the model's config; see `PKS4Config`, `VideoMambaConfig`, `SSPConfig` and the tuners'.

    Returns:
        The model, on the CPU, in training mode.

    Raises:
        ConfigError: the name or an option is unknown (the closest is named), or an option is out of range or
            contradicts the weights, or a text head does not go with the model.
        CheckpointError: the weights cannot be read, fit nothing, or belong to other classes with `new_head=False`.

    Example:
        >>> model = create_model("pks4_vit_ti16", labels=["left", "right"], depth=2, window=5)
        >>> model.config.num_classes, model.config.window, model.labels
        (2, 5, ('left', 'right'))
    """
    name = _current_name(name)
    architecture = require_model(name)
    options = _current_options(name, architecture, options)
    _refuse_unknown_options(name, architecture, options)
    pretrained = None if weights is None else _read_weights(name, architecture, weights, options)
    asked = to_plain(preprocessing) if isinstance(preprocessing, Preprocessing) else dict(preprocessing or {})
    options = {**_options_of_clips(architecture, asked), **options}
    read_as_text = _text_head(text, name, architecture, pretrained, labels, options)
    if read_as_text is not None:
        options = {**options, "unit_embeddings": True}
    if labels is None and pretrained is not None and num_classes in (None, len(pretrained.labels or ())):
        labels = pretrained.labels
    settings = _merge(name, architecture, pretrained, options)
    settings = _for_classes(settings, pretrained, options, labels=labels, num_classes=num_classes)
    config = build_settings(architecture.model.config_class, settings)
    prepared = _preprocessing(name, architecture, config, pretrained, asked)

    def build() -> VideoClassifier:
        return architecture.model(config, name=name, labels=labels, preprocessing=prepared)

    if pretrained is None:
        model = build()
        if isinstance(model, TunedVideoMamba) and not model.is_trained("cls_token"):
            logger.warning("%s without weights: its frozen base is random. Give weights=... of a VideoMamba", name)
    else:
        notes = _sizes_from_weights(name, pretrained, settings, options)
        model = _load(build, pretrained, new_head=new_head, notes=notes)
    if read_as_text is not None:
        model.class_texts = start_from_texts(model, read_as_text, weights)
    return model


def from_pretrained(
    source: str | Path,
    *,
    revision: str | None = None,
    base: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> VideoClassifier:
    """A model that `save_pretrained` wrote, whatever its class; in evaluation mode.

    Args:
        source: folder of a saved model, or of a run (its best checkpoint is taken); or name on the Hugging Face hub
            (user/name), or the address of its page there.
        revision: branch, tag or commit on the hub.
        base: for what was tuned on top of a frozen model: where that model's weights are now, if they were moved.
        device: where it goes; by default the CPU.
        dtype: of its weights; by default float32. To compute faster and keep the weights, give `predict` a precision.

    Raises:
        ConfigError: the device is not available.
        CheckpointError: the folder is missing or damaged, of a newer kinescan, or of a model unknown here; or the base
            is missing, another one, or not wanted.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> create_model("vit_ti16", labels=["left", "right"], depth=1).save_pretrained(folder)
        >>> from_pretrained(folder).labels
        ('left', 'right')
    """
    model = _saved(source, revision, base)
    try:
        return model if device is None and dtype is None else model.to(device=device, dtype=dtype)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {str(device)!r} is not available: {first_line(error)} Use 'cpu', or a device that "
            "`kinescan doctor` lists."
        ) from error


def _saved(source: str | Path, revision: str | None, base: str | Path | None) -> VideoClassifier:
    folder = saved_model.locate(source, revision=revision)
    saved = saved_model.read_config(folder)
    name = saved.model
    architecture = find_model(name)
    if architecture is None:
        advice = f"{closest(name, list_models())} If it is a newer one, upgrade: pip install -U kinescan"
        if saved.module is not None:
            advice = (
                f"It is a model of somebody's own, saved with --import {saved.module}. If you trust that module, give "
                f"--import {saved.module} to the command, or import {saved.module} in Python before loading."
            )
        raise CheckpointError(f"{folder / saved_model.CONFIG_FILE}: unknown model {name!r}. {advice}")
    model = architecture.model
    if base is None:
        return model.from_pretrained(folder)
    if not issubclass(model, TunedVideoMamba):
        raise CheckpointError(f"{folder} holds a {name}, which is whole and needs no base. Leave base out.")
    return model.from_pretrained(folder, base=base)


def _read_weights(name: str, architecture: Architecture, weights: str | Path, options: Mapping[str, Any]) -> Pretrained:
    """Weights in the names of the architecture, with today's names of models and settings.

    Raises:
        ConfigError: they contradict the name or the options.
        CheckpointError: they cannot be read, or are not of this architecture.
    """
    pretrained = architecture.model.translate(open_checkpoint(weights))
    conventions = current_names(architecture.model.config_class, pretrained.conventions)
    trained_as = None if pretrained.model is None else current_model_name(pretrained.model)
    pretrained = dataclasses.replace(pretrained, conventions=conventions, model=trained_as)
    _refuse_contradictions(name, architecture, pretrained, options)
    _refuse_another_named_size(name, pretrained)
    return pretrained


def _options_of_clips(architecture: Architecture, preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """The model's options that the preprocessing asked for decides."""
    options = {}
    if "size" in preprocessing:
        options["image_size"] = preprocessing["size"]
    if "num_frames" in preprocessing and "num_frames" in _fields(architecture):
        options["num_frames"] = preprocessing["num_frames"]
    return options


def _for_classes(
    settings: Mapping[str, Any],
    pretrained: Pretrained | None,
    options: Mapping[str, Any],
    *,
    labels: Sequence[str] | None,
    num_classes: int | None,
) -> dict[str, Any]:
    """The settings for a head of these classes."""
    found = dict(settings)
    if pretrained is not None and labels is not None and set(labels) != set(pretrained.labels or ()):
        # For other classes, what the logits answer for is not the weights' to tell.
        found = {key: value for key, value in found.items() if key not in _ANSWERS or key in options}
    if num_classes is not None:
        found["num_classes"] = num_classes
    elif labels is not None:
        found["num_classes"] = len(labels)
    return found


def _load(
    build: Callable[[], VideoClassifier], pretrained: Pretrained, *, new_head: bool, notes: Sequence[str]
) -> VideoClassifier:
    """The model that `build` makes, with these weights; a head of other classes starts anew, or is refused.

    Raises:
        CheckpointError: a tensor does not fit, or the classes are others with `new_head=False`.
    """
    # On no device: sizes that do not fit the weights are refused before memory is taken for them.
    with shapes_only():
        skeleton = build()
    ordered = _in_own_order(pretrained, skeleton)
    skip = () if _same_head(skeleton, ordered) else ("head.",)
    skeleton.load(ordered, skip=skip)
    model = build()
    if not new_head:
        refuse_other_classes(pretrained, model.labels)
    report = model.load(ordered, skip=skip)
    model.load_report = dataclasses.replace(report, notes=(*report.notes, *notes))
    model.class_texts = None if skip else pretrained.class_texts
    return model


def _text_head(
    text: TextHead | Mapping[str, Any] | None,
    name: str,
    architecture: Architecture,
    pretrained: Pretrained | None,
    labels: Sequence[str] | None,
    options: Mapping[str, Any],
) -> TextHead | None:
    """What the head starts from; None for a new head, and where the weights hold one for these classes.

    Raises:
        ConfigError: the model, its options or its labels do not go with a text head.
    """
    found = build_settings(TextHead, text, where="text") if isinstance(text, Mapping) else text or TextHead()
    if not found.templates:
        return None
    if not issubclass(architecture.model, PKS4):
        raise ConfigError(
            f"{name} has no text head: PKS4 and the image ViTs have. Leave text out, or take one of them."
        )
    if not labels:
        raise ConfigError("a text head reads the names of the classes, and there are no labels. Give labels=[...].")
    if pretrained is not None and pretrained.labels is not None and set(pretrained.labels) == set(labels):
        logger.info(
            "%s: its head for these classes stays as it is, and the class names are not read", pretrained.source
        )
        return None
    if not options.get("unit_embeddings", True):
        raise ConfigError("unit_embeddings = false and a text head exclude each other. Leave one of them out.")
    return found


def _current_name(name: str) -> str:
    current = current_model_name(name)
    if current != name:
        logger.warning("the model name %s is deprecated. Use %s", name, current)
    return current


def _current_options(name: str, architecture: Architecture, options: Mapping[str, Any]) -> dict[str, Any]:
    current = current_names(architecture.model.config_class, options)
    for old in sorted(options.keys() - current.keys()):
        logger.warning("%s: the option %s is deprecated. Use %s", name, old, OLD_NAMES[old])
    return current


def _fields(architecture: Architecture) -> list[str]:
    return [key.name for key in dataclasses.fields(architecture.model.config_class)]


def _preprocessing(
    name: str, architecture: Architecture, config: Any, pretrained: Pretrained | None, asked: Mapping[str, Any]
) -> Preprocessing:
    """What is usual for the architecture, replaced by what the weights say, and that by what was asked for."""
    usual = {**architecture.model.usual_preprocessing, "size": config.image_size}
    inherited = _inherited_preprocessing(name, pretrained)
    if "num_frames" in _fields(architecture):
        usual["num_frames"] = config.num_frames
        inherited.pop("num_frames", None)
    return build_settings(Preprocessing, {**usual, **inherited, **asked}, where="preprocessing")


def _refuse_unknown_options(name: str, architecture: Architecture, options: Mapping[str, Any]) -> None:
    allowed = [key for key in _fields(architecture) if key != "num_classes"]
    for option in options:
        if option not in allowed:
            raise ConfigError(f"{name} has no option {option!r}. {closest(option, allowed)}")


def _refuse_contradictions(
    name: str, architecture: Architecture, pretrained: Pretrained, options: Mapping[str, Any]
) -> None:
    # The image size may differ (positions are interpolated), and a projection may be left out.
    free = architecture.model.interpolated | ({"embed_dim"} if options.get("embed_dim", 0) is None else set())
    for option, value in options.items():
        told = pretrained.sizes.get(option, value)
        if option not in free and told != value:
            raise ConfigError(
                f"{name}: {option}={value!r} contradicts {pretrained.source}, whose {option} is {told!r}. "
                f"Leave {option} out, or give other weights."
            )


def _refuse_another_named_size(name: str, pretrained: Pretrained) -> None:
    """Weights of a named size under another's name would give a model that is not what it is called.

    Sizes without a name are taken as the weights tell them.
    """
    if name not in MODELS:
        return
    told = (pretrained.sizes.get("width"), pretrained.sizes.get("depth"))
    family, own = name.rpartition("_")[0], _width_and_depth(name)
    for other in MODELS:
        if other.rpartition("_")[0] == family and told == _width_and_depth(other) != own:
            raise ConfigError(
                f"{pretrained.source} is of the size of {other} (width {told[0]}, depth {told[1]}); {name} has width "
                f"{own[0]} and depth {own[1]}. Take {other}, or give weights of {name}'s size."
            )


def _width_and_depth(name: str) -> tuple[int | None, int | None]:
    architecture = MODELS[name]
    config = architecture.model.config_class(**architecture.settings)
    return getattr(config, "width", None), getattr(config, "depth", None)


def _inherited_preprocessing(name: str, pretrained: Pretrained | None) -> dict[str, Any]:
    """All of it from the same model; the pixels' scale alone from another, which may have seen other clips."""
    told = {} if pretrained is None else pretrained.preprocessing
    same = pretrained is not None and pretrained.model == name
    return {key: value for key, value in told.items() if key != "size" and (same or key in ("mean", "std"))}


def _in_own_order(pretrained: Pretrained, model: VideoClassifier) -> Pretrained:
    """The weights with the rows of their head in the order of the model's classes, where they are the same ones."""
    saved = pretrained.labels
    if saved is None or model.labels is None or saved == model.labels or set(saved) != set(model.labels):
        return pretrained
    logger.info("%s: the rows of its head are brought into the order of these classes", pretrained.source)
    tensors = reorder_head(pretrained.tensors, saved, model.labels)
    return dataclasses.replace(pretrained, tensors=tensors, labels=model.labels)


def _same_head(model: VideoClassifier, pretrained: Pretrained) -> bool:
    if pretrained.labels is not None:
        return pretrained.labels == model.labels
    head = pretrained.tensors.get("head.weight")
    return head is None or head.shape == model.state_dict()["head.weight"].shape


def _merge(
    name: str, architecture: Architecture, pretrained: Pretrained | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The config's fields: the named defaults, then what the weights tell, then the options."""
    named = dict(architecture.settings)
    told: dict[str, Any] = {}
    if pretrained is not None:
        foreign = pretrained.model is not None and pretrained.model != name
        told = ({} if foreign else dict(pretrained.conventions)) | pretrained.sizes
        if "heads" in told and told["heads"] is None and "heads" not in options:
            raise ConfigError(
                f"{pretrained.source}: nothing says how many attention heads an encoder of width {told['width']} and "
                f"depth {told['depth']} has, and none was published in this size. Add heads=... (in a recipe "
                "model.options.heads), or put its config.json beside the weights."
            )
    merged: dict[str, Any] = {**named, **told, **options}
    defaults = architecture.model.config_class(**named)
    routed = hasattr(defaults, "class_token_route") and "class_token_route" not in {*told, *options}
    if routed and not merged.get("class_token", True):
        # Nothing to route: time goes through the patches alone.
        merged["class_token_route"] = "none"
    depth = merged.get("depth", defaults.depth)
    if hasattr(defaults, "insert_after") and depth != defaults.depth and "insert_after" not in {*told, *options}:
        # A vision encoder of another depth gets the module at the same relative depth.
        merged["insert_after"] = max(1, round(depth * defaults.insert_after / defaults.depth))
    return merged


def _sizes_from_weights(
    name: str, pretrained: Pretrained, settings: Mapping[str, Any], options: Mapping[str, Any]
) -> list[str]:
    """A sentence, also logged, for the report: which sizes are the weights' and not those that the name stands for."""
    architecture = require_model(name)
    defaults = architecture.model.config_class(**architecture.settings)
    changed = [
        f"{key}={value}"
        for key, value in (dict(pretrained.conventions) | pretrained.sizes).items()
        if key not in options and settings.get(key) == value != getattr(defaults, key)
    ]
    if not changed:
        return []
    note = f"sizes read from the weights: {', '.join(changed)}"
    logger.info("%s: %s", name, note)
    return [note]
