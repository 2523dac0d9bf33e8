import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from kinescan.errors import ConfigError
from kinescan.vlm.cache import Storage, check_storage
from kinescan.vlm.policy import Policy, make_policy

MAX_FPS = 1000.0
MAX_CHUNK_TOKENS = 2**20


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Settings of a stream.

    Attributes:
        budget: keys of the compressed state in each layer and key head; None for no limit.
        budget_shares: how the layers share `budget` times their number: one positive number for each decoder layer;
            None gives all alike.
        policy: what chooses them: a name in `POLICIES`, or a policy.
        horizon_frames: frames that the stream will not exceed. Needed where rotary frequencies follow the length
            (InternVL3), since they are fixed for this many; elsewhere None means no limit.
        horizon_text_tokens: room for questions and answers within the horizon, in tokens.
        fps: frames per second that are pushed, where `push` is given no times; up to 1000.
        patches_per_step: temporal patches (one frame, or two that the family merges) that enter at once.
        storage: of the full KV cache: "memory", "offload" or "int8".
        chunk_tokens: the full KV cache grows by this many tokens.
        hf_compat: positions and prompts as transformers 5 has them where it departs from how the family was trained.
    """

    budget: int | None = 4096
    budget_shares: tuple[float, ...] | None = None
    policy: str | Policy = "statekv"
    horizon_frames: int | None = None
    horizon_text_tokens: int = 2048
    fps: float = 1.0
    patches_per_step: int = 1
    storage: Storage = "memory"
    chunk_tokens: int = 4096
    hf_compat: bool = False

    def __post_init__(self) -> None:
        for name in ("budget", "horizon_frames", "horizon_text_tokens", "patches_per_step", "chunk_tokens"):
            value = getattr(self, name)
            if value is not None or name not in ("budget", "horizon_frames"):
                check_count(name, value)
                object.__setattr__(self, name, int(value))
        if self.chunk_tokens > MAX_CHUNK_TOKENS:
            raise ConfigError(f"chunk_tokens must be at most {MAX_CHUNK_TOKENS}, got {self.chunk_tokens}.")
        if self.budget_shares is not None:
            object.__setattr__(self, "budget_shares", checked_shares(self.budget_shares))
        check_fps(self.fps)
        object.__setattr__(self, "fps", float(self.fps))
        if not isinstance(self.hf_compat, bool):
            raise ConfigError(f"hf_compat must be True or False, got {self.hf_compat!r}.")
        check_storage(self.storage)
        make_policy(self.policy)


def check_count(name: str, value: Any) -> None:
    """Raises ConfigError where a value is not a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name} must be a whole number, got {value!r} ({type(value).__name__}).")
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, got {value}.")


def checked_shares(shares: Any) -> tuple[float, ...]:
    """Shares of layers as a tuple of numbers.

    Raises:
        ConfigError: they are something else than positive finite numbers.
    """
    given = tuple(shares) if isinstance(shares, list | tuple) else None
    if not given or not all(
        isinstance(share, Real) and not isinstance(share, bool) and 0 < float(share) < math.inf for share in given
    ):
        raise ConfigError(f"budget_shares must hold a positive number for each decoder layer, got {shares!r}.")
    return tuple(float(share) for share in given)


def check_fps(fps: Any) -> None:
    """Raises ConfigError where a value is not a frame rate."""
    is_number = isinstance(fps, Real) and not isinstance(fps, bool)
    if not is_number or not math.isfinite(fps) or not 0 < float(fps) <= MAX_FPS:
        raise ConfigError(f"fps must be positive, got {fps!r}. Give frames per second, up to {MAX_FPS:g}.")
