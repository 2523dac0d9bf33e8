"""Prefill time of a frame against frames already seen: full attention, a compressed state, and the cost of scoring.

Run: OMP_NUM_THREADS=1 python benchmarks/statekv_speed.py            (about two minutes on one core; --device cuda)
Aims: query-key pairs of a frame constant; 512 frames in <= 0.3x of full attention; scoring <= 1.6x of plain attention.

A decoder of 4 layers, width 128, 64 tokens a frame, random weights, a budget of 512 tokens. Features are pushed, so
that the vision encoder takes no part. Peers are pushed in turn, frame by frame. "transformers" is its own forward with
its growing cache; "full" is the same attention over our cache in one chunk; "recency" selects without scores.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

import measure
from kinescan.ops.attention_mass import attention_mass
from kinescan.vlm import Features, open_stream
from statekv_model import Sizes

LAYERS, WIDTH, HEADS, KEY_HEADS, FRAME_TOKENS, BUDGET = 4, 128, 4, 2, 64, 512
SEED = 0
TOLERANCE = 1e-4
FIGURES = Path(__file__).parents[1] / "docs" / "figures"
OP_SHAPES = ((4, 2, 64, 576, 32), (14, 2, 256, 4352, 64), (16, 8, 196, 4292, 128))


SIZES = Sizes(layers=LAYERS, width=WIDTH, heads=HEADS, key_heads=KEY_HEADS, frame_tokens=FRAME_TOKENS)


@torch.no_grad()
def check_parity(model: Any, device: torch.device) -> float:
    """Largest difference of logits from the plain forward at an unlimited budget; raises where it is too large."""
    generator = torch.Generator().manual_seed(SEED)
    frames = [SIZES.features(generator, device) for _ in range(12)]
    question = [1, 2, 3]
    with open_stream(model, budget=100_000) as stream:
        stream.push(frames)
        found = stream.ask(question, max_new_tokens=1).logits
    embedded = torch.cat(
        [frame.tokens for frame in frames] + [model.get_input_embeddings()(torch.tensor(question, device=device))]
    )
    expected = model(inputs_embeds=embedded[None]).logits[0, -1].float().cpu()
    difference = float((found - expected).abs().max())
    if difference > TOLERANCE:
        raise SystemExit(f"the stream differs from the plain forward by {difference}: no speed is reported.")
    return difference


class Plain:
    """transformers' own way: its forward, its cache."""

    def __init__(self, model: Any) -> None:
        self.decoder = model.model.language_model
        self.cache = DynamicCache()

    @torch.no_grad()
    def push(self, frame: Features) -> None:
        self.decoder(inputs_embeds=frame.tokens[None], past_key_values=self.cache, use_cache=True)


def clock(device: torch.device) -> Callable[[], float]:
    """Process CPU time on a CPU, wall time behind a synchronisation elsewhere."""
    if device.type == "cpu":
        return time.process_time

    def read() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return read


def time_frames(model: Any, device: torch.device, num_frames: int) -> dict[str, Any]:
    room = (num_frames + 1) * FRAME_TOKENS
    streams = {
        "full": open_stream(model, policy="none", chunk_tokens=room),
        "statekv": open_stream(model, budget=BUDGET, chunk_tokens=room),
        "recency": open_stream(model, budget=BUDGET, policy="recency", chunk_tokens=room),
    }
    peers: dict[str, Any] = {"transformers": Plain(model), **streams}
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    pairs: dict[str, list[int]] = {name: [] for name in streams}
    generator, now = torch.Generator().manual_seed(SEED), clock(device)
    for _ in range(num_frames):
        frame = SIZES.features(generator, device)
        for name, peer in peers.items():
            before = now()
            peer.push(frame)
            seconds[name].append(now() - before)
        for name, stream in streams.items():
            pairs[name].append(stream.stats.query_key_pairs)
    stats = {name: stream.stats for name, stream in streams.items()}
    return {"seconds": seconds, "pairs": pairs, "stats": {name: vars(value) for name, value in stats.items()}}


def summarise(raw: dict[str, Any], num_frames: int) -> dict[str, Any]:
    """Medians around marks, totals, ratios and the crossover."""
    seconds, pairs = raw["seconds"], raw["pairs"]
    marks = [mark for mark in (8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 1024, 2048) if mark <= num_frames]
    around = {
        name: [1000 * statistics.median(values[max(1, mark - 8) : mark + 8]) for mark in marks]
        for name, values in seconds.items()
    }
    totals = {name: sum(values) for name, values in seconds.items()}
    smooth = {
        name: [statistics.median(values[max(0, k - 8) : k + 9]) for k in range(num_frames)]
        for name, values in seconds.items()
    }
    slower = [k for k in range(num_frames) if smooth["statekv"][k] >= smooth["full"][k]]
    return {
        "frames_seen": marks,
        "milliseconds_of_a_frame": around,
        "total_seconds": totals,
        "total_over_full": {name: total / totals["full"] for name, total in totals.items()},
        "total_over_transformers": {name: total / totals["transformers"] for name, total in totals.items()},
        "crossover_frame": slower[-1] + 2 if slower else 1,
        "query_key_pairs_of_a_frame": {
            name: [values[mark - 1] - (values[mark - 2] if mark > 1 else 0) for mark in marks]
            for name, values in pairs.items()
        },
        "statekv_over_recency": totals["statekv"] / totals["recency"],
        "stats": raw["stats"],
    }


