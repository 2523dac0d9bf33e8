"""Which patch locations are scanned: the gate that reads the kinematic prior."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kinescan.errors import ConfigError
from kinescan.layers.mamba import Mamba, MambaState
from kinescan.layers.scanner import Scanner
from kinescan.shapes import Tokens

EPSILON = 1e-6
"""Added to squared strengths before the logarithm: without a prior, all locations have equal scores."""
START_STRENGTH = 4.0
"""Start value of `strength`: a prior 1.65 times as strong as that at the threshold has a gate of 0.88."""

Scores = Float[Tensor, "B T N"]


class TrajectoryGate(nn.Module):
    """How much each trajectory is scanned in each frame, by the kinematic prior there.

    The score is `strength * log(rms of the prior) + direction . prior`; both are learned, and `direction` starts at
    zero: at first, those locations are scanned where the prior is strongest. The gate is the sigmoid of the distance
    to the threshold, which lies in the middle between the last score that is chosen and the first that is not.

    Args:
        width: channels of the prior.
        ratio: fraction of the frame's locations that are chosen, in (0, 1]; at least one location is.

    Source: PKS4 (arXiv 2604.26461) names it as its next step; the form is ours.
    """

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.strength = nn.Parameter(torch.empty(()))
        self.direction = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start values: the score depends on the strength of the prior alone."""
        nn.init.constant_(self.strength, START_STRENGTH)
        nn.init.zeros_(self.direction)

    def num_chosen(self, num_locations: int) -> int:
        """How many of a frame's locations are scanned; the same in every frame."""
        return min(num_locations, max(1, math.ceil(self.ratio * num_locations)))

    def forward(self, prior: Tokens) -> tuple[Scores, Tensor]:
        """The gate of every location, and the locations that are chosen.

        Args:
            prior: [B, T, N, W], what the kinematic encoder adds to each patch.

        Returns:
            Gates [B, T, N] in (0, 1), of the chosen at least 0.5; and the chosen locations [B, T, k], int64, ascending.
        """
        rms_squared = prior.float().square().mean(dim=-1)
        scores = self.strength * 0.5 * torch.log(rms_squared + EPSILON) + prior.float() @ self.direction.float()
        num_locations = scores.shape[2]
        count = self.num_chosen(num_locations)
        if count == num_locations:
            every = torch.arange(count, device=scores.device).expand(*scores.shape[:2], -1)
            return torch.ones_like(scores), every
        best, order = scores.detach().topk(count + 1, dim=2)
        threshold = best[:, :, -2:].mean(dim=2, keepdim=True)
        return torch.sigmoid(scores - threshold), order[:, :, :count].sort(dim=2).values

    def extra_repr(self) -> str:
        """The ratio, for printing."""
        return f"ratio={self.ratio:g}"


