"""The state of one stream through a causal model as a file: written whole, read part by part."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kinescan.errors import CheckpointError
from kinescan.inference.exported import CausalModel
from kinescan.inference.state_tensors import ANEW, RECENT, SCANNER, state_of
from kinescan.layers.carried import shaped_like
from kinescan.models.first_frame import after_a_frame
from kinescan.models.pks4_state import STILL, PKS4State
from kinescan.models.still import StillState
from kinescan.runtime.atomic_write import atomic_write
from kinescan.runtime.escaping import to_json
from kinescan.runtime.files import parse_json, require_regular

_MARK, _SEEN, _WEIGHTS, _EVENTS = "kinescan_stream_state", "frames_seen", "weights", "events"
_LEFT = "left_time"
_ADVICE = "Name a file in a folder with room."


def save_stream_state(
    state: PKS4State,
    path: str | Path,
    *,
    model: CausalModel | None = None,
    weights: str | None = None,
    events: Mapping[str, Any] | None = None,
    left_time: float | None = None,
) -> None:
    """Writes a stream's state to a safetensors file, to continue later or elsewhere.

    An earlier file is there until the new one is whole.

    Args:
        state: of the stream.
        path: the file.
        model: whose weights the state belongs to; `load_stream_state` can compare them then.
        weights: the model's fingerprint, where it is known: taking it again costs as much as reading every parameter.
        events: JSON-like values that are kept beside the state, of the same moment; see `load_stream_events`.
        left_time: when its last frame was taken, in seconds as `time.time()` gives them; see `load_left_time`.

    Raises:
        CheckpointError: the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors().items()}
    metadata = {_MARK: "1", _SEEN: str(state.frames_seen)}
    if weights is not None or model is not None:
        metadata[_WEIGHTS] = weights or model.weights_fingerprint()  # type: ignore[union-attr]
    if events is not None:
        metadata[_EVENTS] = to_json(events)
    if left_time is not None:
        metadata[_LEFT] = repr(float(left_time))

    def refused(reason: str) -> CheckpointError:
        return CheckpointError(f"the stream's state cannot be written: {reason}")

    with atomic_write(path, error=refused, advice=_ADVICE) as aside:
        try:
            save_file(tensors, aside, metadata=metadata)
        except SafetensorError as error:
            raise refused(f"{path} ({error}). {_ADVICE}") from None


def load_stream_state(path: str | Path, *, model: CausalModel | None = None) -> PKS4State:
    """Reads what `save_stream_state` wrote; give it to `stream` or `StreamSession` with the same model.

    Args:
        path: the file.
        model: where the file says whose weights it belongs to, this model's are compared.

    Raises:
        CheckpointError: the file is missing, damaged, or something else; or it belongs to other weights.
    """

    def refused(reason: str) -> CheckpointError:
        return CheckpointError(f"{path}: the stream's state cannot be read: {reason}")

    require_regular(path, error=refused)
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise refused(f"{error}. {ANEW}") from None
    if _MARK not in metadata:
        raise CheckpointError(f"{path} holds tensors, but no stream's state. Give a file that save_stream_state wrote.")
    seen = metadata.get(_SEEN, "")
    if not (seen.isascii() and seen.isdigit() and len(seen) < 19):
        raise refused(f"{_SEEN} is {seen!r}, and must be a number of frames. {ANEW}")
    weights = metadata.get(_WEIGHTS)
    if model is not None and weights is not None and weights != model.weights_fingerprint():
        raise CheckpointError(f"{path} was written with other weights than those of {model.name}. {ANEW}")
    try:
        return state_of(tensors, int(seen))
    except CheckpointError as error:
        raise refused(str(error)) from None


