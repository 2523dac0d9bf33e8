from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinescan.errors import ConfigError
from kinescan.ops import local_correlation
from kinescan.ops.backend import transformed
from kinescan.ops.local_correlation import Border, local_correlation_step
from kinescan.shapes import FrameMaps

Norm = Literal["batch", "group"]
CHANNELS_PER_GROUP = 8
LENGTH_EPSILON = 1e-6
"""Added to squared lengths before normalising, as in the published correlation block."""


@dataclass
class KinematicState:
    """The reduced frames that a causal encoder carries: constant size, whatever came before.

    Attributes:
        correlation: [B, c, h, Hp, Wp], the last c reduced frames of the correlation operator (None when it is off).
        variation: the same of the variation operator.
        fresh: [B], whether a stream has had no frame yet, so that its part of the tensors does not count; None where
            all have had some.
    """

    correlation: Tensor | None = None
    variation: Tensor | None = None
    fresh: Tensor | None = None


class ConvNormAct(nn.Module):
    """Convolution without bias within each frame, normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = _make_norm(norm, out_channels)

    def forward(self, maps: Tensor) -> Tensor:
        """[F, in, H, W] -> [F, out, H, W]."""
        convolved = self.conv(maps)
        # Within torch.func, group norm cannot take what the convolution gives, channels last.
        return F.relu(self.norm(convolved.contiguous() if transformed() else convolved))


class _Operator(nn.Module):
    """What both operators share: reduce each frame, compare it with the frames around it, expand and add.

    Args:
        width: channels of the backbone.
        hidden_width: channels h of the reduced frames.
        offsets: the frames to compare with, relative to the frame itself.
        border: what frames outside the clip are.
        norm: normalisation after each convolution.
    """

    def __init__(self, width: int, hidden_width: int, *, offsets: tuple[int, ...], border: Border, norm: Norm) -> None:
        super().__init__()
        self.offsets = offsets
        self.border: Border = border
        self.reduce = ConvNormAct(width, hidden_width, 3, norm=norm)
        self.fuse = ConvNormAct(len(offsets) * hidden_width, hidden_width, 3, norm=norm)
        self.expand = nn.Conv2d(hidden_width, width, 1, bias=False)
        nn.init.zeros_(self.expand.weight)

    def forward(
        self, maps: FrameMaps, context: Tensor | None = None, fresh: Tensor | None = None
    ) -> tuple[FrameMaps, Tensor | None]:
        """What the operator adds to the maps, and the reduced frames that the next frames will look back at.

        Args:
            maps: [B, T, W, Hp, Wp].
            context: [B, c, h, Hp, Wp], reduced frames before the first one; None at the start of a clip.
            fresh: [B], the clips that start here all the same; None: none of them.

        Returns:
            [B, T, W, Hp, Wp] and the new context (None unless every offset looks back).
        """
        batch, num_frames = maps.shape[:2]
        reduced = self.reduce(maps.flatten(0, 1)).unflatten(0, (batch, num_frames))
        if context is not None and fresh is not None:
            start = self._before(reduced, None, context.shape[1]).to(context.dtype)
            context = torch.where(fresh[:, None, None, None, None], start, context)
        signals = self.compare(reduced, context)  # [B, T, K, h, Hp, Wp]
        added = self.expand(self.fuse(signals.flatten(0, 1).flatten(1, 2)))
        return added.unflatten(0, (batch, num_frames)), self._next_context(reduced, context)

    def compare(self, reduced: FrameMaps, context: Tensor | None) -> Tensor:
        """[B, T, h, Hp, Wp] -> [B, T, K, h, Hp, Wp]: each frame against each offset."""
        raise NotImplementedError  # pragma: no cover  (each operator has its own)

    def _next_context(self, reduced: Tensor, context: Tensor | None) -> Tensor | None:
        if max(self.offsets) > 0:
            return None
        length = -min(self.offsets)
        # A copy: a view would keep the frames of the whole chunk alive as long as the state.
        return torch.cat([self._before(reduced, context, length), reduced], dim=1)[:, reduced.shape[1] :].clone()

    def _before(self, reduced: Tensor, context: Tensor | None, length: int) -> Tensor:
        """[B, length, h, Hp, Wp]: the frames before the first one."""
        if context is not None:
            return context[:, context.shape[1] - length :].to(reduced.dtype)
        shape = (-1, length, -1, -1, -1)
        first = reduced[:, :1]
        return first.expand(shape) if self.border == "replicate" else torch.zeros_like(first).expand(shape)

    def _padded(self, reduced: Tensor, context: Tensor | None) -> tuple[Tensor, int]:
        """The frames with those outside the clip on both sides, and how many stand before the first."""
        before, after = max(0, -min(self.offsets)), max(0, max(self.offsets))
        last = reduced[:, -1:] if self.border == "replicate" else torch.zeros_like(reduced[:, :1])
        parts = [self._before(reduced, context, before), reduced, last.expand(-1, after, -1, -1, -1)]
        return torch.cat(parts, dim=1), before


class CorrelationOperator(_Operator):
    """O_corr: where each patch is found again in the frames around it.

    Reduced frames are normalised and correlated in a window; the maps of each offset go through shared convolutions,
    all offsets are fused, and a projection that is zero at the start gives what is added to the maps.

    Args:
        width: channels of the backbone.
        hidden_width: channels of the reduced frames.
        offsets: the frames to compare with, relative to the frame itself.
        window: side of the square of displacements, in patches; odd.
        border: what frames outside the clip are.
        norm: normalisation after each convolution.

    Source: PKS4 (arXiv 2604.26461), eq. 15-16; layer sizes of ATM's correlation block (Wu et al., ICCV 2023).
    """

    def __init__(
        self,
        width: int,
        hidden_width: int = 64,
        *,
        offsets: tuple[int, ...] = (-2, -1, 0, 1, 2),
        window: int = 9,
        border: Border = "zeros",
        norm: Norm = "batch",
    ) -> None:
        super().__init__(width, hidden_width, offsets=offsets, border=border, norm=norm)
        self.window = window
        self.encode = nn.Sequential(
            ConvNormAct(window**2, hidden_width, 3, norm=norm),
            *(ConvNormAct(hidden_width, hidden_width, 3, norm=norm) for _ in range(3)),
        )

    def compare(self, reduced: FrameMaps, context: Tensor | None) -> Tensor:
        """Correlation maps of each offset, encoded: [B, T, K, h, Hp, Wp]."""
        maps = self.correlate(reduced, context)  # [B, T, K, window ** 2, Hp, Wp]
        return self.encode(maps.flatten(0, 2)).unflatten(0, maps.shape[:3])

    def correlate(self, reduced: FrameMaps, context: Tensor | None = None) -> Tensor:
        """The correlation maps themselves: [B, T, K, window ** 2, Hp, Wp], each value a cosine."""
        if max(self.offsets) <= 0 and reduced.shape[1] == 1:
            padded, before = self._padded(reduced, context)
            around = torch.stack([padded[:, before + offset] for offset in self.offsets], dim=1)
            return local_correlation_step(reduced[:, 0], around, window=self.window, epsilon=LENGTH_EPSILON).unsqueeze(
                1
            )
        if context is None:
            return local_correlation(
                reduced, offsets=self.offsets, window=self.window, border=self.border, epsilon=LENGTH_EPSILON
            )
        padded, before = self._padded(reduced, context)
        maps = local_correlation(padded, offsets=self.offsets, window=self.window, epsilon=LENGTH_EPSILON)
        return maps[:, before:]


class VariationOperator(_Operator):
    """O_var: where things change, from differences between the frame and those around it.

    Differences of reduced frames go through shared convolutions, all offsets are fused, and a projection that is zero
    at the start (phi of eq. 14) gives what is added to the maps.

    Args:
        width: channels of the backbone.
        hidden_width: channels of the reduced frames.
        offsets: the frames to compare with, relative to the frame itself.
        border: what frames outside the clip are.
        norm: normalisation after each convolution.

    Source: PKS4 (arXiv 2604.26461), eq. 17-18; layer sizes of ATM's difference block (Wu et al., ICCV 2023).
    """

    def __init__(
        self,
        width: int,
        hidden_width: int = 64,
        *,
        offsets: tuple[int, ...] = (-2, -1, 0, 1, 2),
        border: Border = "zeros",
        norm: Norm = "batch",
    ) -> None:
        super().__init__(width, hidden_width, offsets=offsets, border=border, norm=norm)
        self.encode = nn.Sequential(*(ConvNormAct(hidden_width, hidden_width, 3, norm=norm) for _ in range(2)))

    def compare(self, reduced: FrameMaps, context: Tensor | None) -> Tensor:
        """Differences to each offset, encoded: [B, T, K, h, Hp, Wp]."""
        changes = self.differences(reduced, context)
        return self.encode(changes.flatten(0, 2)).unflatten(0, changes.shape[:3])

    def differences(self, reduced: FrameMaps, context: Tensor | None = None) -> Tensor:
        """f(t + tau) - f(t) for each offset tau: [B, T, K, h, Hp, Wp]."""
        num_frames = reduced.shape[1]
        padded, before = self._padded(reduced, context)
        starts = [before + offset for offset in self.offsets]
        return torch.stack([padded[:, s : s + num_frames] - reduced for s in starts], dim=2)


class KinematicEncoder(nn.Module):
    """KPE: enriches the patch maps with where things moved, then with where they changed.

    Args:
        width: channels of the backbone.
        hidden_width: channels of the reduced frames.
        correlation: use O_corr.
        variation: use O_var.
        context_frames: how many frames around each frame are looked at: 0, 2, 4, 6 (Table 8).
        window: side of the correlation window in patches; odd.
        causal: look back only, at frames t - context_frames ... t.
        border: what frames outside the clip are: "zeros", or the end frame repeated ("replicate").
        norm: "batch" (statistics over frames and clips) or "group" (groups of 8 channels within each frame).

    Source: PKS4 (arXiv 2604.26461), eq. 12-18.
    Differs: the causal form is ours; the paper names neither the norm nor the border.
    """

    def __init__(
        self,
        width: int,
        hidden_width: int = 64,
        *,
        correlation: bool = True,
        variation: bool = True,
        context_frames: int = 4,
        window: int = 9,
        causal: bool = False,
        border: Border = "zeros",
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        offsets = kinematic_offsets(context_frames, causal=causal)
        self.correlation = (
            CorrelationOperator(width, hidden_width, offsets=offsets, window=window, border=border, norm=norm)
            if correlation
            else None
        )
        self.variation = (
            VariationOperator(width, hidden_width, offsets=offsets, border=border, norm=norm) if variation else None
        )

    def forward(self, maps: FrameMaps, state: KinematicState | None = None) -> tuple[FrameMaps, KinematicState]:
        """The prior, to be added to the maps, and the frames that the next ones will look back at.

        Args:
            maps: [B, T, W, Hp, Wp].
            state: carried from the frames before, of a causal encoder.

        Returns:
            [B, T, W, Hp, Wp], zero at the start of training, and the state (empty unless causal).
        """
        state = state or KinematicState()
        added, carried = torch.zeros((), dtype=maps.dtype, device=maps.device), KinematicState()
        if self.correlation is not None:
            added, carried.correlation = self.correlation(maps, state.correlation, state.fresh)
        if self.variation is not None:
            prior, carried.variation = self.variation(maps + added, state.variation, state.fresh)
            added = added + prior
        return added, carried


def kinematic_offsets(context_frames: int, *, causal: bool) -> tuple[int, ...]:
    """The frames to compare with, relative to the frame itself, which is always among them.

    Raises:
        ConfigError: context_frames is negative or odd.

    Example:
        >>> kinematic_offsets(4, causal=False), kinematic_offsets(4, causal=True)
        ((-2, -1, 0, 1, 2), (-4, -3, -2, -1, 0))
    """
    if context_frames < 0 or context_frames % 2:
        raise ConfigError(
            f"context_frames must be even and not negative, got {context_frames}. The paper tries 0 to 6."
        )
    if causal:
        return tuple(range(-context_frames, 1))
    return tuple(range(-(context_frames // 2), context_frames // 2 + 1))


def _make_norm(norm: Norm, channels: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if channels % CHANNELS_PER_GROUP:
        raise ConfigError(
            f"norm='group' takes groups of {CHANNELS_PER_GROUP} channels; kinematic_width {channels} is not a multiple."
        )
    return nn.GroupNorm(channels // CHANNELS_PER_GROUP, channels)
