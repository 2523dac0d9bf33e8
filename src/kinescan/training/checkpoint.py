import hashlib
import json
import logging
import random
import shutil
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kinescan.errors import CheckpointError
from kinescan.models.saving import saved_model
from kinescan.models.saving.saved_model import WEIGHTS_FILE, ModelFiles
from kinescan.models.weights.tensor_file import PickleRefused, read_saved
from kinescan.runtime.atomic_write import atomic_folder, folder_aside, same_file
from kinescan.runtime.files import inside, read_json_object
from kinescan.runtime.run_folder import LAST

logger = logging.getLogger(__name__)

STATE_FILE = "training_state.pt"
CHECKSUM_FILE = "checksums.json"
OPTIMIZER_FILE = "optimizer.pt"
FORMAT = 3
_READ_FORMATS = (2, FORMAT)
"""In format 2, the state's file held what OPTIMIZER_FILE holds now."""
_LARGE = ("optimizer", "weights")
"""Fields of the state in a file of their own."""
_LATER = ("absent", "timing", "carried", "scaler")
"""Fields that states of earlier versions lack."""
_MOST_SETTINGS = 100_000
_ADVICE = "Free space or choose another output; what was saved before is still there."
EARLIER = "step-"
"""Start of the names of checkpoints that were last before; the step follows, in ten digits."""


