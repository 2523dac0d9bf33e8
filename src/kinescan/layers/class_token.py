from typing import Literal

import torch
from torch import Tensor, nn

ClassTokenRouteKind = Literal["none", "conv", "token_shift", "tsm"]


class TemporalMix(nn.Module):
    """Mixes tokens over time with a depthwise convolution of kernel size 3: the part that all class-token routes share.

    The filter sees frames t-1, t, t+1, or, causal, t-2, t-1, t. Frames outside the clip count as zeros.

    Args:
        width: channels of a token.
        causal: look only at frames that have been seen.
    """

    kernel_size = 3
    replaces_residual = True
    """True: the mixed tokens continue in the residual stream. False: only the following branch sees them."""

    def __init__(self, width: int, *, causal: bool = False) -> None:
        super().__init__()
        self.width = width
        self.causal = causal

    def kernel(self) -> Tensor:
        """The kernel [width, 3]: the weight of each frame in the order of time."""
        raise NotImplementedError  # pragma: no cover  (each route has its own)

    def mixed_tokens(self, num_tokens: int) -> slice:
        """Which of a frame's M tokens are mixed: a slice from 0."""
        return slice(0, 1)

    def filter_macs(self, tokens: Tensor) -> int:
        """MACs of the filter on tokens [B, T, M, width]; it is a sum that no operation shows."""
        num_mixed = len(range(tokens.shape[2])[self.mixed_tokens(tokens.shape[2])])
        return tokens.shape[0] * tokens.shape[1] * num_mixed * self.width * self.kernel_size

    def forward(
        self, tokens: Tensor, state: Tensor | None = None, *, in_place: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The tokens with those that take part mixed over time, and what the next frames need.

        Args:
            tokens: [B, T, M, width], the class token first.
            state: [B, 2, m, width], the last two frames of the m tokens that take part; None at the start of a clip.
            in_place: write the mixed tokens into `tokens` instead of copying the others; for a caller who needs no
                gradients and to whom alone `tokens` belongs.

        Returns:
            Tokens [B, T, M, width], `tokens` itself with `in_place`; and the new state (None unless causal), which
            shares no memory with them.
        """
        num_frames = tokens.shape[1]
        chosen = self.mixed_tokens(tokens.shape[2])
        part = tokens[:, :, chosen]
        before = 2 if self.causal else 1
        margin = part.new_zeros(part.shape[0], before, *part.shape[2:]) if state is None else state.to(part.dtype)
        after = [] if self.causal else [torch.zeros_like(part[:, :1])]
        padded = torch.cat([margin, part, *after], dim=1)  # [B, T + 2, m, width]
        kernel = self.kernel().to(part.dtype)
        mixed = sum(padded[:, k : k + num_frames] * kernel[:, k] for k in range(self.kernel_size))
        assert isinstance(mixed, Tensor)
        # A copy: a view would keep the tokens of the whole chunk alive as long as the state.
        tail = padded[:, -2:].clone() if self.causal else None
        if in_place:
            part.copy_(mixed)
            return tokens, tail
        rest = tokens[:, :, chosen.stop :]
        return torch.cat([mixed, rest], dim=2) if rest.shape[2] else mixed, tail


class ClassTokenConv(TemporalMix):
    """A learned depthwise convolution over time on the class token, which replaces it (TokenT1D).

    It starts as a shift: the first quarter of the channels takes frame t+1, the second quarter t-1, the rest the
    frame itself; causal: a quarter takes t-1, the rest the frame itself.

    Source: PKS4 (arXiv 2604.26461), eq. 6 and Table 9; ATM (Wu et al., ICCV 2023), TokenT1D.
    Differs: the causal form is ours.
    """

    def __init__(self, width: int, *, causal: bool = False) -> None:
        super().__init__(width, causal=causal)
        self.weight = nn.Parameter(torch.empty(width, 1, self.kernel_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The shift that training starts from."""
        with torch.no_grad():
            self.weight.copy_(_shift_kernel(self.width, self.width // 4, self.causal).unsqueeze(1))

    def kernel(self) -> Tensor:
        """[width, 3], learned."""
        return self.weight.squeeze(1)


class ClassTokenShift(TemporalMix):
    """A fixed shift of a quarter of the class token's channels in each direction (TokenShift); no parameters.

    Source: TokenShift (Zhang et al., ACM MM 2021), as in PKS4, Table 9.
    """

    num_folds = 4

    def __init__(self, width: int, *, causal: bool = False) -> None:
        super().__init__(width, causal=causal)
        self.register_buffer("shift", torch.empty(width, self.kernel_size), persistent=False)
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """The fixed filter, which no checkpoint holds."""
        assert isinstance(self.shift, Tensor)
        self.shift.copy_(_shift_kernel(self.width, self.width // self.num_folds, self.causal))

    def kernel(self) -> Tensor:
        """[width, 3], fixed."""
        assert isinstance(self.shift, Tensor)
        return self.shift


class AllTokensShift(ClassTokenShift):
    """A fixed shift of an eighth of the channels in each direction, on every token (TSM); no parameters.

    Source: TSM (Lin et al., ICCV 2019), as in PKS4, Table 9.
    Differs: PKS4 does not say where the shift sits; we take TSM's residual form (only the branch sees shifted tokens),
        since shifting the residual stream itself twice in every block would tear the patches apart.
    """

    num_folds = 8
    replaces_residual = False

    def mixed_tokens(self, num_tokens: int) -> slice:
        """All of them."""
        return slice(0, num_tokens)


ROUTES: dict[str, type[TemporalMix]] = {
    "conv": ClassTokenConv,
    "token_shift": ClassTokenShift,
    "tsm": AllTokensShift,
}


def _shift_kernel(width: int, fold: int, causal: bool) -> Tensor:
    """[width, 3]: `fold` channels from frame t+1, as many from t-1, the rest from t (causal: `fold` from t-1)."""
    kernel = torch.zeros(width, 3)
    if causal:
        kernel[:fold, 1] = 1
        kernel[fold:, 2] = 1
    else:
        kernel[:fold, 2] = 1
        kernel[fold : 2 * fold, 0] = 1
        kernel[2 * fold :, 1] = 1
    return kernel
