import pytest
import torch

from kinescan.vlm import open_stream
from kinescan.vlm.held import held_between

from .conftest import build, build_tokenizer


def _watched(policy: str, budget: int | None) -> tuple[list[int], torch.Tensor]:
    torch.manual_seed(0)
    stream = open_stream(build("internvl"), build_tokenizer(), policy=policy, budget=budget, horizon_frames=8)
    bounds = [stream.stats.num_seen_tokens]
    for _ in range(6):
        stream.push(torch.randint(0, 256, (1, 3, 28, 28), dtype=torch.uint8))
        bounds.append(stream.stats.num_seen_tokens)
    return bounds, held_between(stream.cache, bounds)


def test_a_recency_policy_holds_the_last_moments_alone() -> None:
    bounds, held = _watched("recency", 20)
    counts = torch.tensor(bounds).diff()
    whole = [index for index in range(6) if bounds[-1] - bounds[index] <= 20]
    assert held[whole].tolist() == counts[whole].tolist()
    assert held.sum() == pytest.approx(20)
    assert held[0] == 0


def test_an_attention_policy_fills_its_budget_and_no_budget_holds_all() -> None:
    bounds, held = _watched("statekv", 20)
    assert held.sum() <= 20 + 1e-4
    assert bool((held <= torch.tensor(bounds).diff() + 1e-4).all())
    bounds, held = _watched("none", None)
    assert held.tolist() == torch.tensor(bounds).diff().tolist()
