"""Settings of `ask` that are not needed every day: `--set NAME=VALUE`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kinescan.errors import ConfigError
from kinescan.fields import fits
from kinescan.vlm import POLICIES, Generation, PixelSettings, StreamConfig, Vlm
from kinescan.vlm.config import check_count, check_flag
from kinescan.vlm.families import family_class
from kinescan.vlm.memory import read_amount

_OF_STREAM = (
    *("policy", "storage", "memory_policy", "chunk_tokens", "retrieved_chunks", "horizon_frames", "hf_compat"),
    "compiled",
)


@dataclass(frozen=True, kw_only=True)
class AskSettings:
    """How a video is watched and answers are made; None takes `StreamConfig`'s default, or what a saved stream has.

    Attributes:
        policy: what chooses the tokens that a frame may see.
        storage: where all keys and values are kept: memory, offload, int8 or disk.
        memory_policy: what stays of them within --memory.
        chunk_tokens: the full KV cache grows by this many tokens.
        retrieved_chunks: chunks of it that an answer reads at most, in each layer; None for all.
        horizon_frames: frames that the video source will not exceed, for models that have to know; of a file, its own
            number where this is None.
        hf_compat: positions and prompts as transformers 5 has them where it departs from how the family was trained.
        compiled: run the decoder's layers through torch.compile.
        pixels: most pixels of a frame, or (fewest, most), for families with free frame sizes.
        system: the system prompt, in plain text.
        dtype: of the weights: auto, float32, bfloat16 or float16.
        merge_adapter: where the model is an adapter of PEFT, its weights become part of its base model's.
        max_new_tokens: answers are cut there; by default as the model says, or at 256.
        temperature: see `Generation`; as the model says by default, likewise the next four.
        top_p: see `Generation`.
        top_k: see `Generation`.
        repetition_penalty: see `Generation`.
        stop: texts at which an answer ends.
        seed: of the random choice of tokens.
    """

    policy: str | None = None
    storage: str | None = None
    memory_policy: str | None = None
    chunk_tokens: int | None = None
    retrieved_chunks: int | None = None
    horizon_frames: int | None = None
    hf_compat: bool | None = None
    compiled: bool | None = None
    pixels: int | tuple[int, int] | None = None
    system: str | None = None
    dtype: str = "auto"
    merge_adapter: bool = False
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            check_count("max_new_tokens", self.max_new_tokens)
        if self.pixels is not None:
            limited_pixels(PixelSettings(), self.pixels)
        check_flag("merge_adapter", self.merge_adapter)
        if not isinstance(self.dtype, str):
            raise ConfigError(f"dtype must be auto, float32, bfloat16 or float16, got {self.dtype!r:.60}.")
        _ = self.generation

    @property
    def generation(self) -> Generation:
        """Those of them that say how tokens are chosen."""
        return Generation(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            stop=self.stop,
            seed=self.seed,
        )

    def of_stream(self, *, budget: int | None, fps: float, memory: str | None) -> dict[str, Any]:
        """Settings of a stream, checked.

        Raises:
            ConfigError: one is wrong, or two contradict each other.
        """
        given: dict[str, Any] = {"budget": budget, "fps": fps, "memory_budget": memory, **self._given()}
        StreamConfig(**given)
        if self.memory_policy is not None and memory is None:
            raise ConfigError(
                f"memory_policy {self.memory_policy!r} says what stays within a limit of memory, and none is given. "
                "Give --memory SIZE too, or leave memory_policy out: then everything stays."
            )
        return given

    def require_those_of(
        self,
        path: str | Path,
        config: StreamConfig,
        pixels: PixelSettings,
        **given: float | str | None,
    ) -> None:
        """Refuses settings other than those that a saved stream was watched with, which cannot be changed.

        Args:
            path: of the saved stream.
            config: its own.
            pixels: its own.
            **given: further settings of `StreamConfig`; None where none was given.

        Raises:
            ConfigError: one differs.
        """
        there = {name: _named(getattr(config, name)) for name in (*_OF_STREAM, *given)}
        if config.memory_budget is None:
            there["memory_policy"] = None
        wanted = {name: value for name, value in given.items() if value is not None} | self._given()
        if self.pixels is not None:
            wanted["pixels"] = self.pixels if isinstance(self.pixels, tuple) else (pixels.min_pixels, self.pixels)
            there["pixels"] = (pixels.min_pixels, pixels.max_pixels)
        for name, value in wanted.items():
            if not _same(name, there[name], value):
                raise ConfigError(
                    f"{path} was watched with {name} {there[name]!r}, and {value!r} is given. A saved stream keeps its "
                    f"own: leave {name} out, or watch the video again."
                )
        if self.system is not None:
            raise ConfigError(
                f"system stands before the video, and {path} has been watched already. Leave system out, or watch the "
                "video again."
            )

    def _given(self) -> dict[str, Any]:
        """Settings of a stream that are not left to their default."""
        return {name: value for name in _OF_STREAM if (value := getattr(self, name)) is not None}

    def pixels_of(self, vlm: Vlm) -> PixelSettings:
        """How frames are prepared: as the checkpoint says, within the limits given here.

        Raises:
            ConfigError: frames of the model's family have one size.
        """
        if self.pixels is None:
            return vlm.pixels
        if not (family := family_class(vlm.model)).takes_any_size:
            raise ConfigError(
                f"frames of {family.model_type} have one size, and pixels limits free ones. Leave pixels out."
            )
        return limited_pixels(vlm.pixels, self.pixels)


def _named(value: Any) -> Any:
    """A policy by its name in `POLICIES`; every other value as it is."""
    return next((name for name, kind in POLICIES.items() if type(value) is kind), value)


def _same(name: str, there: Any, value: Any) -> bool:
    if name == "memory_budget" and there is not None:
        return read_amount(there) == read_amount(value)
    return bool(there == value)


def limited_pixels(settings: PixelSettings, pixels: int | tuple[int, int]) -> PixelSettings:
    """Pixel settings with other limits.

    Raises:
        ConfigError: they are none.

    Example:
        >>> limited_pixels(PixelSettings(), 50_000).min_pixels
        50000
    """
    if not fits(pixels, int | tuple[int, int]):
        raise ConfigError(f"pixels must be a whole number, or two, got {pixels!r:.60}.")
    sides = (min(settings.min_pixels, pixels), pixels) if isinstance(pixels, int) else tuple(pixels)
    if not 1 <= sides[0] <= sides[1]:
        raise ConfigError(f"pixels must be the most pixels of a frame, or fewest and most, got {pixels!r}.")
    return replace(settings, min_pixels=sides[0], max_pixels=sides[1])
