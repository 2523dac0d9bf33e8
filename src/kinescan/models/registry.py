"""Models by name: those of kinescan, those that are registered, and those of installed packages."""

import dataclasses
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import Any

from kinescan.errors import ConfigError
from kinescan.models.catalog import (
    IMAGE_MODELS,
    OLD_MODEL_NAMES,
    REGISTERED,
    TUNED,
    VIDEOMAMBAS,
    current_model_name,
    offered_models,
)
from kinescan.models.classifier import VideoClassifier
from kinescan.models.pks4 import PKS4
from kinescan.models.videomamba.tuned import TunedVideoMamba
from kinescan.models.videomamba.tuners import (
    AdapterVideoMamba,
    FullVideoMamba,
    LinearProbeVideoMamba,
    LoRAVideoMamba,
    STAdapterVideoMamba,
    StateOffsetVideoMamba,
    VPTVideoMamba,
)
from kinescan.models.videomamba.tuners.ssp import SSPVideoMamba
from kinescan.models.videomamba.videomamba import VideoMamba
from kinescan.settings import closest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Architecture:
    """A named model.

    Attributes:
        model: its class.
        settings: fields of the class's config that differ from their defaults.
    """

    model: type[VideoClassifier]
    settings: Mapping[str, Any] = field(default_factory=dict)


TUNERS: dict[str, type[TunedVideoMamba]] = {
    "ssp": SSPVideoMamba,
    "full": FullVideoMamba,
    "linear_probe": LinearProbeVideoMamba,
    "adapter": AdapterVideoMamba,
    "st_adapter": STAdapterVideoMamba,
    "vpt": VPTVideoMamba,
    "lora": LoRAVideoMamba,
    "state_offset": StateOffsetVideoMamba,
}
"""What may be trained of, or on top of, a VideoMamba; each gives the models TUNER_videomamba_SIZE."""

MODELS: dict[str, Architecture] = {
    **{name: Architecture(PKS4, settings) for name, settings in IMAGE_MODELS.items()},
    **{name: Architecture(VideoMamba, settings) for name, settings in VIDEOMAMBAS.items()},
    **{
        name: Architecture(model, settings)
        for tuner, model in TUNERS.items()
        for name, settings in TUNED[tuner].items()
    },
}


def register_model(name: str, config: Any, builder: type[VideoClassifier]) -> None:
    """Gives a model of your own a name: `create_model`, `from_pretrained` and the verbs know it from then on.

    Call it in a module that `--import my_module` names, or an entry point of the group "kinescan.models"; see
    docs/own_module.md.

    Args:
        name: what the model is called, in recipes and in config.json of saved ones.
        config: the frozen dataclass of its settings, with num_classes and image_size among them; or an instance, whose
            values are then the defaults under this name. Every field has a default.
        builder: a subclass of VideoClassifier, such as one of PKS4, whose `config_class` is that dataclass.

    Raises:
        ConfigError: the name is taken or none, or config or builder is something else.

    Example:
        >>> from kinescan.models import PKS4, PKS4Config
        >>> register_model("vit_b16", PKS4Config(width=192, heads=3), PKS4)
        Traceback (most recent call last):
        kinescan.errors.ConfigError: the name vit_b16 is taken by a model of kinescan. Choose another.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"a model's name is made of letters, digits, '_', '-' and '.', got {name!r}.")
    if name in MODELS or name in REGISTERED or name in OLD_MODEL_NAMES:
        owner = "a model of kinescan" if name not in REGISTERED else REGISTERED[name].model.__qualname__
        raise ConfigError(f"the name {name} is taken by {owner}. Choose another.")
    settings = _checked_config(name, config)
    cls = config if isinstance(config, type) else type(config)
    if not (isinstance(builder, type) and issubclass(builder, VideoClassifier)) or inspect.isabstract(builder):
        raise ConfigError(
            f"{name}: the builder must be a subclass of VideoClassifier with all its methods, got {builder!r}. Derive "
            "it from kinescan.models.PKS4, or from kinescan.models.VideoClassifier."
        )
    if getattr(builder, "config_class", None) is not cls:
        raise ConfigError(f"{name}: set config_class = {cls.__name__} in {builder.__name__}.")
    REGISTERED[name] = Architecture(builder, settings)


def find_model(name: str) -> Architecture | None:
    """The model of a name; None where it is unknown.

    An installed package that offers the name as an entry point is imported, if nothing else has the name.

    Raises:
        ConfigError: such a package fails.
    """
    name = current_model_name(name)
    if name in MODELS or name in REGISTERED:
        return MODELS.get(name) or REGISTERED[name]
    for entry in offered_models():
        if entry.name == name:
            _load(entry)
            return REGISTERED[name]
    return None


def require_model(name: str) -> Architecture:
    """The model of a name.

    Raises:
        ConfigError: the name is unknown; the closest name is in the message.
    """
    found = find_model(name)
    if found is None:
        raise ConfigError(
            f"unknown model {name!r}. {closest(name, list_models())} `kinescan list` shows all; one of your own needs "
            "--import MODULE, the module that registers it."
        )
    return found


def known_models() -> dict[str, Architecture]:
    """All models that can be made without importing anything more."""
    return {**MODELS, **REGISTERED}


def list_models() -> list[str]:
    """The names that `create_model` takes, sorted.

    Example:
        >>> "pks4_vit_b16" in list_models()
        True
    """
    return sorted({*known_models(), *(entry.name for entry in offered_models())})


def _load(entry: EntryPoint) -> None:
    package = f"package {entry.dist.name}" if entry.dist is not None else "an installed package"
    said = f'model {entry.name} of {package} (entry point "{entry.value}")'
    try:
        entry.load()
    # The code is the package's: whatever it raises is reported with the package's name.
    except Exception as error:
        raise ConfigError(f"{said} cannot be loaded: {type(error).__name__}: {error}.") from error
    if entry.name not in REGISTERED:
        raise ConfigError(f"{said} registers no model of this name: its module has to call register_model.")


def _checked_config(name: str, config: Any) -> dict[str, Any]:
    """The values in which an instance differs from its class's defaults; of a class, none."""
    cls = config if isinstance(config, type) else type(config)
    parameters = getattr(cls, "__dataclass_params__", None)
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    lacking = [wanted for wanted in ("num_classes", "image_size") if wanted not in {field.name for field in fields}]
    if parameters is None or not parameters.frozen or lacking:
        raise ConfigError(
            f"{name}: the config must be a frozen dataclass with the fields num_classes and image_size, got "
            f"{config!r}. Derive it from kinescan.models.PKS4Config, under @dataclass(frozen=True, kw_only=True)."
        )
    try:
        defaults = cls()
    except TypeError as error:
        raise ConfigError(f"{name}: every field of {cls.__name__} needs a default ({error}).") from error
    if isinstance(config, type):
        return {}
    values = {field.name: getattr(config, field.name) for field in fields if field.init}
    return {key: value for key, value in values.items() if value != getattr(defaults, key)}
