from dataclasses import dataclass

from kinescan.errors import ConfigError
from kinescan.vlm.cache import Storage, check_storage
from kinescan.vlm.policy import Policy, make_policy


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Settings of a stream.

    Attributes:
        budget: keys of the compressed state in each layer and key head; None for no limit.
        policy: what chooses them: a name in `POLICIES`, or a policy.
        horizon_frames: frames that the stream will not exceed. Needed where rotary frequencies follow the length
            (InternVL3), since they are fixed for this many; elsewhere None means no limit.
        horizon_text_tokens: room for questions and answers within the horizon, in tokens.
        fps: frames per second that are pushed, where `push` is given no times.
        patches_per_step: temporal patches (one frame, or two that the family merges) that enter at once.
        storage: of the detailed cache: "memory", "offload" or "int8".
        chunk_tokens: the detailed cache grows by this many tokens.
        hf_compat: positions and prompts as transformers 5 has them where it departs from how the family was trained.
    """

    budget: int | None = 4096
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
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")
        if not self.fps > 0:
            raise ConfigError(f"fps must be positive, got {self.fps}.")
        check_storage(self.storage)
        make_policy(self.policy)
