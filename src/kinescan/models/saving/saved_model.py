import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from kinescan.errors import CheckpointError, ConfigError
from kinescan.models.catalog import current_model_name
from kinescan.models.saving import location
from kinescan.models.saving.location import EXPORT_FILE, locate_model
from kinescan.models.symmetry import Symmetry
from kinescan.models.weights.hub import download
from kinescan.models.weights.tensor_file import read_safetensors
from kinescan.models.weights.text_encoder import checked_texts
from kinescan.runtime.atomic_write import atomic_files
from kinescan.runtime.escaping import to_json
from kinescan.runtime.files import inside, read_json_object, require_regular
from kinescan.runtime.own_modules import is_module_name
from kinescan.runtime.precision import PRECISIONS, Precision
from kinescan.runtime.run_folder import RULES_FILE
from kinescan.settings import build_settings
from kinescan.version import __version__

CONFIG_FILE, WEIGHTS_FILE = location.CONFIG_FILE, location.WEIGHTS_FILE
CARD_FILE = "README.md"
MOST_CLIPS = 64
"""Of a video, that a saved model may ask for: whoever opens a file of others is not to wait for hours."""
_ADVICE = "Choose a folder that you may write to, on a disk with space."


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """What config.json of a saved model says.

    Attributes:
        kinescan_version: version that wrote it.
        model: name in the zoo.
        config: every field of the model's config.
        labels: class names in the order of the logits; None where they are unknown.
        preprocessing: every field of `Preprocessing`.
        base: for a tuned part, the weights that it belongs to: "source" and "sha256"; None for a whole model.
        module: for a model of somebody's own, the module that registers it. Said in an error, never imported.
        timing: every field of `FrameTiming`; None where that is unknown.
        trained_in: the precision of its training; None where that is unknown.
        class_texts: label -> the texts that its row of the head was made from; None where it was not made from texts.
        num_clips: clips of a video whose scores are averaged where nobody says which views; see `VideoClassifier`.
        symmetries: changes of a clip whose answers are averaged with its own; see `VideoClassifier`.
    """

    kinescan_version: str
    model: str
    config: dict[str, Any]
    labels: list[str] | None
    preprocessing: dict[str, Any]
    base: dict[str, Any] | None = None
    module: str | None = None
    timing: dict[str, Any] | None = None
    trained_in: Precision | None = None
    class_texts: Mapping[str, tuple[str, ...]] | None = None
    num_clips: int = 1
    symmetries: tuple[Symmetry, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """What the files of a saved model hold.

    Attributes:
        saved: config.json.
        tensors: model.safetensors.
        card: README.md.
        rules: events.json; None where there is none.
    """

    saved: SavedModel
    tensors: Mapping[str, Tensor]
    card: str
    rules: Mapping[str, Any] | None = None


def locate(source: str | Path, *, revision: str | None = None) -> Path:
    """The local folder of a saved model, fetched from the Hugging Face hub if `source` names none here.

    Raises:
        CheckpointError: neither a saved model (see `locate_model`) nor a repository that can be fetched.
    """
    found = locate_model(source)
    path = Path(found)
    if not path.is_dir():
        return download(found, patterns=(CONFIG_FILE, WEIGHTS_FILE, RULES_FILE), revision=revision)
    if (path / EXPORT_FILE).is_file() and not is_saved(path):
        raise CheckpointError(
            f"{source} holds an exported model, which can be run and not be trained. Use load_exported(FOLDER); "
            "predict, evaluate and the command line take the folder as it is."
        )
    return path


def is_saved(folder: str | Path) -> bool:
    """Whether a folder holds a saved model; one that is damaged counts, too."""
    path = Path(folder) / CONFIG_FILE
    if not os.path.isfile(path) or not os.path.isfile(Path(folder) / WEIGHTS_FILE):
        return False
    try:
        return "kinescan_version" in read_json_object(path, error=CheckpointError)
    except CheckpointError:
        return False


def read_config(folder: Path) -> SavedModel:
    """What config.json in `folder` says, checked.

    Raises:
        CheckpointError: it is missing, broken, of something else, or of a newer kinescan.
    """
    path = folder / CONFIG_FILE
    if path.exists():
        require_regular(path, error=CheckpointError)
    else:
        held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "nothing"
        raise CheckpointError(
            f"{folder} has no {CONFIG_FILE}; it holds: {held}. A saved model has {WEIGHTS_FILE} and {CONFIG_FILE}; "
            "for the weights of a backbone use create_model(name, weights=folder)."
        )
    content = read_json_object(inside(folder, CONFIG_FILE, error=CheckpointError), error=CheckpointError)
    if "kinescan_version" not in content:
        raise CheckpointError(
            f"{path} is not the config of a kinescan model. "
            "For the weights of a backbone use create_model(name, weights=folder)."
        )
    _refuse_newer(path, content["kinescan_version"])
    kinds = {"model": str, "config": dict, "labels": list, "preprocessing": dict}
    wrong = [
        key
        for key, kind in kinds.items()
        if not (isinstance(content.get(key), kind) or (key == "labels" and content.get(key, "") is None))
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: {', '.join(wrong)} is missing or of the wrong kind. It is damaged; save or fetch the model again."
        )
    if not all(isinstance(label, str) for label in content["labels"] or ()):
        raise CheckpointError(f"{path}: labels must all be text. It is damaged; save or fetch the model again.")
    named = {key: content[key] for key in kinds} | {"model": current_model_name(content["model"])}
    module = content.get("module")
    if module is not None and not (isinstance(module, str) and is_module_name(module)):
        raise CheckpointError(f"{path}: module is not the name of a Python module. Save or fetch the model again.")
    timing = content.get("timing")
    if timing is not None and not isinstance(timing, dict):
        raise CheckpointError(f"{path}: timing must be an object. It is damaged; save or fetch the model again.")
    trained_in = content.get("trained_in")
    if trained_in is not None and trained_in not in PRECISIONS:
        raise CheckpointError(
            f"{path}: trained_in must be one of {', '.join(PRECISIONS)}, got {trained_in!r}. It is damaged; save or "
            "fetch the model again."
        )
    return SavedModel(
        kinescan_version=content["kinescan_version"],
        base=_base(path, content.get("base")),
        module=module,
        timing=timing,
        trained_in=trained_in,
        class_texts=checked_texts(content.get("class_texts"), path),
        num_clips=_num_clips(path, content.get("num_clips", 1)),
        symmetries=_symmetries(path, content.get("symmetries", [])),
        **named,
    )


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors in `folder`, on the CPU.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = folder / WEIGHTS_FILE
    if not os.path.lexists(path):
        raise CheckpointError(f"{folder} has no {WEIGHTS_FILE}. Save or fetch the model again.")
    return read_safetensors(inside(folder, WEIGHTS_FILE, error=CheckpointError))


def read_rules(folder: Path) -> dict[str, Any] | None:
    """What events.json in `folder` says of events, not looked at further; None where there is none.

    Raises:
        CheckpointError: it is damaged.
    """
    if not os.path.lexists(folder / RULES_FILE):
        return None
    return read_json_object(inside(folder, RULES_FILE, error=CheckpointError), error=CheckpointError)


def write(folder: Path, files: ModelFiles, *, with_weights: bool = True) -> None:
    """Writes a saved model: every file aside first, then renamed, so that a failure leaves the old ones.

    Args:
        folder: made if need be.
        files: what they are to hold.
        with_weights: False leaves the tensors out: they are there.

    Raises:
        CheckpointError: the folder cannot be made or written.
    """
    content = {key: value for key, value in asdict(files.saved).items() if value is not None or key == "labels"}
    if files.saved.num_clips == 1:
        # as files are that say nothing of clips
        del content["num_clips"]
    if not files.saved.symmetries:
        del content["symmetries"]
    with atomic_files(folder, last=CONFIG_FILE, error=CheckpointError, advice=_ADVICE) as aside:
        try:
            if with_weights:
                save_file(separate(files.tensors), aside / WEIGHTS_FILE, metadata={"format": "pt"})
        except SafetensorError as error:
            raise CheckpointError(f"{folder} cannot be written ({error}). {_ADVICE}") from error
        (aside / CONFIG_FILE).write_text(to_json(content, indent=2) + "\n", encoding="utf-8")
        (aside / CARD_FILE).write_text(files.card, encoding="utf-8", errors="backslashreplace")
        if files.rules is not None:
            (aside / RULES_FILE).write_text(to_json(files.rules, indent=2) + "\n", encoding="utf-8")


def separate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors on the CPU, contiguous, no two sharing memory (safetensors stores each on its own)."""
    seen: set[int] = set()
    separated = {}
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        separated[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return separated


def _num_clips(path: Path, recorded: object) -> int:
    if type(recorded) is not int or not 1 <= recorded <= MOST_CLIPS:
        raise CheckpointError(
            f"{path}: num_clips must be a whole number from 1 to {MOST_CLIPS}, got {recorded!r}. It is damaged; save "
            "or fetch the model again."
        )
    return recorded


def _symmetries(path: Path, recorded: object) -> tuple[Symmetry, ...]:
    if not (isinstance(recorded, list) and all(isinstance(one, dict) for one in recorded)):
        raise CheckpointError(
            f"{path}: symmetries must be a list of objects. It is damaged; save or fetch the model again."
        )
    try:
        return tuple(build_settings(Symmetry, one, where="symmetries") for one in recorded)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error} It is damaged; save or fetch the model again.") from None


def _base(path: Path, recorded: Any) -> dict[str, Any] | None:
    kept = None if recorded is None else {"source", "sha256"}
    if kept is not None and not (
        isinstance(recorded, dict) and all(isinstance(recorded.get(key), str) and recorded[key] for key in kept)
    ):
        raise CheckpointError(
            f"{path}: base must have the keys source and sha256, both text. It is damaged; save or fetch it again."
        )
    return recorded


def _refuse_newer(path: Path, version: object) -> None:
    ours, theirs = _release(__version__), _release(str(version))
    if theirs is None:
        raise CheckpointError(f"{path}: kinescan_version {version!r} is not a version. The file is damaged.")
    if ours is not None and theirs > ours:
        raise CheckpointError(
            f"{path} was written by kinescan {version}; this is {__version__}, which may not know all of it. "
            "Upgrade: pip install -U kinescan"
        )


def _release(version: str) -> tuple[int, int] | None:
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else None
