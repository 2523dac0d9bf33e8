"""A stream as one safetensors file: its tensors, and the rest as JSON in the file's header."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kinescan.errors import CheckpointError
from kinescan.runtime.atomic_write import ADVICE, atomic_write
from kinescan.runtime.files import parse_json, require_regular
from kinescan.vlm.cache import CompressedState, StreamCache
from kinescan.vlm.families import Features
from kinescan.vlm.intake import Intake, PendingPatch
from kinescan.vlm.memory import Remembered
from kinescan.vlm.policy import POLICIES, Policy
from kinescan.vlm.store import CacheShape

HEADER_KEY = "kinescan_stream"
FORMAT = 2


def write_snapshot(path: str | Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Writes tensors and facts to one file; an old one is replaced only once the new one is whole.

    Raises:
        CheckpointError: the file cannot be written.
    """
    header = {HEADER_KEY: json.dumps({"format": FORMAT, **facts})}
    with atomic_write(path, error=CheckpointError) as aside:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside, metadata=header)
        except SafetensorError as error:
            raise CheckpointError(f"{path} cannot be written ({error}). {ADVICE}") from None


def read_snapshot(path: str | Path, *, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of a file that `write_snapshot` wrote.

    Args:
        path: the file.
        tensors: False reads the facts alone, of a file that may hold gigabytes.

    Raises:
        CheckpointError: the file is missing, or it holds something else.
    """
    require_regular(path, error=CheckpointError)
    try:
        with safe_open(str(path), framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER_KEY)
            if header is None:
                raise CheckpointError(f"{path} holds no stream. Give a file that stream.save wrote.")
            facts = parse_json(header, path, error=CheckpointError)
            if not isinstance(facts, dict) or facts.get("format") != FORMAT:
                found = facts.get("format") if isinstance(facts, dict) else None
                raise CheckpointError(
                    f"{path} has format {found!r}; this version reads {FORMAT}. Use the version that wrote it."
                )
            names = file.keys() if tensors else ()
            return {name: file.get_tensor(name) for name in names}, facts
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a stream: {error}. Give a file that stream.save wrote."
        ) from None


def holds_stream(path: str | Path) -> bool:
    """Whether a file is one that `write_snapshot` wrote, of whatever version; only its header is read."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return HEADER_KEY in (file.metadata() or {})
    except (OSError, SafetensorError, ValueError):
        return False


@contextmanager
def understood(path: str | Path) -> Iterator[None]:
    """Whatever is missing or impossible in a file's facts becomes an error that names the file.

    Raises:
        CheckpointError: something is.
    """
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path} is damaged: {what}. Give a file that stream.save wrote.") from None


def pack_policy(policy: Policy) -> dict[str, Any]:
    """Name and fields of a policy.

    Raises:
        CheckpointError: its class is not in `POLICIES`.
    """
    name = next((name for name, cls in POLICIES.items() if cls is type(policy)), None)
    if name is None:
        raise CheckpointError(f"a {type(policy).__name__} cannot be saved: add its class to POLICIES first.")
    return {"name": name, "fields": asdict(policy)}


def unpack_policy(stored: Mapping[str, Any]) -> Policy:
    """The policy that `pack_policy` described.

    Raises:
        CheckpointError: the name is unknown here.
    """
    if stored["name"] not in POLICIES:
        raise CheckpointError(f"the saved policy {stored['name']!r} is not in POLICIES. Add its class first.")
    return POLICIES[stored["name"]](**stored["fields"])


def describe_shape(shape: CacheShape) -> dict[str, Any]:
    """Sizes of keys and values as plain values; the device may differ after loading."""
    plain = {name: getattr(shape, name) for name in ("num_layers", "key_heads", "head_dim")}
    return {**plain, "dtype": str(shape.dtype).removeprefix("torch.")}


def pack_cache(cache: StreamCache) -> dict[str, Tensor]:
    """All tensors of a cache, named by layer."""
    tensors = {}
    for index, layer in enumerate(cache.layers):
        for number, chunk in enumerate(layer.full_cache.used_chunks()):
            for part, tensor in enumerate(chunk):
                tensors[f"layer{index}.chunk{number}.part{part}"] = tensor
        for name in ("keys", "values", "positions", "history"):
            if (tensor := getattr(layer.state, name)) is not None:
                tensors[f"layer{index}.state.{name}"] = tensor
        if (remembered := layer.remembered) is not None:
            parts = dict(zip(("positions", "patch_indices", "counts"), remembered.everything(), strict=True))
            if remembered.scores is not None:
                parts["scores"] = remembered.scores
            tensors |= {f"layer{index}.memory.{name}": tensor for name, tensor in parts.items()}
    return tensors


