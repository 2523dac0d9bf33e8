"""A VLM's folder, looked through before anything of it is loaded: nothing in it may run, and all has to be there."""

import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from kinescan.errors import CheckpointError, ConfigError, DependencyError, KinescanError
from kinescan.runtime.error_text import first_line, typed_line
from kinescan.runtime.files import inside, kind_of, read_json_object, require_path, require_regular
from kinescan.runtime.urls import mask_url, mask_urls
from kinescan.settings import closest
from kinescan.vlm.families.refused import OWN_CODE, REFUSED

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS, PICKLED_ADAPTER = "adapter_model.safetensors", "adapter_model.bin"
PROCESSORS = ("video_preprocessor_config.json", "processor_config.json", "preprocessor_config.json")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer*")
PICKLED_PATTERNS = ("pytorch_model*.bin",)

_SETTINGS = (CONFIG, "tokenizer_config.json", "generation_config.json", *PROCESSORS)
_TOKENIZER = "tokenizer.json"
_TOKENIZERS = ((_TOKENIZER,), ("tokenizer.model",), ("vocab.json", "merges.txt"))
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
_MOST_LABELS = 100_000
_MOST_LAYERS = 10_000
_POINTER = b"version https://git-lfs"
_NOT_HERE = "holds quantised weights that do not run here"
_NOT_QUANTISED = "Install what is named, use a machine that has it, or use the weights that are not quantised."
_PLAIN = ("F64", "F32", "F16", "BF16")
GGUF = ".gguf"
_GGUF_ADVICE = (
    "a GGUF file holds weights for llama.cpp, most often without the vision encoder. Give the folder or hub name that "
    "it was converted from (config.json, safetensors, tokenizer)."
)
_ADVICE = "Give a folder with config.json, weights and tokenizer, or a name on the Hugging Face hub (user/name)."


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What a folder holds.

    Attributes:
        config: of the model, as it is in the folder.
        num_tensors: of the weights; None where they are pickled, and not looked into.
        num_elements: numbers in the weights; at most this many where they are pickled.
        packed: a weight that is quantised, and its type; None where there is none, or they are pickled.
    """

    config: dict[str, Any]
    num_tensors: int | None
    num_elements: int
    packed: str | None = None


def refusal(name: str | Path, reason: str) -> CheckpointError:
    """The error for a folder that cannot be loaded."""
    return CheckpointError(f"{mask_url(name)} cannot be loaded as a video VLM: {reason}")


def first_sentence(error: BaseException) -> str:
    r"""Of what a library says, without secrets, ended by a full stop; two lines where the first ends in a colon.

    Example:
        >>> first_sentence(KeyError("model")), first_sentence(ValueError("Wrong field:\n  it is 3"))
        ("KeyError: 'model'.", 'Wrong field: it is 3.')
    """
    below = next((line.strip() for line in str(error).splitlines()[1:] if line.strip()), "")
    # the text of a KeyError is the key alone
    said = typed_line(error) if isinstance(error, KeyError) else re.sub(":$", lambda _: f": {below}", first_line(error))
    return mask_urls(said.rstrip(" .:")) + "."


@contextmanager
def errors_named(folder: Path, *, quantised: bool = False) -> Iterator[None]:
    """Whatever transformers raises over a folder becomes an error of `kinescan.errors`.

    What the packages behind it print goes to standard error (gptqmodel tells of its kernels): standard output is ours.

    Args:
        folder: of the model.
        quantised: its weights are, and are being read: then it is the device or a package that they do not run with.

    Raises:
        DependencyError: a package that the weights need is not installed.
        CheckpointError: anything else was wrong with the folder.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except KinescanError:
        raise
    except ImportError as error:
        if quantised:
            raise DependencyError(f"{folder} {_NOT_HERE}: {first_sentence(error)} {_NOT_QUANTISED}") from None
        raise DependencyError(
            f"{folder} needs a package that is not installed: {first_sentence(error)} Install it, or use the weights "
            "that are not quantised."
        ) from None
    # Files of others, read by others' code: it may fail in any way.
    except Exception as error:
        if quantised:
            raise CheckpointError(f"{folder} {_NOT_HERE}: {first_sentence(error)} {_NOT_QUANTISED}") from None
        raise refusal(folder, f"{first_sentence(error)} Fetch it again, or save it with transformers 5.") from None