class GatedScanner(Scanner):
    """The scanner over the trajectories that a gate chooses, frame by frame.

    In training all are scanned, softly: the step size and what is added are multiplied by the gate, so that a closed
    gate writes nothing into a trajectory's state and adds nothing to its token. In evaluation the best of each frame
    alone are gathered, scanned and scattered, with the same gates; the others' states stay as they are, and nothing is
    added to their tokens. A choice belongs to its frame, so that a stream gives what the whole clip gives.

    Args:
        width: channels of a token.
        gate_ratio: fraction of a frame's locations that are scanned; 1 is `Scanner`, bit for bit.
        state_size: see `Scanner`.
        conv_kernel: see `Scanner`.
        expand: see `Scanner`.
        bidirectional: see `Scanner`.
        norm_eps: see `Scanner`.

    Source: PKS4 (arXiv 2604.26461), eq. 19-25, and its outlook; the form is ours.
    Differs: in training, the convolution over time sees every frame of a trajectory, in evaluation those in which it
        was chosen: a stream could not do otherwise without computing what it wants to save.
    """

    def __init__(
        self,
        width: int,
        *,
        gate_ratio: float,
        state_size: int = 16,
        conv_kernel: int = 4,
        expand: int = 2,
        bidirectional: bool = False,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__(
            width,
            state_size=state_size,
            conv_kernel=conv_kernel,
            expand=expand,
            bidirectional=bidirectional,
            norm_eps=norm_eps,
        )
        self.gate = TrajectoryGate(width, gate_ratio)

    def forward(
        self,
        tokens: Tokens,
        state: MambaState | None = None,
        prior: Tokens | None = None,
        *,
        keep_state: bool = True,
    ) -> tuple[Tokens, MambaState | None]:
        """What the scan adds to each token, and the state after the last frame.

        Args:
            tokens: [B, T, N, W], patch tokens with their kinematic prior.
            state: where the scan continues from, R = B * N trajectories.
            prior: [B, T, N, W], of the kinematic encoder.
            keep_state: give the state after the last frame.

        Returns:
            [B, T, N, W], zero where nothing was scanned, and the state, or None.

        Raises:
            ConfigError: the prior is missing.
        """
        if prior is None:
            raise ConfigError("a gated scanner chooses by the kinematic prior: give it to forward as prior.")
        if self.gate.num_chosen(tokens.shape[2]) == tokens.shape[2]:
            return super().forward(tokens, state, keep_state=keep_state)
        gates, chosen = self.gate(prior)
        if self.training:
            scanned, state = self._scan(tokens, state, gates.transpose(1, 2).flatten(0, 1), keep_state=keep_state)
            return scanned * gates[..., None].to(scanned.dtype), state
        gates = gates.gather(2, chosen)
        out, state = self._scan_chosen(self.mamba, tokens, gates, chosen, state)
        if self.mamba_reverse is not None:
            turned = tokens.flip(1), gates.flip(1), chosen.flip(1)
            out = out + self._scan_chosen(self.mamba_reverse, *turned, None)[0].flip(1)
        return out, state if keep_state else None

    def _scan_chosen(
        self, mamba: Mamba, tokens: Tokens, gates: Tensor, chosen: Tensor, state: MambaState | None
    ) -> tuple[Tokens, MambaState]:
        """Frame by frame: gates and chosen [B, T, k]; the state given is left as it is."""
        batch, num_frames, num_patches, width = tokens.shape
        scan, tail = _copied(mamba, state, batch * num_patches, tokens)
        out = []
        first_rows = num_patches * torch.arange(batch, device=tokens.device)[:, None]
        for t in range(num_frames):
            rows = (first_rows + chosen[:, t]).flatten()  # [B * k], among trajectories
            picked = self.norm(tokens[:, t].flatten(0, 1)[rows])
            gate = gates[:, t].reshape(-1, 1)
            own = MambaState(scan[rows], tail[rows])
            added, after = mamba(picked[:, None], own, step_weights=gate)
            assert after is not None, "asked for"
            # In place: copying the state of all trajectories in every frame would cost what the gate saves.
            scan.index_copy_(0, rows, after.scan)
            tail.index_copy_(0, rows, after.conv_tail.to(tail.dtype))
            weighted = added[:, 0] * gate.to(added.dtype)
            whole = weighted.new_zeros(batch * num_patches, width).index_copy(0, rows, weighted)
            out.append(whole.unflatten(0, (batch, num_patches)))
        return torch.stack(out, dim=1), MambaState(scan, tail)


def _copied(mamba: Mamba, state: MambaState | None, num_tracks: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Scan and convolution's tail of all trajectories, to be written into."""
    if state is not None:
        return state.scan.clone(), state.conv_tail.clone()
    scan = torch.zeros(num_tracks, mamba.inner_width, mamba.state_size, device=like.device)
    if like.dtype == torch.float64:
        scan = scan.double()
    return scan, like.new_zeros(num_tracks, mamba.conv1d.kernel_size[0] - 1, mamba.inner_width)
