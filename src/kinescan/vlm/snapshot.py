"""A stream as one safetensors file: its tensors, and the rest as JSON in the file's header."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kinescan.errors import CheckpointError
from kinescan.vlm.cache import CacheShape, CompressedState, StreamCache
from kinescan.vlm.families import Features
from kinescan.vlm.intake import Intake, PendingPatch
from kinescan.vlm.policy import POLICIES, Policy

HEADER_KEY = "kinescan_stream"
FORMAT = 1


def write_snapshot(path: str | Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Writes tensors and facts to one file; an old one is replaced only once the new one is whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    header = {HEADER_KEY: json.dumps({"format": FORMAT, **facts})}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside, metadata=header)
    aside.replace(path)


def read_snapshot(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of a file that `write_snapshot` wrote.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER_KEY)
            if header is None:
                raise CheckpointError(f"{path} holds no stream. Give a file that stream.save wrote.")
            facts = json.loads(header)
            if facts["format"] != FORMAT:
                raise CheckpointError(
                    f"{path} has format {facts['format']}; this version reads {FORMAT}. Use the version that wrote it."
                )
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a stream: {error}. Give a file that stream.save wrote."
        ) from None


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
        CheckpointError: there is none of that name here.
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
        for number, chunk in enumerate(layer.detailed.used_chunks()):
            for part, tensor in enumerate(chunk):
                tensors[f"layer{index}.chunk{number}.part{part}"] = tensor
        for name in ("keys", "values", "positions", "history"):
            if (tensor := getattr(layer.state, name)) is not None:
                tensors[f"layer{index}.state.{name}"] = tensor
    return tensors


def unpack_cache(cache: StreamCache, tensors: Mapping[str, Tensor], num_tokens: int) -> None:
    """Fills a fresh cache of the same shape, storage and chunk size."""
    device = cache.shape.device
    for index, layer in enumerate(cache.layers):
        chunks = []
        for number in range(-(-num_tokens // layer.detailed.chunk_tokens)):
            name = f"layer{index}.chunk{number}.part"
            count = sum(key.startswith(name) for key in tensors)
            chunks.append(tuple(tensors[f"{name}{part}"] for part in range(count)))
        layer.detailed.restore(chunks, num_tokens)
        state = {
            name: tensors[f"layer{index}.state.{name}"].to(device)
            for name in ("keys", "values", "positions", "history")
            if f"layer{index}.state.{name}" in tensors
        }
        layer.state = CompressedState(**state)


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
        "frame_size": intake.frame_size,
        "grid": intake.grid,
        "frame_seconds": [seconds for _, seconds in intake.frames],
        "patches": patches,
    }
    return tensors, facts


def unpack_intake(
    intake: Intake, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], device: torch.device
) -> None:
    """Fills a fresh intake."""
    intake.num_frames = facts["num_frames"]
    intake.frame_size = None if facts["frame_size"] is None else tuple(facts["frame_size"])
    intake.grid = None if facts["grid"] is None else tuple(facts["grid"])
    intake.frames = [(tensors[f"frame{index}"], seconds) for index, seconds in enumerate(facts["frame_seconds"])]
    for index, patch in enumerate(facts["patches"]):
        assert intake.grid is not None, "a patch that waits has set the grid"
        levels = range(patch["levels"])
        features = Features(
            tokens=tensors[f"patch{index}.tokens"].to(device),
            grid=intake.grid,
            deepstack=tuple(tensors[f"patch{index}.deepstack{level}"].to(device) for level in levels),
        )
        first, last = patch["seconds"]
        intake.patches.append(PendingPatch(features=features, number=patch["number"], seconds=(first, last)))