def find_folder(name: str | Path) -> Path | None:
    """The folder of that name; None for a name on the hub.

    Raises:
        CheckpointError: it is a file, or a path that leads nowhere.
    """
    require_path(name, error=CheckpointError)
    path = Path(name).expanduser()
    if path.suffix.lower() == GGUF:
        raise refusal(name, _GGUF_ADVICE)
    try:
        if path.is_dir():
            return path
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise refusal(name, f"{first_sentence(error)} {_ADVICE}") from None
    if exists:
        raise refusal(name, f"it is not a folder. {_ADVICE}")
    if _HUB_NAME.fullmatch(str(name)):
        return None
    raise refusal(name, f"folder not found. {_ADVICE}")


def base_of_adapter(folder: Path) -> str | None:
    """Name of the model that an adapter of PEFT belongs to; None where the folder holds no adapter alone.

    Raises:
        CheckpointError: the adapter says none, or is damaged.
    """
    path = folder / ADAPTER
    if (folder / CONFIG).exists() or not path.exists():
        return None
    _refuse_links_and_pipes(folder)
    _refuse_pointers(folder)
    base = read_json_object(path, error=CheckpointError).get("base_model_name_or_path")
    if not isinstance(base, str) or not base.strip():
        raise refusal(folder, f"{ADAPTER} names no base model (base_model_name_or_path). Write the base's name there.")
    return base


def read_config(
    folder: Path, families: Collection[str], knows: Callable[[Any], bool] = lambda kind: False
) -> dict[str, Any]:
    """The model's config, of a supported family, which names no code of its own.

    Args:
        folder: of the model.
        families: model types with a family of their own.
        knows: whether a model type is one of transformers' VLMs.

    Raises:
        CheckpointError: it is missing or damaged, or something in the folder names code.
        ConfigError: the family is not supported.
    """
    if not (folder / CONFIG).exists():
        reason = f"it holds no {CONFIG}." if any(folder.iterdir()) else "the folder is empty."
        _refuse_gguf(folder)
        raise refusal(folder, f"{reason} {_ADVICE}")
    _refuse_links_and_pipes(folder)
    _refuse_pointers(folder)
    config = read_json_object(folder / CONFIG, error=CheckpointError)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        kind = str(kind)
    if kind in OWN_CODE:
        raise refusal(
            folder,
            f"runs models of type {kind!r} run by code in their own repository alone, and no model's code is run here "
            f"(trust_remote_code is never on). Use {OWN_CODE[kind]}.",
        )
    if kind in REFUSED:
        raise ConfigError(f"{folder} holds a model of type {kind!r}, which is not supported: {REFUSED[kind]}.")
    if kind not in families and not knows(kind):
        for name in _SETTINGS:
            if (folder / name).exists():
                _refuse_code(folder, name)
        hint = closest(kind, families)
        raise ConfigError(
            f"{folder} holds a model of type {config.get('model_type')!r}, which is not supported. A stream runs "
            f"models of type {', '.join(sorted(families))}, and other decoder-only VLMs of transformers. "
            f"{hint}".rstrip()
        )
    for name in _SETTINGS:
        if (folder / name).exists():
            _refuse_code(folder, name)
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        # transformers makes a name for each of them.
        if isinstance(count := part.get("num_labels"), int) and count > _MOST_LABELS:
            raise refusal(
                folder, f"{CONFIG} says num_labels = {count}; at most {_MOST_LABELS} are taken. Fetch it again."
            )
        # and writes down the kind of each layer
        for key in ("num_hidden_layers", "depth"):
            if isinstance(count := part.get(key), int) and count > _MOST_LAYERS:
                raise refusal(
                    folder, f"{CONFIG} says {key} = {count}; at most {_MOST_LAYERS} are taken. Fetch it again."
                )
    return config


def look_through(folder: Path, config: dict[str, Any]) -> Stored:
    """What a folder of a supported family holds: weights that are whole, and a tokenizer.

    Raises:
        CheckpointError: something is missing or cut.
    """
    if not any(all((folder / name).exists() for name in names) for names in _TOKENIZERS):
        raise refusal(folder, "it holds no tokenizer (tokenizer.json). Save the model's tokenizer beside it.")
    if (folder / _TOKENIZER).exists():
        read_json_object(folder / _TOKENIZER, error=CheckpointError)
    for strange in (".metadata", ADAPTER):
        if (folder / strange).exists():
            raise refusal(folder, f"{strange} belongs to another kind of checkpoint. Save the whole model by itself.")
    files = _weight_files(folder, config)
    if files[0].suffix != ".safetensors":
        return Stored(config=config, num_tensors=None, num_elements=sum(file.stat().st_size for file in files))
    num_tensors, num_elements, packed = 0, 0, None
    for file in files:
        for shape in tensor_shapes(file).values():
            num_tensors += 1
            num_elements += _product(shape)
        packed = packed or _packed_weight(file)
    stored = Stored(config=config, num_tensors=num_tensors, num_elements=num_elements, packed=packed)
    _refuse_absurd_layers(folder, stored)
    return stored


