"""An answer in the making: what enters the decoder next, and which token comes out."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kinescan.errors import NonFiniteError
from kinescan.vlm.answer import Answer, AnswerToken
from kinescan.vlm.families import Family, Positions
from kinescan.vlm.generation import Sampler, Speech
from kinescan.vlm.sequence import Chunk, Text, text_ids
from kinescan.vlm.steps import Step

StepOf = Callable[[Sequence[Chunk], Positions], Step]


class Answering:
    """One answer, token by token.

    Args:
        family: of the stream.
        step_of: makes the step of some chunks at some positions.
        chunks: the question, with what stands before it.
        positions: where it begins; they move on.
        sampler: chooses tokens.
        speech: their text.
        limit: most tokens.

    Attributes:
        positions: how far they have been given out.
        tokens: of the answer, so far.
        ended: whether a token or a text has ended it.
        text_ids: tokens of the question.
    """

    def __init__(
        self,
        family: Family,
        step_of: StepOf,
        chunks: Sequence[Chunk],
        positions: Positions,
        *,
        sampler: Sampler,
        speech: Speech,
        limit: int,
    ) -> None:
        self.positions = positions
        self.tokens: list[AnswerToken] = []
        self.ended = False
        self.text_ids = text_ids(chunks)
        self._family, self._step_of, self._chunks = family, step_of, chunks
        self._sampler, self._speech, self._limit = sampler, speech, limit

    @property
    def is_whole(self) -> bool:
        """Whether no token follows."""
        return self.ended or len(self.tokens) == self._limit

    def next_step(self) -> Step:
        """What enters the decoder next: the question, then each token of the answer."""
        return self._step_of(self._chunks, self.positions)

    def take(self, hidden: Float[Tensor, "n W"]) -> AnswerToken:
        """The token that follows, from what the decoder gives for the step.

        Raises:
            NonFiniteError: the scores hold NaN or infinity.
        """
        logits = self._family.logits(hidden[-1:])[0].float().cpu()
        if not bool(torch.isfinite(logits).all()):
            raise NonFiniteError(
                "the scores of an answer's next token hold NaN or infinity. Use weights that are sound, or bfloat16 or "
                "float32 where float16 overflows."
            )
        chosen = self._sampler.choose(logits)
        text, self.ended = self._speech.take(chosen)
        self._chunks = [Text([chosen])]
        self.tokens.append(AnswerToken(token_id=chosen, text=text, logits=logits))
        return self.tokens[-1]


def answer_of(tokens: Sequence[AnswerToken], family: Family, seen_seconds: float) -> Answer:
    """An answer of all its tokens."""
    stop_ids = family.stop_ids()
    return Answer(
        text="".join(token.text for token in tokens),
        token_ids=tuple(token.token_id for token in tokens if token.token_id not in stop_ids),
        logits=tokens[0].logits,
        seen_seconds=seen_seconds,
    )
