"""A video that enters a frozen VLM frame by frame, and may be asked about at any time."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kinescan.errors import ConfigError, NonFiniteError, ShapeError
from kinescan.runtime.fingerprint import fingerprint_of
from kinescan.settings import old_name, renamed_parameters, to_plain
from kinescan.vlm.answer import Answer, AnswerToken, StreamStats
from kinescan.vlm.answering import Answering, answer_of
from kinescan.vlm.attention import compile_stream
from kinescan.vlm.cache import StreamCache
from kinescan.vlm.chat import Chat, PatchPosition
from kinescan.vlm.config import StreamConfig, check_flag
from kinescan.vlm.families import Family, Features, PixelSettings, Positions, family_class, read_pixel_settings
from kinescan.vlm.families.door import follows_length, share_weights, unwrapped
from kinescan.vlm.frames import to_frames
from kinescan.vlm.generation import Generation, Sampler, Speech, answer_limit, of_answer, tell_of_unused
from kinescan.vlm.horizon import check_declared, positions_of_horizon
from kinescan.vlm.intake import Intake, PendingPatch, encoded
from kinescan.vlm.policy import Policy, make_policy
from kinescan.vlm.self_check import check_family
from kinescan.vlm.sequence import Chunk, Embedded, Patch, Text, sequence, text_ids
from kinescan.vlm.snapshot import describe_shape, pack_cache, pack_intake, pack_limit, pack_policy, write_snapshot
from kinescan.vlm.steps import BegunStep, Step, run_steps
from kinescan.vlm.store import Storage
from kinescan.vlm.uncopied import Uncopied

logger = logging.getLogger(__name__)

Take = Callable[[], list[PendingPatch] | None]


@renamed_parameters(budget_shares="budget_ratios")
def open_stream(
    model: nn.Module,
    processor: Any = None,
    *,
    budget: int | None = 4096,
    budget_ratios: Sequence[float] | None = None,
    policy: str | Policy = "statekv",
    horizon_frames: int | None = None,
    horizon_is_limit: bool = True,
    horizon_text_tokens: int = 2048,
    fps: float = 1.0,
    patches_per_step: int = 1,
    storage: Storage = "memory",
    chunk_tokens: int = 4096,
    hf_compat: bool = False,
    pixels: PixelSettings | None = None,
    opening: str | None = None,
    system: str | None = None,
    memory_budget: int | str | None = None,
    memory_policy: str | Policy = "redundancy",
    retrieved_chunks: int | None = None,
    compiled: bool = False,
) -> "VideoStream":
    """A stream into a loaded VLM, to be used in a `with` block.

    Args:
        model: a transformers model of a supported family, in evaluation mode.
        processor: its processor or tokenizer; None where questions are asked as token ids.
        budget: keys of the compressed state in each layer and key head; None for no limit.
        budget_ratios: how it is divided between the layers; see `StreamConfig`.
        policy: what chooses them: a name in `POLICIES`, or a policy.
        horizon_frames: frames that the stream will not exceed; see `StreamConfig`.
        horizon_is_limit: False takes more all the same, where the model allows it.
        horizon_text_tokens: room for questions and answers within the horizon, in tokens.
        fps: frames per second that are pushed, where `push` is given no times.
        patches_per_step: temporal patches that enter at once.
        storage: of the full KV cache: "memory", "offload", "int8" or "disk".
        chunk_tokens: the full KV cache grows by this many tokens.
        hf_compat: positions and prompts as transformers 5 has them where it departs from how the family was trained.
        pixels: how frames are prepared; by default as the processor says, else as the family's own does.
        opening: text before the video, not the chat template's; the family's marker of a video is added if missing.
        system: the system prompt, in plain text.
        memory_budget: what the full KV cache takes at most, in tokens or as "4GiB"; see `StreamConfig`.
        memory_policy: what stays within it: a name in `POLICIES`, or a policy.
        retrieved_chunks: chunks of the full KV cache that an answer reads at most, besides the first and the newest.
        compiled: run the decoder's layers through torch.compile; see `StreamConfig`.

    The model itself is never changed: the stream runs modules of its own over the same weights.

    Raises:
        ConfigError: the family or its layers are not supported, the model is in training mode, or a setting is wrong.

    Source: StateKV (arXiv 2605.31598).
    """
    config = StreamConfig(
        budget=budget,
        budget_ratios=budget_ratios,  # type: ignore[arg-type]
        policy=policy,
        horizon_frames=horizon_frames,
        horizon_is_limit=horizon_is_limit,
        horizon_text_tokens=horizon_text_tokens,
        fps=fps,
        patches_per_step=patches_per_step,
        storage=storage,
        chunk_tokens=chunk_tokens,
        hf_compat=hf_compat,
        memory_budget=memory_budget,
        memory_policy=memory_policy,
        retrieved_chunks=retrieved_chunks,
        compiled=compiled,
    )
    kind = family_class(model)
    if pixels is not None and not isinstance(pixels, PixelSettings):
        raise ConfigError(f"pixels must be PixelSettings, got a {type(pixels).__name__}. Take those of load_vlm.")
    pixels = read_pixel_settings(kind, processor) if pixels is None else pixels
    family = kind(share_weights(unwrapped(model)), pixels=pixels, horizon_frames=horizon_frames, hf_compat=hf_compat)
    check_declared(family, horizon_frames)
    check_family(family)
    return VideoStream(family, Chat(family, processor, opening=opening, system=system), config)


class VideoStream(Uncopied):
    """One video that a VLM reads frame by frame; made by `open_stream`, which takes all settings.

    It runs on a second tree of modules over the model's own weights (`share_weights`), so that nothing in the model is
    ever changed: streams and plain forwards may overlap, also in other threads, and end in any order. Calls of one
    stream from several threads follow one another.

    A push that fails, whatever raised, leaves the stream as it was before that push, and others may follow.

    Source: StateKV (arXiv 2605.31598).
    """

    place = old_name("place", "patch_position")

    def __init__(self, family: Family, chat: Chat, config: StreamConfig) -> None:
        self.family = family
        self.chat = chat
        self.config = config = replace(config, horizon_is_limit=True) if follows_length(family.decoder) else config
        self.policy = make_policy(config.policy)
        self.memory_policy = make_policy(config.memory_policy)
        shape = family.cache_shape()
        self.cache = StreamCache(
            shape,
            policy=self.policy,
            budget=config.budget,
            budget_ratios=config.budget_ratios,
            storage=config.storage,
            chunk_tokens=config.chunk_tokens,
            memory_tokens=config.memory_tokens(shape),
            memory_policy=None if config.memory_budget is None else self.memory_policy,
            retrieved_chunks=config.retrieved_chunks,
        )
        if config.compiled:
            compile_stream(family.name, family.decoder)
        self._step_tokens = 0
        self.text_ids: set[int] = set()
        tell_of_unused(getattr(family.model, "generation_config", None))
        # what is wrong there is reported before a video is watched
        family.stop_ids()
        self.intake = Intake(family, config)
        self.positions = Positions()
        self.horizon_positions: int | None = None
        self.patch_position: PatchPosition = "first"
        self._state: Literal["open", "answering", "closed"] = "open"
        self._said_small_budget = False
        self._turn = threading.RLock()
        self._weights: str | None = None

    def __enter__(self) -> "VideoStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the memory back; the stream cannot be used afterwards."""
        with self._turn:
            self._state = "closed"
            for layer in self.cache.layers:
                layer.full_cache.clear()
                layer.answer.clear()
            self.cache.layers.clear()
            self.intake.clear()

    @property
    def stats(self) -> StreamStats:
        """What the stream holds and has computed."""
        with self._turn:
            self._check_usable()
            return StreamStats.of(self.cache, num_frames=self.intake.num_frames)

    @torch.no_grad()
    def encode(self, frames: Any) -> list[Features]:
        """Frames through the vision encoder alone, patch by patch; `push` takes the result, also in another stream.

        Args:
            frames: as for `push`; T a multiple of the frames that the family merges.

        Raises:
            ShapeError: they are something else.
            NonFiniteError: the encoder gives NaN or infinity.
        """
        with self._turn:
            self._check_usable()
            frames = to_frames(frames)
            self.intake.check_size(frames)
            merged = self.family.temporal_patch
            if len(frames) % merged:
                raise ShapeError(f"{self.family.name} merges {merged} frames, got {len(frames)}. Give a multiple.")
            features = [encoded(self.family, part) for part in frames.split(merged)]
            self.intake.frame_size = (frames.shape[2], frames.shape[3])
            return features

    @torch.no_grad()
    def push(self, frames: Any, *, seconds: Sequence[float] | float | None = None) -> None:
        """The next frames of the video.

        Args:
            frames: [T, 3, H, W] (or one frame [3, H, W]) uint8, RGB; NumPy arrays, images of Pillow or lists of frames
                (see `to_frames`); or what `encode` made of them.
            seconds: time of each frame, ascending, over all pushes; of the first frame of each patch where features are
                given. By default frames follow one another at `fps`, behind the newest that came with a time.

        Raises:
            ShapeError: frames are not uint8 video, or their size differs from the frames before.
            ConfigError: the horizon is exceeded, times do not fit, or the stream is closed.
            NonFiniteError: features or the decoder's output hold NaN or infinity.
        """
        with self._turn:
            self._check_usable()
            takes = self._takes(frames, seconds)
            with self._all_or_nothing():
                for take in takes:
                    if (patches := take()) is not None:
                        begun = self._begin_step(patches)
                        self._end_step(begun, *run_steps([begun.step]))

    def ask(
        self,
        question: str | Sequence[int] | Tensor,
        *,
        max_new_tokens: int | None = None,
        keep: bool = False,
        generation: Generation | None = None,
    ) -> Answer:
        """The model's answer.

        Args:
            question: text, or token ids.
            max_new_tokens: the answer is cut there; by default as the model's `generation_config` says, or at 256.
            keep: question and answer become part of the stream, so that later questions and frames see them. By
                default they leave no trace.
            generation: how tokens are chosen; as the model's `generation_config` says, by default.

        Raises:
            ConfigError: nothing has been pushed, the question is empty or does not fit the horizon, or there is no
                tokenizer for text.
        """
        with self._turn:
            tokens = list(self.ask_stepwise(question, max_new_tokens=max_new_tokens, keep=keep, generation=generation))
            return answer_of(tokens, self.family, self.seen_seconds)

    def ask_stepwise(
        self,
        question: str | Sequence[int] | Tensor,
        *,
        max_new_tokens: int | None = None,
        keep: bool = False,
        generation: Generation | None = None,
    ) -> Iterator[AnswerToken]:
        """The same answer token by token, the one that ends it included; see `ask`.

        Raises:
            ConfigError: as `ask`; also while iterating, where the stream was closed in between.
        """
        with self._turn:
            check_flag("keep", keep)
            generation = self._checked_question(question, max_new_tokens, generation)
            return self._answer(question, max_new_tokens, keep, generation)

    @property
    def seen_seconds(self) -> float:
        """Time of the newest frame that was pushed; 0 before the first."""
        return self.intake.newest_seconds

    def save(self, path: str | Path) -> None:
        """Writes the whole stream to one safetensors file; `load_stream` continues from there.

        An earlier file of that name is there until the new one is whole.

        Raises:
            CheckpointError: the policy is of a class that `POLICIES` does not hold, or the file cannot be written.
        """
        with self._turn:
            self._check_usable()
            self._save(path)

    def _save(self, path: str | Path) -> None:
        """Writes the snapshot; the caller holds the lock."""
        waiting, intake = pack_intake(self.intake)
        config = {
            **asdict(self.config),
            "policy": pack_policy(self.policy),
            "memory_policy": pack_policy(self.memory_policy),
        }
        facts = {
            "model_type": self.family.name,
            "shape": describe_shape(self.cache.shape),
            "weights": self.fingerprint(),
            "config": config,
            "pixels": to_plain(self.family.pixels),
            "num_tokens": self.cache.num_tokens,
            **pack_limit(self.cache),
            "query_key_pairs": self.cache.query_key_pairs,
            "positions": asdict(self.positions),
            "horizon_positions": self.horizon_positions,
            "patch_position": self.patch_position,
            "text_ids": sorted(self.text_ids),
            "intake": intake,
        }
        write_snapshot(path, {**pack_cache(self.cache), **waiting}, facts)

    def _checked_question(self, question: Any, max_new_tokens: Any, generation: Generation | None) -> Generation:
        """Every setting of an answer that can be given now."""
        self._check_usable()
        answer_limit(max_new_tokens, self.family.model)
        if self.intake.num_frames == 0:
            raise ConfigError("nothing has been pushed into this stream yet. Push frames first, then ask.")
        self.chat.question(question, behind="video")
        return of_answer(generation, self.family.model)

    def _answer(
        self, question: str | Sequence[int] | Tensor, limit: int | None, keep: bool, generation: Generation
    ) -> Iterator[AnswerToken]:
        with self._turn, torch.no_grad():
            self._check_usable()
            answering = self._begin_answer(question, limit, keep=keep, generation=generation)
        try:
            while not answering.is_whole:
                yield self._next_token(answering)
            if keep:
                self._keep(answering)
        finally:
            self._end_answer()

    def _begin_answer(
        self, question: str | Sequence[int] | Tensor, given: int | None, *, keep: bool, generation: Generation
    ) -> Answering:
        """An answer, of which no step was taken yet; `_end_answer` follows it."""
        waiting = self.intake.waiting()
        if keep and waiting:
            with self._all_or_nothing():
                self.intake.clear()
                begun = self._begin_step(waiting)
                self._end_step(begun, *run_steps([begun.step]))
            waiting = []
        behind_answer = self.patch_position == "next_video" and not waiting
        positions, chunks = self.positions.copy(), self._patch_chunks(waiting)[0]
        closing = None if behind_answer else self.family.closing_features()
        if closing is not None:
            chunks.append(Embedded(closing))
        chunks.append(Text(self.chat.question(question, behind="answer" if behind_answer else "video")))
        sampler = Sampler(generation, self.text_ids | text_ids(chunks) | self.family.placeholder_ids())
        stop_ids, limit = self.family.stop_ids(), answer_limit(given, self.family.model)
        speech = Speech(self.chat.decode, stop=generation.stop or (), stop_ids=stop_ids, limit=limit)
        self._state = "answering"
        prepare = partial(self._prepared, answering=True)
        return Answering(self.family, prepare, chunks, positions, sampler=sampler, speech=speech, limit=limit)

    @torch.no_grad()
    def _next_token(self, answering: Answering) -> AnswerToken:
        with self._turn:
            self._check_not_closed()
            return answering.take(*run_steps([answering.next_step()]))

    @torch.no_grad()
    def _keep(self, answering: Answering) -> None:
        """The answer becomes part of the stream."""
        with self._turn:
            self._check_not_closed()
            if not answering.ended:
                # its last token has not entered the cache yet
                run_steps([answering.next_step()])
            self.text_ids |= answering.text_ids
            with self.cache.all_or_nothing():
                self.cache.keep_answer()
                self.positions, self.patch_position = answering.positions, "next_video"

    def _end_answer(self) -> None:
        with self._turn:
            self.cache.drop_answer()
            if self._state == "answering":
                self._state = "open"

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Where the block fails, the stream is as it was before."""
        before = (self.positions, self.patch_position, self.horizon_positions)
        try:
            with self.intake.all_or_nothing(), self.cache.all_or_nothing():
                yield
        except BaseException:
            self.positions, self.patch_position, self.horizon_positions = before
            raise

    def _takes(self, frames: Any, seconds: Any) -> list[Take]:
        """For each frame or patch of a push that was checked: what takes it, and gives the step that it fills."""
        intake, merged = self.intake, self.family.temporal_patch
        parts: Any = [frames] if isinstance(frames, Features) else frames
        seen = isinstance(parts, list | tuple) and any(isinstance(part, Features) for part in parts)
        spacing, take = (merged, intake.take_patch) if seen else (1, intake.take_frame)
        if not seen:
            parts = to_frames(frames)
            intake.check_size(parts)
        times = intake.times(len(parts), seconds, spacing=spacing)
        intake.check_horizon(len(parts) * spacing)
        # before a failure's way back is noted: what goes is not held on to
        self.cache.make_room(self._step_tokens)
        return [partial(take, part, time) for part, time in zip(parts, times, strict=True)]

    def _begin_step(self, patches: Sequence[PendingPatch]) -> BegunStep:
        chunks, patch_position = self._patch_chunks(patches)
        positions = self.positions.copy()
        step = self._prepared(chunks, positions, answering=False)
        return BegunStep(step, chunks, positions, patch_position, patches[-1].number, self.cache.num_seen == 0)

    def _end_step(self, begun: BegunStep, hidden: Tensor) -> None:
        self._step_tokens = len(hidden)
        self.text_ids |= text_ids(begun.chunks)
        if begun.is_first and isinstance(first := begun.chunks[0], Text):
            later, opening = self.chat.before_patch(9999, 9999.0, "between"), len(first.token_ids)
            self._step_tokens += len(later) - opening
            self.cache.pin(0, opening, beside=self._step_tokens)
        if not bool(torch.isfinite(hidden).all()):
            raise NonFiniteError(
                f"the decoder gives NaN or infinity for frame {begun.number}, which was not taken. Use weights "
                "that are sound, or bfloat16 or float32 where float16 overflows."
            )
        self.positions, self.patch_position = begun.positions, begun.patch_position
        if (budget := self.cache.budget) is not None and len(hidden) > budget and not self._said_small_budget:
            self._said_small_budget = True
            said = "a step has %d tokens and the budget is %d: the next frame sees only a part of this one"
            logger.warning(said, len(hidden), budget)

    def _patch_chunks(self, patches: Sequence[PendingPatch]) -> tuple[list[Chunk], PatchPosition]:
        chunks: list[Chunk] = []
        patch_position = self.patch_position
        for patch in patches:
            mean_seconds = sum(patch.seconds) / 2
            chunks.append(Text(self.chat.before_patch(patch.number, mean_seconds, patch_position)))
            chunks.append(Patch(patch.features, patch.seconds[0]))
            chunks.append(Text(self.chat.after_patch()))
            patch_position = "between"
        return chunks, patch_position

    def _prepared(self, chunks: Sequence[Chunk], positions: Positions, *, answering: bool) -> Step:
        if self.horizon_positions is None and (first := next((c for c in chunks if isinstance(c, Patch)), None)):
            self.horizon_positions = positions_of_horizon(self.family, self.chat, self.config, first.features)
        inputs = sequence(self.family, chunks, positions)
        pinned = self.horizon_positions
        if pinned is not None and positions.upcoming > pinned:
            raise ConfigError(
                f"the declared horizon of {self.config.horizon_frames} frames and {self.config.horizon_text_tokens} "
                f"text tokens ({pinned} positions) is exceeded: {positions.upcoming} are needed. Open the stream with "
                "a larger horizon_frames or horizon_text_tokens."
            )
        if not answering:
            self.cache.make_room(len(inputs.embedded))
        return Step(
            family=self.family,
            cache=self.cache,
            inputs=inputs,
            num_positions=pinned or positions.upcoming,
            answering=answering,
        )

    def _check_usable(self) -> None:
        self._check_not_closed()
        if self._state == "answering":
            raise ConfigError("an answer of this stream is in progress. Take all its tokens, or close its iterator.")

    def _check_not_closed(self) -> None:
        if self._state == "closed":
            raise ConfigError("this stream is closed. Open a new one, or load a saved one.")

    def fingerprint(self) -> str:
        """Which weights the model has; computed once."""
        if self._weights is None:
            self._weights = fingerprint_of(self.family.model)
        return self._weights
