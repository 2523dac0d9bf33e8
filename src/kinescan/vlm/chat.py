"""Text around the frames: what comes before, between and behind them, as token ids."""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, Literal

from torch import Tensor

from kinescan.errors import ConfigError, ShapeError
from kinescan.vlm.families import Family, PromptFormat

logger = logging.getLogger(__name__)

PatchPosition = Literal["first", "between", "next_video"]
QUESTION, ANSWER = "kinescan-question-goes-here", "kinescan-answer-goes-here"


class Chat:
    """The prompt of one stream.

    Args:
        family: whose format is used where the tokenizer brings no chat template.
        processor: a tokenizer, or a processor that has one; None where questions come as token ids.
        opening: text before the video instead of the format's.
        system: the system prompt, placed by the chat template, or as the format has it.
    """

    def __init__(
        self, family: Family, processor: Any = None, *, opening: str | None = None, system: str | None = None
    ) -> None:
        self.tokenizer: Any = getattr(processor, "tokenizer", processor)
        self.format = family.prompt
        self._bare = family.bare_prompt()
        self._vocab_size = len(family.embedding)
        if opening is not None and not isinstance(opening, str):
            raise ConfigError(f"opening must be text, got {opening!r} ({type(opening).__name__}).")
        if system is not None and not (isinstance(system, str) and system.strip()):
            raise ConfigError(f"system must be text that is not empty, got {system!r}.")
        if opening is not None and system is not None:
            raise ConfigError(
                "opening replaces all text before the video, the system prompt included. Give one of them."
            )
        if self.tokenizer is None:
            if opening is not None or system is not None:
                raise ConfigError("opening and system are text and need a tokenizer: give open_stream a processor.")
            return
        if isinstance(self.tokenizer, str | bytes) or not all(
            callable(getattr(self.tokenizer, name, None)) for name in ("encode", "decode")
        ):
            raise ConfigError(
                f"processor must be a tokenizer of transformers, or a processor that has one, got a "
                f"{type(self.tokenizer).__name__}. Load it by AutoTokenizer or AutoProcessor, or ask with token ids."
            )
        template_owner = processor if getattr(processor, "chat_template", None) else self.tokenizer
        if getattr(template_owner, "chat_template", None):
            self.format = _from_template(template_owner, family, system)
        elif system is not None:
            self.format = replace(self.format, opening=_with_system(self.format.opening, system))
        self._check_tokens()
        if opening is not None:
            # without its marker the frames would stand outside of any video
            marker = family.prompt.video_start
            self.format = replace(self.format, opening=opening if opening.endswith(marker) else opening + marker)

    def _check_tokens(self) -> None:
        """Before a video is watched: the tokenizer has tokens, and no more than the model."""
        ids = self._encode("What happens after that?")
        if not ids or max(ids) >= self._vocab_size or min(ids) < 0:
            raise ConfigError(
                f"the tokenizer gives {ids[:5] or 'no tokens'} for a question, and the model has {self._vocab_size} "
                "tokens. Load the tokenizer that the model was trained with."
            )

    def before_patch(self, number: int, seconds: float, position: PatchPosition) -> list[int]:
        """Token ids before a temporal patch.

        Args:
            number: of its first frame, counted from 1.
            seconds: its mean time.
            position: "first" in the stream, "between" two patches, or "next_video" behind a kept answer.
        """
        lead = {"first": "opening", "between": "between", "next_video": "next_video"}[position]
        if self.tokenizer is None:
            return self._bare.get(lead, []) + self._bare.get("before_patch", [])
        minutes, rest = divmod(max(0, int(seconds)), 60)
        before = self.format.before_patch.format(number=number, seconds=seconds, minutes=minutes, rest=rest)
        introduction = "" if position == "between" else self.format.introduction
        return self._encode(getattr(self.format, lead) + introduction + before)

    def after_patch(self) -> list[int]:
        """Token ids behind a temporal patch."""
        return self._bare.get("after_patch", []) if self.tokenizer is None else self._encode(self.format.after_patch)

    def question(self, question: str | Sequence[int] | Tensor, *, behind: Literal["video", "answer"]) -> list[int]:
        """Token ids from the end of the video, or of a kept answer, to where the model continues.

        Args:
            question: text, or token ids that are used as they are (a one-dimensional tensor, or a row of them).
            behind: what stands before it.

        Raises:
            ConfigError: the question is text and there is no tokenizer, or it is empty, or neither text nor ids that
                the model knows.
            ShapeError: the ids are a batch.
        """
        lead: Literal["closing", "next_turn"] = "closing" if behind == "video" else "next_turn"
        if isinstance(question, str):
            if self.tokenizer is None:
                raise ConfigError(
                    "a question in words needs a tokenizer: give open_stream a processor, or ask with ids."
                )
            if not question.strip():
                raise ConfigError("the question is empty. Ask something.")
            return self._encode(self._lead(lead) + question + self.format.answer)
        if isinstance(question, Tensor):
            if question.ndim == 2 and len(question) == 1:
                question = question[0]
            if question.ndim != 1:
                raise ShapeError(f"a question is one row of token ids, got {tuple(question.shape)}. Ask one at a time.")
            question = question.tolist()
        lead_ids = self._bare.get(lead, []) if self.tokenizer is None else self._encode(self._lead(lead))
        return lead_ids + self._checked_ids(question)

    def _lead(self, lead: Literal["closing", "next_turn"]) -> str:
        text: str = getattr(self.format, lead)
        return self.format.video_end + text if lead == "closing" else text

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of an answer; empty without a tokenizer."""
        if self.tokenizer is None:
            return ""
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def _checked_ids(self, question: Any) -> list[int]:
        if isinstance(question, bytes) or not isinstance(question, Iterable):
            raise ConfigError(f"a question must be text or a row of token ids, got a {type(question).__name__}.")
        ids = list(question)
        if not ids:
            raise ConfigError("the question is empty. Ask something.")
        for one in ids:
            if isinstance(one, bool) or not isinstance(one, Integral) or not 0 <= int(one) < self._vocab_size:
                raise ConfigError(
                    f"token ids must be whole numbers from 0 to {self._vocab_size - 1} for this model, got {one!r}."
                )
        return [int(one) for one in ids]

    def _encode(self, text: str) -> list[int]:
        # half of a pair of UTF-16, as bytes that are not UTF-8 become in arguments, is not text to a tokenizer
        text = text.encode("utf-8", "replace").decode("utf-8")
        return list(self.tokenizer.encode(text, add_special_tokens=False)) if text else []


def _with_system(opening: str, system: str) -> str:
    """The text before a video with a system prompt instead of its own, or before it."""
    turn = f"<|im_start|>system\n{system}<|im_end|>\n"
    found = re.match(r"<\|im_start\|>system\n.*?<\|im_end\|>\n", opening, re.DOTALL)
    if found:
        return turn + opening[found.end() :]
    return (turn if opening.startswith("<|im_start|>") else f"{system}\n") + opening


def _from_template(owner: Any, family: Family, system: str | None) -> PromptFormat:
    """The format with the texts that a chat template writes; the family's own where it cannot take a video."""
    default = family.prompt
    video = {"type": family.medium}
    asked = {"role": "user", "content": [video, {"type": "text", "text": QUESTION}]}
    answered = {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}
    again = {"role": "user", "content": [{"type": "text", "text": QUESTION}]}
    first = [] if system is None else [{"role": "system", "content": [{"type": "text", "text": system}]}]
    try:
        once = owner.apply_chat_template([*first, asked], tokenize=False, add_generation_prompt=True)
        if system is not None and system.strip() not in once:
            # templates for text alone take a plain string
            first = [{"role": "system", "content": system}]
            once = owner.apply_chat_template([*first, asked], tokenize=False, add_generation_prompt=True)
        twice = owner.apply_chat_template([asked, answered, again], tokenize=False, add_generation_prompt=True)
        further = owner.apply_chat_template([asked, answered, asked], tokenize=False, add_generation_prompt=True)
        marker = _marker(once, owner, family)
        opening, rest = once.split(marker)
        closing, answer = rest.split(QUESTION)
        next_turn = twice.split(ANSWER)[1].split(QUESTION)[0]
        next_video = further.split(ANSWER)[1].split(marker)[0]
    # A template is someone's code and may fail in any way on a list of contents.
    except Exception as error:
        logger.info("the chat template takes no video (%s): the family's own prompt is used", error)
        return default if system is None else replace(default, opening=_with_system(default.opening, system))
    if system is not None and system.strip() not in opening:
        raise ConfigError("the chat template of this model leaves a system prompt out. Put it into the question.")
    texts = {"opening": opening, "closing": closing, "answer": answer, "next_turn": next_turn, "next_video": next_video}
    return replace(default, **texts)


def _marker(written: str, owner: Any, family: Family) -> str:
    """What a chat template has written instead of the frames."""
    own = getattr(owner, f"{family.medium}_token", None)
    default = family.prompt.video_token
    candidates = (default, own, f"<{family.medium}>", f"<|{family.medium}|>")
    return next((one for one in candidates if isinstance(one, str) and one and one in written), default)