def load_left_time(path: str | Path) -> float | None:
    """What `save_stream_state` was given as `left_time`; None in a file without.

    Raises:
        CheckpointError: the file is missing or damaged.
    """

    def refused(reason: str) -> CheckpointError:
        return CheckpointError(f"{path}: the time at which the stream was left cannot be read: {reason}")

    text = _metadata(path, refused).get(_LEFT)
    try:
        seconds = None if text is None else float(text)
    except ValueError:
        seconds = math.nan
    if seconds is not None and not math.isfinite(seconds):
        raise refused(f"{_LEFT} is {text!r}, and must be a number. {ANEW}")
    return seconds


def load_stream_events(path: str | Path) -> dict[str, Any] | None:
    """What `save_stream_state` was given as `events`; None in a file without.

    Raises:
        CheckpointError: the file is missing or damaged.
    """

    def refused(reason: str) -> CheckpointError:
        return CheckpointError(f"{path}: the stream's events cannot be read: {reason}")

    text = _metadata(path, refused).get(_EVENTS)
    if text is None:
        return None
    values = parse_json(text, path, error=refused)
    if not isinstance(values, dict):
        raise refused(f"they are not a JSON object. {ANEW}")
    return values


def _metadata(path: str | Path, refused: Callable[[str], CheckpointError]) -> dict[str, str]:
    require_regular(path, error=refused)
    try:
        with safe_open(str(path), "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError, ValueError) as error:
        raise refused(f"{error}. {ANEW}") from None


def fitting_state(state: PKS4State, model: CausalModel) -> PKS4State:
    """The state on the model's device.

    Raises:
        CheckpointError: it is the state of another model, or of several streams.
    """
    device = model.device
    recent = _fitting_recent(state.recent, model)
    still = state.still
    state = replace(state, recent=None, still=None)
    given = {name: tensor.to(device) for name, tensor in state.tensors().items()}
    if state.frames_seen:
        _, example = after_a_frame(model)
        still = _fitting_still(still, example.still, model)
        example = replace(example, still=None)
        expected = {name: tuple(tensor.shape) for name, tensor in example.tensors().items()}
        for name in sorted(expected.keys() | given.keys()):
            shape = tuple(given[name].shape) if name in given else None
            if shape != expected.get(name):
                raise CheckpointError(
                    f"the state does not fit {model.name}: {name} is {shape}, but this model's is "
                    f"{expected.get(name)}. Give the state of one stream of the same model."
                )
        # A file does not say in what the tensors of a scanner of somebody's own were held; the model does.
        scanner = shaped_like(example.scanner, given, SCANNER)
        return replace(state_of(given, state.frames_seen), scanner=scanner, recent=recent, still=still)
    return state_of(given, state.frames_seen)


def _fitting_recent(recent: Tensor | None, model: CausalModel) -> Tensor | None:
    """What a stream's average has taken, on the CPU, as it is kept; None in older files.

    Raises:
        CheckpointError: it is that of a model with other classes.
    """
    width = model.config.num_classes + 2
    if recent is not None and (recent.ndim != 2 or recent.shape[1] != width or not len(recent)):
        raise CheckpointError(
            f"the state does not fit {model.name}: {RECENT} is {tuple(recent.shape)}, but this model's has {width} "
            "columns. Give the state of one stream of the same model."
        )
    return None if recent is None else recent.detach().cpu().double()


def _fitting_still(still: StillState | None, example: StillState | None, model: CausalModel) -> StillState | None:
    """What a stream keeps of patches that stand still; None where this one skips none, or the one before did not.

    Raises:
        CheckpointError: it is that of another model.
    """
    if still is None or example is None:
        return None
    given, expected = still.tensors(STILL), example.tensors(STILL)
    for name in sorted(given.keys() | expected.keys()):
        if name not in given or name not in expected or given[name].shape != expected[name].shape:
            raise CheckpointError(
                f"the state does not fit {model.name}: {name} is another than this model's. Give the state of one "
                "stream of the same model."
            )
    return StillState.from_tensors({name: tensor.to(model.device) for name, tensor in given.items()}, STILL)
