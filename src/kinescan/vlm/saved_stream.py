"""A stream from the file that it was saved to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from torch import nn

from kinescan.errors import CheckpointError
from kinescan.settings import build_settings
from kinescan.vlm.chat import PatchPosition
from kinescan.vlm.config import StreamConfig
from kinescan.vlm.families import PixelSettings, Positions
from kinescan.vlm.snapshot import (
    describe_shape,
    finite,
    read_snapshot,
    understood,
    unpack_cache,
    unpack_intake,
    unpack_policy,
    whole_number,
)
from kinescan.vlm.stream import VideoStream, open_stream


def load_stream(
    path: str | Path,
    model: nn.Module,
    processor: Any = None,
    *,
    opening: str | None = None,
    system: str | None = None,
) -> VideoStream:
    """A stream that `VideoStream.save` wrote, to be pushed to and asked as if it had not been saved in between.

    Args:
        path: the file.
        model: the model it was opened with, on any device.
        processor: as for `open_stream`; frames are prepared as the saved stream did.
        opening: as for `open_stream`; used only if nothing has been pushed yet.
        system: as for `open_stream`; used only if nothing has been pushed yet.

    Raises:
        CheckpointError: the file holds no stream, or one of another model or of other weights; or parts of it are
            missing or damaged.
    """
    tensors, facts = read_snapshot(path)
    with understood(path):
        config, pixels = _settings_of(facts)
        stream = open_stream(model, processor, **config, pixels=pixels, opening=opening, system=system)
        given = {
            "model_type": stream.family.name,
            "shape": describe_shape(stream.cache.shape),
            "weights": stream.fingerprint(),
        }
        for name, value in given.items():
            if facts[name] != value:
                raise CheckpointError(
                    f"it was saved with another model: {name} is {facts[name]}, this one's is {value}. Load that one."
                )
        num_tokens = whole_number(facts["num_tokens"], "num_tokens")
        num_seen = num_tokens
        if stream.cache.memory_tokens is not None:
            num_seen = whole_number(facts["num_seen"], "num_seen")
            ranges = [[whole_number(side, "pinned") for side in pair] for pair in facts["pinned"]]
            stream.cache.pinned = [(start, stop) for start, stop in ranges]
        unpack_cache(stream.cache, tensors, num_tokens, num_seen)
        unpack_intake(stream.intake, tensors, facts["intake"], stream.cache.shape.device)
        if tensors:
            raise CheckpointError(f"{sorted(tensors)[0]} belongs to no part of a stream. Save the stream again.")
        stream.cache.query_key_pairs = whole_number(facts["query_key_pairs"], "query_key_pairs")
        stream.positions = _unpack_positions(facts["positions"])
        horizon = facts["horizon_positions"]
        stream.horizon_positions = None if horizon is None else whole_number(horizon, "horizon_positions")
        # Streams that were saved by version 0.1 call it "place".
        position = facts["place"] if "place" in facts else facts["patch_position"]
        if position not in get_args(PatchPosition):
            raise CheckpointError(
                f"patch_position must be one of {', '.join(get_args(PatchPosition))}, got {position!r}."
            )
        stream.patch_position = position
        # not in files written before answers could be penalised for repetitions
        stream.text_ids = {whole_number(token, "text_ids") for token in facts.get("text_ids", ())}
    return stream


def saved_settings(path: str | Path) -> tuple[StreamConfig, PixelSettings]:
    """What a stream was opened with that `VideoStream.save` wrote.

    Raises:
        CheckpointError: the file holds no stream, or is damaged.
    """
    _, facts = read_snapshot(path, tensors=False)
    with understood(path):
        config, pixels = _settings_of(facts)
        return StreamConfig(**config), pixels


def _settings_of(facts: Mapping[str, Any]) -> tuple[dict[str, Any], PixelSettings]:
    config = {**facts["config"], "policy": unpack_policy(facts["config"]["policy"])}
    if "budget_shares" in config:
        # the name of budget_ratios in files of version 0.1
        config["budget_ratios"] = config.pop("budget_shares")
    if "memory_policy" in config:
        config["memory_policy"] = unpack_policy(config["memory_policy"])
    return config, build_settings(PixelSettings, facts["pixels"])


def _unpack_positions(facts: Mapping[str, Any]) -> Positions:
    start = facts["video_start"]
    return Positions(
        upcoming=whole_number(facts["upcoming"], "upcoming"),
        video_start=None if start is None else whole_number(start, "video_start"),
        video_seconds=finite(facts["video_seconds"], "video_seconds"),
        # not in files written before Qwen2-VL was supported, the only family that needs it
        video_patches=whole_number(facts.get("video_patches", 0), "video_patches"),
    )