def plain_forms(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Fused attention of the same shape in every form we know; masks and repeated keys are made beforehand."""
    _, query_heads, queries, dim = q.shape
    key_heads, keys = k.shape[1:3]
    group = query_heads // key_heads
    wide_k, wide_v = (part.repeat_interleave(group, 1) for part in (k, v))
    rows = q.reshape(1, key_heads, group * queries, dim)
    visible = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    added = torch.zeros(queries, keys, device=q.device).masked_fill(~visible, float("-inf"))
    added_rows = added.repeat(group, 1)
    attend = functional.scaled_dot_product_attention
    return {
        "plain": lambda: attend(q, wide_k, wide_v, attn_mask=visible),
        "plain, added mask": lambda: attend(q, wide_k, wide_v, attn_mask=added),
        "plain, heads as rows": lambda: attend(rows, k, v, attn_mask=added_rows).view(q.shape),
    }


def time_op(device: torch.device, repetitions: int) -> dict[str, dict[str, float]]:
    """attention_mass over the fastest plain attention of the same shape."""
    rows = {}
    for query_heads, key_heads, queries, keys, dim in OP_SHAPES:
        q = torch.randn(1, query_heads, queries, dim, device=device)
        k, v = torch.randn(2, 1, key_heads, keys, dim, device=device)
        peers = plain_forms(q, k, v) | {"scored": lambda q=q, k=k, v=v: attention_mass(q, k, v)[0]}
        for run in peers.values():
            torch.testing.assert_close(run(), peers["plain"](), atol=1e-5, rtol=1e-4)
        scores = [attention_mass(q, k, v, backend=backend)[1] for backend in (None, "reference")]
        torch.testing.assert_close(*scores, atol=1e-5, rtol=1e-4)
        now = clock(device)
        taken: dict[str, list[float]] = {name: [] for name in peers}
        for _ in range(repetitions * (10 if keys < 1000 else 1) + 1):
            for name, run in peers.items():
                before = now()
                run()
                taken[name].append(now() - before)
        medians = {name: statistics.median(values[1:]) for name, values in taken.items()}
        scored = medians.pop("scored")
        name = f"{query_heads} on {key_heads} heads of {dim}, {queries} queries, {keys} keys"
        rows[name] = {f"{key}_milliseconds": 1000 * value for key, value in {**medians, "scored": scored}.items()}
        rows[name]["ratio"] = scored / min(medians.values())
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=measure.RESULTS)
    given = parser.parse_args()
    device = torch.device(given.device)
    torch.set_num_threads(1)
    model = SIZES.build(SEED).to(device)
    difference = check_parity(model, device)
    with torch.inference_mode():
        op = time_op(device, given.repetitions)
    results = {"parity": difference, "op": op, **summarise(time_frames(model, device, given.frames), given.frames)}
    settings = {
        "layers": LAYERS,
        "width": WIDTH,
        "heads": HEADS,
        "key_heads": KEY_HEADS,
        "tokens_per_frame": FRAME_TOKENS,
        "budget": BUDGET,
        "frames": given.frames,
        "clock": "process CPU time, one thread" if device.type == "cpu" else "wall, synchronised",
    }
    name = f"statekv_speed_{device.type}"
    path = measure.write_result(
        name, seed=SEED, n=given.repetitions, settings=settings, results=results, folder=given.folder
    )
    print(path)
    show(json.loads(path.read_text()), FIGURES if given.folder == measure.PUBLISHED else given.folder)


def show(document: dict[str, Any], folder: Path) -> None:
    """Prints the table for the docs and draws the plot, from the JSON alone."""
    results, settings = document["results"], document["settings"]
    frames, marks = results["milliseconds_of_a_frame"], results["frames_seen"]
    print("\n| frames seen | " + " | ".join(map(str, marks)) + " |")
    print("|---" * (len(marks) + 1) + "|")
    for name, row in frames.items():
        print(f"| {name}, ms a frame | " + " | ".join(f"{value:.1f}" for value in row) + " |")
    for name in ("full", "statekv"):
        row = results["query_key_pairs_of_a_frame"][name]
        print(f"| {name}, query-key pairs a frame | " + " | ".join(f"{value:,}" for value in row) + " |")
    print(f"\ntotals {results['total_seconds']}\nover full {results['total_over_full']}")
    print(f"over transformers {results['total_over_transformers']}")
    print(f"statekv is faster than full from frame {results['crossover_frame']} on")
    print(f"statekv over recency {results['statekv_over_recency']:.3f}")
    for name, row in results["op"].items():
        print(f"op, {name}: {row['ratio']:.2f}x plain attention")
    figure, axis = plt.subplots(figsize=(5.5, 3.6))
    for name, row in frames.items():
        axis.plot(marks, row, marker="o", label=name)
    axis.set(xlabel="frames already seen", ylabel=f"ms a frame ({settings['clock']})", ylim=(0, None))
    axis.legend()
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{document['name']}.png", dpi=90)


if __name__ == "__main__":
    main()