def _refuse_links_and_pipes(folder: Path) -> None:
    """Whatever transformers may open lies in the folder itself, and has an end."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            inside(folder, path.name, error=CheckpointError)
        if not path.is_file() and not path.is_dir():
            raise refusal(folder, f"{path.name} is {kind_of(path.lstat().st_mode)}. Put a regular file there.")


def _refuse_pointers(folder: Path) -> None:
    """Git LFS leaves small text files instead of large ones that it has not fetched."""
    pointers = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.stat().st_size < 1024:
            with path.open("rb") as file:
                if file.read(len(_POINTER)) == _POINTER:
                    pointers.append(path.name)
    if pointers:
        named = ", ".join(pointers[:3]) + (f" and {len(pointers) - 3} more" if len(pointers) > 3 else "")
        raise refusal(folder, f"{named}: Git LFS has left a pointer instead of the file. Fetch it: git lfs pull.")


def _refuse_code(folder: Path, name: str) -> None:
    """Nothing that a folder brings is ever run: not its modules, and no kernels that it names on the hub."""
    waiting: list[Any] = [read_json_object(folder / name, error=CheckpointError)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(value)
        if not isinstance(value, dict):
            continue
        for key, inner in value.items():
            waiting.append(inner)
            names_kernel = "attn_implementation" in key and "/" in str(inner)
            if (key == "auto_map" and inner) or names_kernel or key == "transformers_weights":
                raise refusal(
                    folder,
                    f"{name} names code or files of its own ({key}), and no model's code is run here "
                    "(trust_remote_code is never on). Use a checkpoint in the layout that transformers knows by itself "
                    "(names on the hub often end in -hf).",
                )


def _weight_files(folder: Path, config: dict[str, Any]) -> list[Path]:
    single = next((folder / name for name in (WEIGHTS,) if (folder / name).exists()), None)
    if single is not None:
        return [single]
    for index, plain in ((INDEX, None), (None, PICKLED), (PICKLED_INDEX, None)):
        if plain is not None and (folder / plain).exists():
            return [folder / plain]
        if index is not None and (folder / index).exists():
            return _shards(folder, index)
    _refuse_gguf(folder)
    raise refusal(folder, f"it holds no weights ({WEIGHTS}). {_ADVICE}")


def _refuse_gguf(folder: Path) -> None:
    """What a folder without weights of ours may hold, with a config beside it or without."""
    if any(path.suffix.lower() == GGUF for path in folder.iterdir()):
        raise refusal(folder, _GGUF_ADVICE)


def _shards(folder: Path, index: str) -> list[Path]:
    weight_map = read_json_object(folder / index, error=CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise refusal(folder, f"{index} has no weight_map. Fetch it again.")
    names = sorted({str(name) for name in weight_map.values()})
    if strange := [name for name in names if Path(name).name != name]:
        raise refusal(folder, f"{index} names a file outside of the folder ({strange[0]}). Fetch it again.")
    if missing := [name for name in names if not (folder / name).exists()]:
        raise refusal(
            folder, f"{len(missing)} of {len(names)} files of weights are missing ({missing[0]}). Fetch them."
        )
    return [folder / name for name in names]


def tensor_shapes(file: Path) -> dict[str, list[int]]:
    """Names and shapes of what a file of weights holds.

    Raises:
        CheckpointError: it is cut or damaged.
    """
    require_regular(file, error=CheckpointError)
    try:
        with safe_open(str(file), framework="pt") as opened:
            return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{file} is cut or damaged ({first_sentence(error)}) Fetch it again.") from None


def _packed_weight(file: Path) -> str | None:
    """Name and type of a weight of whole numbers or 8 bits, which has a scale elsewhere."""
    with safe_open(str(file), framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            kind = opened.get_slice(name).get_dtype()
            if name.endswith((".weight", ".bias")) and kind not in _PLAIN:
                return f"{name} ({kind})"
    return None


def _refuse_absurd_layers(folder: Path, stored: Stored) -> None:
    """Layers are built one by one, so that their number is compared with the weights before."""
    assert stored.num_tensors is not None, "pickled weights are not looked into"
    for part in (stored.config, *(value for value in stored.config.values() if isinstance(value, dict))):
        for key in ("num_hidden_layers", "depth"):
            count = part.get(key)
            if isinstance(count, int) and count > stored.num_tensors:
                raise refusal(
                    folder,
                    f"{CONFIG} says {key} = {count}, and the weights hold {stored.num_tensors} tensors. Fetch both.",
                )


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