def pack_limit(cache: StreamCache) -> dict[str, Any]:
    """What a cache with a limit knows besides its tensors; nothing where there is no limit."""
    return {} if cache.memory_tokens is None else {"num_seen": cache.num_seen, "pinned": cache.pinned}


def unpack_cache(cache: StreamCache, tensors: dict[str, Tensor], num_tokens: int, num_seen: int) -> None:
    """Fills a fresh cache of the same shape, storage and chunk size; takes what it uses out of `tensors`.

    Args:
        cache: a fresh one, which is filled.
        tensors: of a file.
        num_tokens: that the full KV cache holds.
        num_seen: that came; as many, where it has no limit.

    Raises:
        CheckpointError: a part is missing, or not what a cache holds.
    """
    shape, device = cache.shape, cache.shape.device
    whole_number(num_tokens, "num_tokens")
    for index, layer in enumerate(cache.layers):
        store = layer.full_cache
        chunks = []
        for start in range(0, num_tokens, store.chunk_tokens):
            name = f"layer{index}.chunk{start // store.chunk_tokens}.part"
            length = min(store.chunk_tokens, num_tokens - start)
            parts = _chunk_parts(cache.shape, store.storage)
            chunks.append(
                tuple(
                    _taken(tensors, f"{name}{number}", (1, shape.key_heads, length, width), dtype)
                    for number, (width, dtype) in enumerate(parts)
                )
            )
        store.restore(chunks, num_tokens)
        layer.state = _unpack_state(cache, f"layer{index}.state.", tensors, num_seen, device)
        if layer.remembered is not None:
            prefix = f"layer{index}.memory."
            layer.remembered = _unpack_remembered(layer.remembered, prefix, tensors, num_tokens, num_seen)


def _chunk_parts(shape: CacheShape, storage: str) -> list[tuple[int, torch.dtype]]:
    """Width and dtype of each tensor in a chunk."""
    if storage == "int8":
        return 2 * [(shape.head_dim, torch.int8), (1, torch.float32)]
    return 2 * [(shape.head_dim, shape.dtype)]


def _unpack_state(
    cache: StreamCache, prefix: str, tensors: dict[str, Tensor], num_tokens: int, device: torch.device
) -> CompressedState:
    shape = cache.shape
    kept = tensors[f"{prefix}positions"].shape[-1]
    most = 0 if cache.budget is None else num_tokens
    if kept > most:
        raise CheckpointError(f"{prefix}positions holds {kept} keys, and at most {most} are possible.")
    vectors = (1, shape.key_heads, kept, shape.head_dim)
    keys, values = (_taken(tensors, f"{prefix}{name}", vectors, shape.dtype) for name in ("keys", "values"))
    positions = _taken(tensors, f"{prefix}positions", (shape.key_heads, kept), torch.int64)
    _check_positions(positions, f"{prefix}positions", num_tokens)
    history = None
    if cache.policy.accumulates and cache.budget is not None and kept:
        history = _taken(tensors, f"{prefix}history", (shape.key_heads, kept), torch.float32).to(device)
    return CompressedState(
        keys=keys.to(device), values=values.to(device), positions=positions.to(device), history=history
    )


def _unpack_remembered(
    fresh: Remembered, prefix: str, tensors: dict[str, Tensor], num_tokens: int, num_seen: int
) -> Remembered:
    device, sizes = fresh.positions.device, (len(fresh.positions), num_tokens)
    if f"{prefix}places" in tensors:
        # the name of patch indices in files of version 0.1
        tensors[f"{prefix}patch_indices"] = tensors.pop(f"{prefix}places")
    positions, patch_indices = (
        _taken(tensors, f"{prefix}{name}", sizes, torch.int64) for name in ("positions", "patch_indices")
    )
    counts = _taken(tensors, f"{prefix}counts", sizes, torch.float32)
    _check_positions(positions, f"{prefix}positions", num_seen)
    scores = None
    if fresh.scores is not None:
        scores = _taken(tensors, f"{prefix}scores", sizes, torch.float32).to(device)
    return Remembered(
        seen=num_seen,
        positions=positions.to(device),
        patch_indices=patch_indices.to(device),
        counts=counts.to(device),
        scores=scores,
    )


