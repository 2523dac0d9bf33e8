"""Which keys of the past a frame may still attend to, in every layer and key head."""

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from kinescan.errors import ConfigError
from kinescan.settings import closest, old_name, renamed, renamed_parameters

Asked = Literal["all", "frame", "text"]
"""Whose attention weights make a score."""
GOLDEN_RATIO_FRACTION = 0.6180339887498949
"""Fractions of its multiples lie evenly spread in [0, 1) (see `Uniform`)."""


@renamed(mass="scores", places="patch_indices")
@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The keys of one layer that a policy chooses from: the old state, then the newest step.

    Attributes:
        positions: [Hkv, L] index of each key's token in the stream, int64, ascending.
        scores: [Hkv, L] attention score that each key received in this step, float32; None where the policy asks for
            none.
        history: [Hkv, L] attention score received in earlier steps, float32, 0 for new keys; None where nothing is
            accumulated.
        keys: [Hkv, L, D], rotated to their positions.
        values: [Hkv, L, D].
        patch_indices: [Hkv, L] index of each token in its step, counted from the step's end, from 1: tokens of the
            same patch of their frames have the same number. Given where a full KV cache is
            limited (see `memory_budget`), None for the compressed state.
        counts: [Hkv, L] how many tokens each stands for, float32; likewise.
    """

    positions: Int[Tensor, "Hkv L"]
    scores: Float[Tensor, "Hkv L"] | None = None
    history: Float[Tensor, "Hkv L"] | None = None
    keys: Float[Tensor, "Hkv L D"] | None = None
    values: Float[Tensor, "Hkv L D"] | None = None
    patch_indices: Int[Tensor, "Hkv L"] | None = None
    counts: Float[Tensor, "Hkv L"] | None = None


@dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """Ranks keys; the best `budget` of each key head stay. A new policy is a subclass and one line in `POLICIES`.

    Source: StateKV (arXiv 2605.31598), which compares such policies; each subclass names its own.
    """

    needs_places = old_name("needs_places", "needs_patch_indices")

    def __init_subclass__(cls) -> None:
        # A policy that was written against version 0.1 overrides the property by its old name.
        if "needs_places" in vars(cls):
            text = f"{cls.__name__}.needs_places is deprecated. Define needs_patch_indices."
            warnings.warn(text, DeprecationWarning, stacklevel=2)
            cls.needs_patch_indices = cls.needs_places  # type: ignore[method-assign]

    @property
    def accumulates(self) -> bool:
        """Whether scores of earlier steps count (and have to be computed at every step)."""
        return False

    @property
    def needs_patch_indices(self) -> bool:
        """Whether `patch_indices` have to be known, as they are in a limited full KV cache alone."""
        return False

    @renamed_parameters(mass="scores")
    def remembered(self, scores: Tensor, history: Tensor | None) -> Tensor:
        """What `history` becomes with a step's scores, both [Hkv, L], where the policy accumulates: their sum."""
        return scores if history is None else history + scores

    @property
    def asked(self) -> Asked:
        """Which of the newest queries count: all, or those of the encoder's or of the text's tokens."""
        return "all"

    def observed(self, num_queries: int) -> int | None:
        """How many of a step's newest queries are asked for their weights; None where no scores are needed."""
        return None

    def merged(
        self, candidates: Candidates, kept: Int[Tensor, "Hkv B"], values: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Values and counts once the tokens that go have left something with those that stay.

        By default they leave nothing. Called only for a full KV cache that has a limit.

        Args:
            candidates: all tokens of one layer.
            kept: indices of those that stay, ascending.
            values: [1, Hkv, L, D], of all tokens.
            counts: [Hkv, L], how many tokens each stands for.

        Returns:
            values and counts of all tokens, in the same shapes; only those of `kept` are used.
        """
        return values, counts

    @abstractmethod
    def rank(self, candidates: Candidates, budget: int) -> Tensor:
        """[Hkv, L]: the higher, the sooner kept."""

    def select(self, candidates: Candidates, budget: int) -> Int[Tensor, "Hkv B"]:
        """Indices of the keys that stay, ascending, so that the state remains sorted by position.

        Args:
            candidates: the keys of one layer.
            budget: how many stay in each key head; all, where there are fewer.

        Returns:
            [Hkv, min(budget, L)] int64.

        Example:
            >>> scores = torch.tensor([[0.1, 0.9, 0.3, 0.7]])
            >>> StateKV().select(Candidates(positions=torch.arange(4)[None], scores=scores), 2)
            tensor([[1, 3]])
        """
        kept = min(budget, candidates.positions.shape[1])
        return self.rank(candidates, budget).topk(kept, dim=-1).indices.sort(dim=-1).values


@dataclass(frozen=True, kw_only=True)
class StateKV(Policy):
    """The keys with the largest attention score in the newest step, old state and new keys alike; no decay.

    That is the published rule, and the default. What it leaves free are settings; what they do is measured in
    docs/statekv.md.

    Attributes:
        queries: whose weights are summed: "all" tokens' of the step, the "frame"'s own, or those of the "text" that
            the chat template puts around it. Where a step has none of the kind, all are.
        recent_ratio: fraction of the budget that goes to the newest keys, whatever their score.
        decay: what a step's scores still count one step later; 0 forgets it, 1 sums over all steps.

    Source: StateKV (arXiv 2605.31598).
    Differs: `queries`, `recent_ratio` and `decay`, where they are not left at their defaults.
    """

    queries: Asked = "all"
    recent_ratio: float = 0.0
    decay: float = 0.0

    def __post_init__(self) -> None:
        if self.queries not in get_args(Asked):
            raise ConfigError(f"unknown queries {self.queries!r}. {closest(str(self.queries), get_args(Asked))}")
        for name in ("recent_ratio", "decay"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], got {value!r}.")

    @property
    @override
    def accumulates(self) -> bool:
        return self.decay > 0

    @property
    @override
    def asked(self) -> Asked:
        return self.queries

    @override
    @renamed_parameters(mass="scores")
    def remembered(self, scores: Tensor, history: Tensor | None) -> Tensor:
        return scores if history is None else self.decay * history + scores

    @override
    def observed(self, num_queries: int) -> int | None:
        return num_queries

    @override
    def rank(self, candidates: Candidates, budget: int) -> Tensor:
        total = _scores(candidates)
        if self.decay and candidates.history is not None:
            total = total + self.decay * candidates.history
        return _newest_first(total, int(self.recent_ratio * budget))


@dataclass(frozen=True, kw_only=True)
class Recency(Policy):
    """The newest keys.

    Source: StateKV (arXiv 2605.31598), the baseline named ReKV there (a window of 16 frames).
    """

    @override
    def rank(self, candidates: Candidates, budget: int) -> Tensor:
        return candidates.positions


@dataclass(frozen=True, kw_only=True)
class SinksAndRecency(Policy):
    """The first tokens of the stream, on which softmax parks unused weight, and the newest keys.

    Attributes:
        sinks: tokens kept from the start.

    Source: StreamingLLM (arXiv 2309.17453).
    """

    sinks: int = 4

    def __post_init__(self) -> None:
        if self.sinks < 0:
            raise ConfigError(f"sinks must be at least 0, got {self.sinks}.")

    @override
    def rank(self, candidates: Candidates, budget: int) -> Tensor:
        positions = candidates.positions
        return torch.where(positions < self.sinks, torch.iinfo(positions.dtype).max, positions)


@dataclass(frozen=True, kw_only=True)
class Uniform(Policy):
    """Keys spread evenly over everything seen so far.

    Token p has the fixed priority frac(p * golden ratio): those below any threshold lie evenly (their gaps take at most
    three values), and a token once dropped never ranks among the best again, so no look at the future is needed.
    """

    @override
    def rank(self, candidates: Candidates, budget: int) -> Tensor:
        return -(candidates.positions.double() * GOLDEN_RATIO_FRACTION).frac()


@dataclass(frozen=True, kw_only=True)
class RandomSample(Policy):
    """A uniform random sample of everything seen so far, sampled anew for each key head.

    Attributes:
        seed: other seeds give other samples.
    """

    seed: int = 0

    @override
    def rank(self, candidates: Candidates, budget: int) -> Tensor:
        positions = candidates.positions
        heads = torch.arange(len(positions), device=positions.device)[:, None]
        mixed = (positions * 2654435761 + heads * 40503 + self.seed * 97) & 0xFFFFFFFF
        for shift in (16, 15, 16):
            mixed = ((mixed ^ (mixed >> shift)) * 0x45D9F3B) & 0xFFFFFFFF
        return mixed


@dataclass(frozen=True, kw_only=True)
class AccumulatedScores(Policy):
    """The newest keys, and of the rest those whose attention score, summed over all steps, is largest.

    Attributes:
        recent_ratio: fraction of the budget that goes to the newest keys.

    Source: H2O (arXiv 2306.14048).
    Differs: attention scores are summed per key head over its query heads, and keys leave once a step, not a token.
    """

    recent_ratio: float = 0.5

    @property
    @override
    def accumulates(self) -> bool:
        return True

    def __post_init__(self) -> None:
        if not 0 <= self.recent_ratio <= 1:
            raise ConfigError(f"recent_ratio must lie in [0, 1], got {self.recent_ratio}.")

    @override
    def observed(self, num_queries: int) -> int | None:
        return num_queries

    @override
    def rank(self, candidates: Candidates, budget: int) -> Tensor:
        total = _scores(candidates)
        total = total if candidates.history is None else total + candidates.history
        return _newest_first(total, int(self.recent_ratio * budget))


@dataclass(frozen=True, kw_only=True)
class LastQueries(Policy):
    """The keys that the newest queries of the step look at, smoothed over neighbours, and these newest keys themselves.

    Attributes:
        window: queries that are asked, in tokens.
        pooling: keys over which the largest attention score is taken; odd.

    Source: SnapKV (arXiv 2404.14469).
    Differs: the newest queries are the frame's own, since the question must not take part; one selection for all query
    heads that share a key head.
    """

    window: int = 32
    pooling: int = 7

    def __post_init__(self) -> None:
        if self.window < 1 or self.pooling < 1 or self.pooling % 2 == 0:
            raise ConfigError(f"window must be >= 1 and pooling odd, got window={self.window}, pooling={self.pooling}.")

    @override
    def observed(self, num_queries: int) -> int | None:
        return min(self.window, num_queries)

    @override
    def rank(self, candidates: Candidates, budget: int) -> Tensor:
        smoothed = functional.max_pool1d(_scores(candidates), self.pooling, stride=1, padding=self.pooling // 2)
        return _newest_first(smoothed, min(self.window, budget))


@dataclass(frozen=True, kw_only=True)
class Redundancy(Policy):
    """Drops first what equals its neighbour in time: the token before it at the same patch of its frame.

    A token counts for the length of its value times one minus the mean of two cosines with that neighbour, of keys and
    of values. The first of its patch has no neighbour, and counts for the whole length.

    Differs: keys are stored rotated to their positions, so that equal content a step apart gives a cosine below 1;
    values are not rotated, and take part for that reason.

    Source: TimeChat-Online (arXiv 2504.17343) for dropping what did not change; VATP (arXiv 2406.12335) for norms.
    """

    @property
    @override
    def needs_patch_indices(self) -> bool:
        return True

    @override
    def rank(self, candidates: Candidates, budget: int) -> Tensor:
        keys, values = _vectors(candidates)
        order, has_neighbour = _along_time(candidates)
        similarity = torch.zeros(order.shape, device=order.device)
        for vectors in (keys, values):
            ordered = functional.normalize(vectors.float(), dim=-1).gather(1, _wide(order, vectors))
            similarity[:, 1:] += (ordered[:, 1:] * ordered[:, :-1]).sum(-1) / 2
        novelty = torch.where(has_neighbour, (1 - similarity).clamp_min(0), 1.0)
        lengths = values.float().norm(dim=-1)
        return lengths * torch.zeros_like(lengths).scatter(1, order, novelty)


@dataclass(frozen=True, kw_only=True)
class Merging(Redundancy):
    """As `Redundancy`, but a token that goes is merged into the one before it in time that stays, at the same patch.

    The mean of their values stays, weighted by how many tokens each stands for, with the key of the one that stays:
    keys are rotated to their positions, and their mean would not belong to any position.

    Source: Token Merging (arXiv 2210.09461), in time.
    """

    @override
    def merged(
        self, candidates: Candidates, kept: Int[Tensor, "Hkv B"], values: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        order, has_neighbour = _along_time(candidates)
        stays = torch.zeros_like(candidates.positions, dtype=torch.bool).scatter(1, kept, True).gather(1, order)
        # along time: the newest that stays, up to here, at this patch; before the first, a token merges into none
        index = torch.arange(order.shape[1], device=order.device).expand_as(order)
        starts = torch.where(has_neighbour, -1, index).cummax(1).values
        target = torch.where(stays, index, -1).cummax(1).values
        counted = torch.where(target >= starts, counts.gather(1, order), 0.0)
        target = target.clamp_min(0)
        ordered = values[0].gather(1, _wide(order, values[0])).float()
        totals = torch.zeros_like(counted).scatter_add(1, target, counted)
        summed = torch.zeros_like(ordered).scatter_add(1, _wide(target, ordered), ordered * counted[..., None])
        mean = summed / totals.clamp_min(1)[..., None]
        merged = torch.where(stays[..., None], mean, ordered).to(values.dtype)
        back = order.argsort(1)
        return merged.gather(1, _wide(back, merged))[None], torch.where(stays, totals, 1.0).gather(1, back)


@dataclass(frozen=True, kw_only=True)
class KeepAll(Policy):
    """No selection: ordinary full attention, whatever the budget."""

    @override
    def rank(self, candidates: Candidates, budget: int) -> Tensor:
        return candidates.positions

    @override
    def select(self, candidates: Candidates, budget: int) -> Int[Tensor, "Hkv B"]:
        heads, keys = candidates.positions.shape
        return torch.arange(keys, device=candidates.positions.device).expand(heads, keys)


POLICIES: dict[str, type[Policy]] = {
    "statekv": StateKV,
    "recency": Recency,
    "sinks_recency": SinksAndRecency,
    "uniform": Uniform,
    "random": RandomSample,
    "h2o": AccumulatedScores,
    "snapkv": LastQueries,
    "redundancy": Redundancy,
    "merging": Merging,
    "none": KeepAll,
}


def make_policy(policy: str | Policy, *, setting: str = "policy") -> Policy:
    """The policy of that name with its defaults, or the given instance.

    Args:
        policy: the name, or the instance.
        setting: what it is given as, for errors.

    Raises:
        ConfigError: there is no policy of that name.

    Example:
        >>> make_policy("sinks_recency")
        SinksAndRecency(sinks=4)
    """
    if isinstance(policy, Policy):
        return policy
    if not isinstance(policy, str):
        raise ConfigError(f"{setting} must be a name or a Policy, got {policy!r}. Names: {', '.join(POLICIES)}.")
    if policy not in POLICIES:
        raise ConfigError(f"unknown {setting} {policy!r}. {closest(policy, POLICIES)}")
    return POLICIES[policy]()


def _scores(candidates: Candidates) -> Tensor:
    if candidates.scores is None:
        raise ConfigError("this policy ranks by attention score, and the candidates carry none. Compute it first.")
    return candidates.scores


def _vectors(candidates: Candidates) -> tuple[Tensor, Tensor]:
    if candidates.keys is None or candidates.values is None:
        raise ConfigError("this policy ranks by keys and values, and the candidates carry none. Give them.")
    return candidates.keys, candidates.values


def _along_time(candidates: Candidates) -> tuple[Tensor, Tensor]:
    """[Hkv, L]: indices patch by patch, in the order of time within each; and whether each follows one of its patch."""
    positions = candidates.positions
    patch_indices = torch.zeros_like(positions) if candidates.patch_indices is None else candidates.patch_indices
    order = (patch_indices * (positions.max() + 1) + positions).argsort(1)
    ordered = patch_indices.gather(1, order)
    follows = torch.zeros_like(ordered, dtype=torch.bool)
    follows[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return order, follows


def _wide(index: Tensor, vectors: Tensor) -> Tensor:
    return index[..., None].expand(*index.shape, vectors.shape[-1])


def _newest_first(rank: Tensor, count: int) -> Tensor:
    """`rank`, with infinity at the newest `count` keys."""
    if count == 0:
        return rank
    return torch.cat((rank[:, :-count], torch.full_like(rank[:, -count:], float("inf"))), dim=-1)
