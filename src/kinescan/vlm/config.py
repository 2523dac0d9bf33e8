import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from kinescan.errors import ConfigError
from kinescan.settings import renamed
from kinescan.vlm.memory import check_memory_policy, limit_tokens, read_amount
from kinescan.vlm.policy import Policy, make_policy
from kinescan.vlm.store import CacheShape, Storage, check_storage

MAX_FPS = 1000.0
MAX_CHUNK_TOKENS = 2**20


@renamed(budget_shares="budget_ratios")
@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Settings of a stream.

    Attributes:
        budget: keys of the compressed state in each layer and key head; None for no limit.
        budget_ratios: how the layers divide `budget` times their number: one positive number for each decoder layer;
            None gives all alike.
        policy: what chooses them: a name in `POLICIES`, or a policy.
        horizon_frames: frames that the stream will not exceed. Needed where rotary frequencies follow the length
            (InternVL3), since they are fixed for this many; elsewhere None means no limit.
        horizon_is_limit: False takes more frames than `horizon_frames` all the same, where frequencies do not follow
            the length; the number stands for the length of the video alone (Qwen3-VL, VideoLLaMA3: pixels of a frame).
        horizon_text_tokens: room for questions and answers within the horizon, in tokens.
        fps: frames per second that are pushed, where `push` is given no times; up to 1000.
        patches_per_step: temporal patches (one frame, or two that the family merges) that enter at once.
        storage: of the full KV cache: "memory", "offload", "int8" or "disk".
        chunk_tokens: the full KV cache grows by this many tokens.
        hf_compat: positions and prompts as transformers 5 has them where it departs from how the family was trained.
        memory_budget: what the full KV cache takes at most: a number of tokens, or a size with its unit ("4GiB",
            "500MB", "20000 tokens"); None for no limit.
        memory_policy: what stays within it: a name in `POLICIES`, or a policy; the text before the video, and kept
            questions and answers, stay in any case.
        retrieved_chunks: chunks of the full KV cache that an answer reads at most, in each layer, those whose keys
            match the question best; None for all.
        compiled: run the decoder's layers, but for their attention, through torch.compile. The first steps take longer,
            while it compiles; on a CPU it needs a C++ compiler.

    Source: StateKV (arXiv 2605.31598).
    """

    budget: int | None = 4096
    budget_ratios: tuple[float, ...] | None = None
    policy: str | Policy = "statekv"
    horizon_frames: int | None = None
    horizon_is_limit: bool = True
    horizon_text_tokens: int = 2048
    fps: float = 1.0
    patches_per_step: int = 1
    storage: Storage = "memory"
    chunk_tokens: int = 4096
    hf_compat: bool = False
    memory_budget: int | str | None = None
    memory_policy: str | Policy = "redundancy"
    retrieved_chunks: int | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        for name in ("budget", "horizon_frames", "horizon_text_tokens", "patches_per_step", "chunk_tokens",
                     "retrieved_chunks"):  # fmt: skip
            value = getattr(self, name)
            if value is not None or name not in ("budget", "horizon_frames", "retrieved_chunks"):
                check_count(name, value)
                object.__setattr__(self, name, int(value))
        if self.chunk_tokens > MAX_CHUNK_TOKENS:
            raise ConfigError(f"chunk_tokens must be at most {MAX_CHUNK_TOKENS}, got {self.chunk_tokens}.")
        if self.budget_ratios is not None:
            object.__setattr__(self, "budget_ratios", checked_ratios(self.budget_ratios))
        check_fps(self.fps)
        object.__setattr__(self, "fps", float(self.fps))
        for name in ("hf_compat", "horizon_is_limit", "compiled"):
            check_flag(name, getattr(self, name))
        check_storage(self.storage)
        if make_policy(self.policy).needs_patch_indices:
            raise ConfigError(
                f"policy {self.policy!r} is for memory_policy. Choose another one for the compressed state."
            )
        memory_policy = make_policy(self.memory_policy, setting="memory_policy")
        if self.memory_budget is not None:
            read_amount(self.memory_budget)
            check_memory_policy(memory_policy)

    def memory_tokens(self, shape: CacheShape) -> int | None:
        """Tokens that the full KV cache holds at most, in each layer and key head; None for no limit.

        Raises:
            ConfigError: the memory holds no token.
        """
        if self.memory_budget is None:
            return None
        bytes_per_token = shape.bytes_per_token(self.storage)
        return limit_tokens(read_amount(self.memory_budget), bytes_per_token, shape.num_layers * shape.key_heads)


def check_count(name: str, value: Any) -> None:
    """Raises ConfigError where a value is not a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name} must be a whole number, got {value!r} ({type(value).__name__}).")
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, got {value}.")


def check_flag(name: str, value: Any) -> None:
    """Raises ConfigError where a value is neither True nor False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, got {value!r}.")


def checked_ratios(ratios: Any) -> tuple[float, ...]:
    """Ratios of layers as a tuple of numbers.

    Raises:
        ConfigError: they are something other than positive finite numbers.
    """
    given = tuple(ratios) if isinstance(ratios, list | tuple) else None
    if not given or not all(is_finite(ratio) and float(ratio) > 0 for ratio in given):
        raise ConfigError(f"budget_ratios must hold a positive number for each decoder layer, got {ratios!r}.")
    return tuple(float(ratio) for ratio in given)


def is_finite(value: Any) -> bool:
    """Whether a value is a number that a float can hold.

    Example:
        >>> is_finite(2), is_finite(10**400), is_finite(float("nan")), is_finite("2"), is_finite(True)
        (True, False, False, False, False)
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def check_fps(fps: Any) -> None:
    """Raises ConfigError where a value is not a frame rate."""
    if not is_finite(fps) or not 0 < float(fps) <= MAX_FPS:
        raise ConfigError(f"fps must be positive, got {fps!r}. Give frames per second, up to {MAX_FPS:g}.")
