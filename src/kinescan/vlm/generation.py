"""How an answer's next token is chosen: as the model's own generation settings say, or as one asks."""

import logging
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kinescan.errors import ConfigError
from kinescan.vlm.config import check_count, is_finite

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 256
"""Of an answer, where neither the caller nor the model says how many."""
_UNUSED_CHOICE = {"min_p": 0.0, "top_h": None, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
_UNUSED = {
    **{"num_beams": 1, "min_length": 0, "min_new_tokens": 0, "no_repeat_ngram_size": 0},
    **{"encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0, "guidance_scale": 1.0},
    **dict.fromkeys(("bad_words_ids", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens")),
    **dict.fromkeys(("begin_suppress_tokens", "sequence_bias", "exponential_decay_length_penalty", "max_time")),
    **dict.fromkeys(("watermarking_config", "penalty_alpha", "dola_layers", "constraints", "force_words_ids")),
    "token_healing": False,
}
"""Settings of a generation config that change an answer and are not followed, with the values that change nothing;
those of `_UNUSED_CHOICE` where tokens are sampled."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Settings of an answer; None takes what the model's `generation_config` says.

    Attributes:
        temperature: scores are divided by it and a token is sampled; 0 takes the likeliest.
        top_p: sample among the likeliest tokens that together have this probability.
        top_k: sample among so many likeliest tokens; 0 for all.
        repetition_penalty: scores of tokens that stand in the text already are divided by it (multiplied where
            negative).
        stop: the answer ends before any of these texts; () for none.
        seed: of the random choice of tokens.

    Source: the names, their order and arithmetic are those of transformers' `generate`.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {"temperature": (0, 100), "top_p": (0, 1), "repetition_penalty": (0.01, 100)}
        for name, (lowest, highest) in ranges.items():
            value = getattr(self, name)
            if value is not None and not (is_finite(value) and lowest <= float(value) <= highest):
                raise ConfigError(f"{name} must be a number from {lowest} to {highest}, got {value!r}.")
        for name, lowest in (("top_k", 0), ("seed", 0)):
            value = getattr(self, name)
            whole = isinstance(value, Integral) and not isinstance(value, bool) and lowest <= int(value) < 2**32
            if not whole and not (name == "top_k" and value is None):
                raise ConfigError(f"{name} must be a whole number from {lowest} on, got {value!r}.")
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if stop is not None:
            if not isinstance(stop, list | tuple) or not all(isinstance(text, str) and text for text in stop):
                raise ConfigError(f"stop must hold texts that are not empty, got {self.stop!r}.")
            object.__setattr__(self, "stop", tuple(stop))
        if self.temperature == 0:
            self._refuse_chance("temperature is 0")

    def of_model(self, stored: Any) -> "Generation":
        """These settings, with what a generation config of transformers says where they say nothing.

        Args:
            stored: the model's `generation_config`, or None.

        Raises:
            ConfigError: `top_p` or `top_k` is given, and the model takes the likeliest token where no temperature is,
                or the generation config holds something that is not one of these settings.
        """
        samples = bool(getattr(stored, "do_sample", None))
        temperature = _or(self.temperature, _or(getattr(stored, "temperature", None), 1.0) if samples else 0.0)
        if temperature == 0:
            self._refuse_chance("this model takes the likeliest one where no temperature is given")
            stored_top_p, stored_top_k = 1.0, 0
        else:
            stored_top_p = _or(getattr(stored, "top_p", None), 1.0)
            stored_top_k = _or(getattr(stored, "top_k", None), 0)
        stop = getattr(stored, "stop_strings", None) or ()
        try:
            return Generation(
                temperature=temperature,
                top_p=_or(self.top_p, stored_top_p),
                top_k=_or(self.top_k, stored_top_k),
                repetition_penalty=_or(self.repetition_penalty, _or(getattr(stored, "repetition_penalty", None), 1.0)),
                stop=_or(self.stop, stop),
                seed=self.seed,
            )
        except ConfigError as error:
            # settings given here were checked before
            raise ConfigError(
                f"the model's generation_config: {error} Mend generation_config.json, or give another value here."
            ) from None

    def _refuse_chance(self, why: str) -> None:
        """Raises ConfigError where settings of a random choice are given, and none is made."""
        given = {"top_p": self.top_p not in (None, 1), "top_k": self.top_k not in (None, 0, 1)}
        names = [name for name, is_given in given.items() if is_given]
        if names:
            raise ConfigError(
                f"{' and '.join(names)} limit{'s' * (len(names) == 1)} a random choice of tokens, and {why}. Give a "
                f"temperature above 0 too, or leave {' and '.join(names)} out."
            )


def of_answer(given: Any, model: Any) -> Generation:
    """All settings of an answer.

    Args:
        given: a `Generation`; None for what the model says.
        model: a model of transformers.

    Raises:
        ConfigError: it is something else, or does not fit the model's settings.
    """
    if given is not None and not isinstance(given, Generation):
        raise ConfigError(
            f"generation must be a vlm.Generation, got a {type(given).__name__}: Generation(seed=1), say."
        )
    return (given or Generation()).of_model(getattr(model, "generation_config", None))


def answer_limit(given: Any, model: Any) -> int:
    """Most tokens of an answer.

    Args:
        given: by the caller; None for what the model says.
        model: a model of transformers.

    Raises:
        ConfigError: it is not a whole number of at least 1, or that of the model's generation config is none.
    """
    if given is not None:
        check_count("max_new_tokens", given)
        return int(given)
    stored = getattr(getattr(model, "generation_config", None), "max_new_tokens", None)
    if stored is None:
        return MAX_NEW_TOKENS
    check_count("max_new_tokens of the model's generation_config", stored)
    return int(stored)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


class Sampler:
    """Chooses the tokens of one answer.

    Args:
        generation: all settings given (see `Generation.of_model`).
        seen: tokens of the text before the answer.
    """

    def __init__(self, generation: Generation, seen: Collection[int]) -> None:
        self._settings = generation
        self._seen = set(seen)
        self._generator = torch.Generator().manual_seed(generation.seed)

    def choose(self, logits: Float[Tensor, " V"]) -> int:
        """The next token, which counts as seen from then on.

        Example:
            >>> Sampler(Generation(repetition_penalty=2.0).of_model(None), seen=[1]).choose(torch.tensor([0.9, 1.0]))
            0
        """
        settings, scores = self._settings, logits.clone()
        assert settings.repetition_penalty is not None, "of_model gives every setting"
        if settings.repetition_penalty != 1.0 and self._seen:
            index = torch.tensor(sorted(token for token in self._seen if token < len(scores)))
            given, penalty = scores[index], settings.repetition_penalty
            scores[index] = torch.where(given < 0, given * penalty, given / penalty)
        chosen = self._sampled(scores) if settings.temperature else int(scores.argmax())
        self._seen.add(chosen)
        return chosen

    def _sampled(self, scores: Tensor) -> int:
        settings = self._settings
        assert settings.temperature, "a temperature of 0 takes the likeliest"
        assert settings.top_p is not None, "of_model gives every setting"
        scores = scores / settings.temperature
        if settings.top_k and settings.top_k < len(scores):
            scores = scores.masked_fill(scores < scores.topk(settings.top_k).values[-1], -math.inf)
        if settings.top_p < 1:
            ordered, order = scores.sort()
            unlikely = ordered.softmax(-1).cumsum(-1) <= 1 - settings.top_p
            # the likeliest token stays, however likely it is
            unlikely[-1] = False
            scores[order[unlikely]] = -math.inf
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))


class Speech:
    """The text of one answer, token by token.

    Args:
        decode: token ids to text.
        stop: texts that end it.
        stop_ids: tokens that end it.
        limit: most tokens.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        stop: tuple[str, ...],
        stop_ids: Collection[int],
        limit: int,
    ) -> None:
        self._decode, self._stop, self._stop_ids, self._limit = decode, stop, stop_ids, limit
        self._said: list[int] = []
        self._shown = ""

    def take(self, token: int) -> tuple[str, bool]:
        """What a token adds to the text, and whether the answer ends with it."""
        if token in self._stop_ids:
            return self._decode(self._said)[len(self._shown) :], True
        self._said.append(token)
        whole = self._decode(self._said)
        before = up_to_stop(whole, self._stop)
        if before is not None:
            return before[len(self._shown) :], True
        # half a character, or what may become a text to stop at, waits
        waits = whole.endswith("\ufffd") or may_become(whole, self._stop)
        if waits and len(self._said) < self._limit:
            return "", False
        text, self._shown = whole[len(self._shown) :], whole
        return text, False


def up_to_stop(text: str, stop: tuple[str, ...]) -> str | None:
    """The text before the first of the stop texts; None where there is none in it.

    Example:
        >>> up_to_stop("It is red. And", (". ",)), up_to_stop("It is", (". ",))
        ('It is red', None)
    """
    found = [text.index(one) for one in stop if one in text]
    return text[: min(found)] if found else None


def may_become(text: str, stop: tuple[str, ...]) -> bool:
    """Whether the end of a text is the start of a stop text.

    Example:
        >>> may_become("It is red.", (". ",)), may_become("It is red", (". ",))
        (True, False)
    """
    return any(text.endswith(one[:length]) for one in stop for length in range(1, len(one)))


def tell_of_unused(stored: Any) -> None:
    """Says which settings of a generation config are not followed, where they would change an answer."""
    unused = _UNUSED | (_UNUSED_CHOICE if getattr(stored, "do_sample", None) else {})
    strange = [name for name, usual in unused.items() if getattr(stored, name, None) not in (None, usual)]
    if strange:
        logger.warning("the model's generation_config sets %s, which answers do not follow", ", ".join(strange))
