from torch import Tensor, nn

from kinescan.layers.mamba import Mamba, MambaState
from kinescan.shapes import Tokens


class Scanner(nn.Module):
    """One selective scan along time for every patch location, all locations at once; KS4 in the paper.

    It gives what is to be added to the tokens; the output projection is zero at the start, so that it adds nothing.

    Args:
        width: channels of a token.
        state_size: size of the state of each inner channel.
        conv_kernel: kernel size of the causal convolution over time.
        expand: inner width over `width`.
        bidirectional: add a second full scanner on the reversed sequence (Table 7); it shares the normalisation.
        norm_eps: epsilon of the normalisation.

    Source: PKS4 (arXiv 2604.26461), eq. 3-4 and 19-25.
    Differs: the residual of eq. 25 is added by the caller (see `PKS4Config.residual`).
    """

    def __init__(
        self,
        width: int,
        *,
        state_size: int = 16,
        conv_kernel: int = 4,
        expand: int = 2,
        bidirectional: bool = False,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()

        def block() -> Mamba:
            return Mamba(width, state_size=state_size, conv_kernel=conv_kernel, expand=expand, zero_output=True)

        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.mamba = block()
        self.mamba_reverse = block() if bidirectional else None

    def forward(
        self, tokens: Tokens, state: MambaState | None = None, *, keep_state: bool = True
    ) -> tuple[Tokens, MambaState | None]:
        """What the scan adds to each token, and the state after the last frame.

        Args:
            tokens: [B, T, N, W], patch tokens with their kinematic prior.
            state: where the scan continues from, R = B * N trajectories; not with `bidirectional`.
            keep_state: give the state after the last frame.

        Returns:
            [B, T, N, W] and the state, or None.
        """
        return self._scan(tokens, state, None, keep_state=keep_state)

    def _scan(
        self, tokens: Tokens, state: MambaState | None, step_weights: Tensor | None, *, keep_state: bool
    ) -> tuple[Tokens, MambaState | None]:
        """The scan of every trajectory; `step_weights` [B * N, T] as `Mamba` takes them."""
        batch, num_frames, num_patches, width = tokens.shape
        tracks = tokens.transpose(1, 2).reshape(batch * num_patches, num_frames, width)
        tracks = self.norm(tracks)
        out, state = self.mamba(tracks, state, step_weights=step_weights, keep_state=keep_state)
        if self.mamba_reverse is not None:
            turned = None if step_weights is None else step_weights.flip(1)
            out = out + self.mamba_reverse(tracks.flip(1), step_weights=turned, keep_state=False)[0].flip(1)
        return out.reshape(batch, num_patches, num_frames, width).transpose(1, 2), state