@dataclass(kw_only=True)
class TrainState:
    """Where a run stands; with the weights beside it, all that the next step depends on.

    Attributes:
        epoch: the epoch under way, from 0.
        batches_done: batches of this epoch that are behind us; all of them while its evaluation is pending.
        step: optimizer steps taken (or skipped, where a batch held nothing readable).
        best_score: best score so far (top-1, or per-frame mAP), in [0, 1]; None before the first evaluation.
        best_epoch: the epoch that it belongs to.
        evaluations_without_gain: evaluations since `best_score` grew.
        stopped_early: no better score came for long enough, so the run is over.
        epoch_sums: running sums of this epoch's log line.
        log_lines: lines of log.jsonl that belong to this state; later ones are written again.
        unreadable: path -> why it could not be read, as met so far.
        absent: items whose files were not there when the run began; None where that was not checked.
        timing: how far apart the frames of the clips were, as `TimingCounts.to_plain` gives it.
        optimizer: the optimizer's state dict.
        weights: with an EMA, the weights that are trained, by name; the folder's model holds their EMA.
        rng: the random generators' states, of each process.
        scaler: the scale of the loss, with mixed precision "fp16".
        carried: the states that continue with the next batch, of each process; empty where each batch starts anew.
        settings: plain settings that the weights depend on, to be compared on resume.
    """

    epoch: int = 0
    batches_done: int = 0
    step: int = 0
    best_score: float | None = None
    best_epoch: int | None = None
    evaluations_without_gain: int = 0
    stopped_early: bool = False
    epoch_sums: dict[str, float] = field(default_factory=dict)
    log_lines: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    absent: list[int] | None = None
    timing: dict[str, list[int]] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    rng: list[dict[str, Any]] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)
    carried: list[dict[str, Tensor]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Known:
    """A file of a checkpoint that holds what another checkpoint is to hold, too.

    Attributes:
        path: where it stands.
        sha256: of its content.
    """

    path: Path
    sha256: str


def write_checkpoint(
    folder: Path,
    files: ModelFiles,
    state: TrainState | None,
    *,
    earlier: Path | None = None,
    known: Mapping[str, Known] | None = None,
) -> dict[str, Known]:
    """Writes a model folder, its training state and checksums beside `folder`, then renames it into place.

    Whatever happens on the way, `folder` holds either what it held before or the new checkpoint, complete; between the
    two renames `find_checkpoint` finds the new one under its other name.

    Args:
        folder: where the checkpoint is to stand, such as runs/a/checkpoints/last.
        files: of the model.
        state: where the run stands; None for a checkpoint to use but not to continue from.
        earlier: where the one before is kept, a name of `earlier_name` beside `folder`; None removes it.
        known: large files of a checkpoint of the same step, by name: they are linked, and neither written nor hashed.

    Returns:
        The large files of this one.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
    """
    with atomic_folder(folder, is_whole=_is_whole, earlier=earlier, error=CheckpointError, advice=_ADVICE) as new:
        wanted = (WEIGHTS_FILE,) if state is None else (WEIGHTS_FILE, OPTIMIZER_FILE)
        linked = {
            name: file.sha256
            for name, file in (known or {}).items()
            if name in wanted and same_file(file.path, new / name)
        }
        saved_model.write(new, files, with_weights=WEIGHTS_FILE not in linked)
        if state is not None:
            # Through files of Python, whose OSError says why a write failed; torch's own writer does not.
            if OPTIMIZER_FILE not in linked:
                with (new / OPTIMIZER_FILE).open("wb") as file:
                    torch.save({name: getattr(state, name) for name in _LARGE}, file)
            small = {name: value for name, value in vars(state).items() if name not in _LARGE}
            with (new / STATE_FILE).open("wb") as file:
                torch.save({"format": FORMAT, **small}, file)
        names = sorted(path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file())
        sums = {name: linked.get(name) or _sha256(new / name) for name in names}
        (new / CHECKSUM_FILE).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
    return {name: Known(folder / name, sums[name]) for name in wanted}


def earlier_name(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is kept when it is no longer `folder` itself.

    Example:
        >>> earlier_name(Path("checkpoints/last"), 120).name
        'step-0000000120'
    """
    return folder.with_name(f"{EARLIER}{step:010}")


def remove_earlier(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` of the checkpoints that were `folder` before.

    Raises:
        CheckpointError: one cannot be removed.
    """
    earlier = _earlier(folder)
    try:
        for old in earlier[keep:]:
            shutil.rmtree(old)
    except OSError as error:
        raise CheckpointError(f"{old}: the old checkpoint cannot be removed ({error}). Remove it by hand.") from error


def find_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint that stands for `folder`: itself, or what an interrupted renaming left beside it.

    Where neither is there, the newest one that was `folder` before.

    Args:
        folder: such as runs/a/checkpoints/last.

    Returns:
        The folder to read, or None when there is none.

    Raises:
        CheckpointError: there is one, but its files do not match their checksums.
    """
    earlier = _earlier(folder)
    for candidate in (folder, folder_aside(folder, "new"), folder_aside(folder, "old"), *earlier):
        if (candidate / CHECKSUM_FILE).is_file():
            problem = _damage(candidate)
            if problem is None:
                return candidate
            if candidate == folder:
                then = f"the run continues from {earlier[0]}" if earlier else "start anew in another output"
                raise CheckpointError(f"{folder}: {problem}. The checkpoint is damaged: delete it, and {then}.")
    if folder.is_dir() and (folder / STATE_FILE).exists():
        raise CheckpointError(f"{folder}: {CHECKSUM_FILE} is missing, so it is unfinished. Delete it and start anew.")
    return None


def checkpoint_left(last: Path) -> str:
    """A sentence for errors: which checkpoint of a run there is."""
    saved = find_checkpoint(last)
    return f"The checkpoint is {saved}; continue it with --resume." if saved else "There is no checkpoint yet."


def load_state(folder: Path) -> TrainState:
    """The training state of a checkpoint that `find_checkpoint` gave.

    Raises:
        CheckpointError: the folder holds a model only, or was written by another version.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {STATE_FILE}, so it holds a model but no run to resume.")
    try:
        values = read_saved(inside(folder, STATE_FILE, error=CheckpointError))
        written = values.pop("format", None) if isinstance(values, dict) else None
        if written == FORMAT:
            values |= _large(folder)
    except (CheckpointError, PickleRefused) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). Delete the checkpoint and start anew.") from error
    if written not in _READ_FORMATS:
        formats = " and ".join(map(str, _READ_FORMATS))
        raise CheckpointError(f"{path}: has format {written!r}, this version reads formats {formats}. Start anew.")
    return _checked(values, path)


def _large(folder: Path) -> dict[str, Any]:
    """The fields of the state that have a file of their own; the memory is the file's, which processes share."""
    content = read_saved(inside(folder, OPTIMIZER_FILE, error=CheckpointError), mapped=True)
    if not isinstance(content, dict) or content.keys() != set(_LARGE):
        raise CheckpointError(f"{OPTIMIZER_FILE} does not hold {' and '.join(_LARGE)}")
    return content


def _checked(values: dict[Any, Any], path: Path) -> TrainState:
    """The state with every field of its type, numbers 0 or more."""
    hints = typing.get_type_hints(TrainState)
    unknown = [key for key in values if key not in hints]
    lacking = [key for key in hints if key not in values and key not in _LATER]
    wrong = [key for key in hints if key in values and not _is_of(values[key], hints[key])]
    wrong += [] if "settings" in wrong or _is_plain(values.get("settings", {})) else ["settings"]
    if unknown or lacking or wrong:
        wrong_keys = ", ".join([*map(str, lacking), *wrong, *(f"{str(key)[:40]} (unknown)" for key in unknown)][:5])
        raise CheckpointError(
            f"{path} is not the state of a run: missing or of the wrong kind: {wrong_keys}. Delete the checkpoint and "
            "start anew."
        )
    return TrainState(**values)


def _is_plain(settings: Any) -> bool:
    """Whether settings are made of what JSON has, and end however one walks through them."""
    waiting, met = [settings], 0
    while waiting and met < _MOST_SETTINGS:
        value, met = waiting.pop(), met + 1
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            waiting.extend(value)
        elif not (value is None or isinstance(value, str | bool | int | float)):
            return False
    return not waiting


def _is_of(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_is_of(value, option) for option in typing.get_args(hint))
    origin = typing.get_origin(hint) or hint
    if origin is int:
        return type(value) is int and 0 <= value < 2**63
    if origin is float:
        return type(value) in (int, float)
    if origin is Any:
        return True
    if not isinstance(value, origin):
        return False
    inner = typing.get_args(hint)
    if origin is list:
        return all(_is_of(item, inner[0]) for item in value)
    if origin is dict:
        return all(_is_of(key, inner[0]) and _is_of(item, inner[1]) for key, item in value.items())
    return True


def read_rng(device: torch.device | None = None) -> dict[str, Any]:
    """The states of the generators of Python, NumPy and torch, as plain values and tensors.

    Args:
        device: whose generator is read, too; other devices are not touched.
    """
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    states: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if device is not None and device.type in ("cuda", "mps"):
        states["device"] = [device.type, _device_rng(device)]
    return states


def _device_rng(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.mps.get_rng_state()


def _write_device_rng(states: Mapping[str, Any], device: torch.device) -> None:
    """Puts the generator of a GPU back, and says where there is nothing to put back."""
    kind, state = states.get("device", [None, None])
    if kind is None and device.type == "cuda":
        # Earlier versions kept those of all GPUs that were visible.
        every = states.get("cuda", [])
        index = torch.cuda.current_device() if device.index is None else device.index
        kind, state = ("cuda", every[index]) if index < len(every) else (None, None)
    if kind != device.type:
        logger.warning(
            "the checkpoint holds no random state of a %s device: what is sampled there, as by dropout, differs from a "
            "run that was not interrupted",
            device.type,
        )
    elif kind == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.mps.set_rng_state(state)


def write_rng(states: Mapping[str, Any], device: torch.device | None = None) -> None:
    """Puts the generators back to where `read_rng` found them.

    Args:
        states: what `read_rng` gave.
        device: whose generator is put back, too; other devices are not touched.

    Raises:
        CheckpointError: the states are not those of `read_rng`.
    """
    try:
        version, internal, gauss = states["python"]
        random.setstate((version, tuple(internal), gauss))
        kind, keys, position, has_gauss, cached = states["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
        torch.set_rng_state(states["torch"])
        if device is not None and device.type in ("cuda", "mps"):
            _write_device_rng(states, device)
    # Each of the three libraries has its own ways to refuse a state.
    except Exception as error:
        raise CheckpointError(
            f"the states of the random generators cannot be put back ({error}). The checkpoint is damaged: delete it "
            "and start anew."
        ) from error


def _earlier(folder: Path) -> list[Path]:
    """The checkpoints that were `folder` before, the newest first; of `last` only, as the best has none."""
    if folder.name != LAST:
        return []
    return sorted(folder.parent.glob(f"{EARLIER}*"), reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_whole(folder: Path) -> bool:
    return (folder / CHECKSUM_FILE).is_file() and _damage(folder) is None


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        sums = read_json_object(inside(folder, CHECKSUM_FILE, error=CheckpointError), error=CheckpointError)
        files = {name: inside(folder, name, error=CheckpointError) for name in sums}
    except CheckpointError:
        return f"{CHECKSUM_FILE} cannot be read"
    for name, path in files.items():
        expected = sums[name]
        if not path.is_file():
            return f"{name} is missing"
        if _sha256(path) != expected:
            return f"{name} does not match its checksum"
    return None