def _check_positions(positions: Tensor, name: str, num_seen: int) -> None:
    if positions.numel() == 0:
        return
    if int(positions.min()) < 0 or int(positions.max()) >= num_seen or bool((positions.diff() <= 0).any()):
        raise CheckpointError(f"{name} are not ascending indices of {num_seen} tokens.")


def _taken(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor out of those of a file, of the shape and type that it must have."""
    if name not in tensors:
        raise CheckpointError(f"{name} is missing. Give a file that stream.save wrote.")
    tensor = tensors.pop(name)
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        given = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        raise CheckpointError(
            f"{name} is {given}, and must be {str(dtype).removeprefix('torch.')} {list(shape)}. Save the stream again."
        )
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{name} holds NaN or infinity. Save the stream again.")
    return tensor


def whole_number(value: Any, name: str) -> int:
    """The value, where it is a whole number from 0 on.

    Raises:
        CheckpointError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise CheckpointError(f"{name} must be a whole number from 0 on, got {value!r}. Save the stream again.")
    return value


def finite(value: Any, name: str) -> float:
    """The value, where it is a finite number.

    Raises:
        CheckpointError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(f"{name} must be a finite number, got {value!r}. Save the stream again.")
    return float(value)


def pack_intake(intake: Intake) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Frames and patches that wait for their step."""
    tensors = {f"frame{index}": frame for index, (frame, _) in enumerate(intake.frames)}
    patches = []
    for index, patch in enumerate(intake.patches):
        tensors[f"patch{index}.tokens"] = patch.features.tokens
        for level, tensor in enumerate(patch.features.deepstack):
            tensors[f"patch{index}.deepstack{level}"] = tensor
        levels = len(patch.features.deepstack)
        patches.append({"number": patch.number, "seconds": patch.seconds, "levels": levels})
    facts = {
        "num_frames": intake.num_frames,
        "last_seconds": intake.last_seconds,
        "newest_seconds": intake.newest_seconds,
        "base_seconds": intake.base_seconds,
        "frame_size": intake.frame_size,
        "grid": intake.grid,
        "frame_seconds": [seconds for _, seconds in intake.frames],
        "patches": patches,
    }
    return tensors, facts


def unpack_intake(intake: Intake, tensors: dict[str, Tensor], facts: Mapping[str, Any], device: torch.device) -> None:
    """Fills a fresh intake; takes what it uses out of `tensors`.

    Raises:
        CheckpointError: a part is missing, or not what an intake holds.
    """
    intake.num_frames = whole_number(facts["num_frames"], "num_frames")
    intake.last_seconds = None if facts["last_seconds"] is None else finite(facts["last_seconds"], "last_seconds")
    # not in files of version 0.1
    intake.newest_seconds = finite(facts.get("newest_seconds", intake.last_seconds or 0.0), "newest_seconds")
    intake.base_seconds = finite(facts["base_seconds"], "base_seconds")
    intake.frame_size, intake.grid = _pair(facts["frame_size"], "frame_size"), _pair(facts["grid"], "grid")
    for index, seconds in enumerate(facts["frame_seconds"]):
        if intake.frame_size is None:
            raise CheckpointError("frame_size is missing, and frames wait. Save the stream again.")
        frame = _taken(tensors, f"frame{index}", (3, *intake.frame_size), torch.uint8)
        intake.frames.append((frame, finite(seconds, "frame_seconds")))
    if len(intake.frames) >= max(2, intake.family.temporal_patch):
        raise CheckpointError(f"{len(intake.frames)} frames wait, which is a whole patch. Save the stream again.")
    width, dtype = intake.family.embedding.shape[1], None
    for index, patch in enumerate(facts["patches"]):
        if intake.grid is None:
            raise CheckpointError("grid is missing, and patches wait. Save the stream again.")
        shape = (intake.grid[0] * intake.grid[1], width)
        names = ["tokens", *(f"deepstack{level}" for level in range(whole_number(patch["levels"], "levels")))]
        dtype = tensors[f"patch{index}.tokens"].dtype
        tokens, *levels = (_taken(tensors, f"patch{index}.{name}", shape, dtype).to(device) for name in names)
        first, last = patch["seconds"]
        intake.patches.append(
            PendingPatch(
                features=Features(tokens=tokens, grid=intake.grid, deepstack=tuple(levels)),
                number=whole_number(patch["number"], "number"),
                seconds=(finite(first, "seconds"), finite(last, "seconds")),
            )
        )


def _pair(value: Any, name: str) -> tuple[int, int] | None:
    if value is None:
        return None
    first, second = value
    return whole_number(first, name), whole_number(second, name)
