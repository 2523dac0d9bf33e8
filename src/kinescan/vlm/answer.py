"""What a stream gives back."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from kinescan.settings import renamed
from kinescan.vlm.cache import StreamCache


@dataclass(frozen=True, kw_only=True)
class AnswerToken:
    """One token of an answer, as it comes.

    Attributes:
        token_id: in the model's vocabulary.
        text: what it adds to the answer's text; empty while a character is incomplete, or without a tokenizer.
        logits: [V] scores it was chosen from, float32 on the CPU.
    """

    token_id: int
    text: str
    logits: Float[Tensor, " V"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer.

    Attributes:
        text: its words; empty without a tokenizer.
        token_ids: without the token that ended it.
        logits: [V] scores of its first token, float32 on the CPU.
        seen_seconds: time of the newest frame that the stream had taken.
    """

    text: str
    token_ids: tuple[int, ...]
    logits: Float[Tensor, " V"]
    seen_seconds: float = 0.0


@renamed(detailed_bytes="full_cache_bytes")
@dataclass(frozen=True, kw_only=True)
class StreamStats:
    """What a stream holds and has computed.

    Attributes:
        num_frames: frames pushed.
        num_tokens: tokens in the full KV cache.
        num_seen_tokens: tokens that came so far, those included that a limited cache has dropped.
        state_tokens: tokens that the next frame may see of the past, in each layer and key head.
        state_bytes: of the compressed state, over all layers.
        full_cache_bytes: of the tokens in the full KV cache, over all layers.
        allocated_bytes: of the full KV cache with the unused ends of its chunks.
        query_key_pairs: computed so far, summed over layers, for each query head.
    """

    num_frames: int
    num_tokens: int
    num_seen_tokens: int
    state_tokens: int
    state_bytes: int
    full_cache_bytes: int
    allocated_bytes: int
    query_key_pairs: int

    @classmethod
    def of(cls, cache: StreamCache, *, num_frames: int) -> "StreamStats":
        """What a stream of so many frames holds in its cache."""
        return cls(
            num_frames=num_frames,
            num_tokens=cache.num_tokens,
            num_seen_tokens=cache.num_seen,
            state_tokens=cache.state_tokens,
            state_bytes=cache.state_bytes,
            full_cache_bytes=cache.full_cache_bytes,
            allocated_bytes=cache.allocated_bytes,
            query_key_pairs=cache.query_key_pairs,
        )
