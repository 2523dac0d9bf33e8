"""The measured table of README, from the results: no number that is kinder to us than the median behind it.

`python benchmarks/render.py` writes it; tests/test_readme.py compares it with the results once more, on its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"
HEADER = (
    "| measured on one CPU thread ([all numbers](docs/benchmarks.md)) | kinescan | best peer | |\n|---|---|---|---|\n"
)


@dataclass(frozen=True, kw_only=True)
class Headline:
    """A row.

    Attributes:
        what: its first cell, with `{result}` where the link to the result goes.
        result: name of the JSON, without ending.
        ours: where our seconds stand in it.
        peer: where the peer's seconds stand.
        peer_name: who that is.
        ratio: where the last cell stands; a list beside it with `_lowest` and `_highest` is its range.
        more_is_better: whether the ratio is how much faster we are, and not how much longer we take.
        ratio_of: what is said behind it.
    """

    what: str
    result: str
    ours: tuple[str, ...]
    peer: tuple[str, ...]
    peer_name: str
    ratio: tuple[str, ...]
    more_is_better: bool
    ratio_of: str = ""


SCAN, CORRELATION, PEERS = "ops_selective_scan_cpu", "ops_local_correlation_cpu", "models_cpu"
SMALL_STREAM = ("pks4_vit_ti16, 4 blocks, 64 pixels", "windows", "100000 frames")
COMPILED_DENSE = "compiled dense symmetric"


def _scan(what: str, part: str, peer: str, peer_name: str) -> Headline:
    return Headline(
        what=what,
        result=SCAN,
        ours=(part, "times", "ours", "cpu_seconds"),
        peer=(part, "times", peer, "cpu_seconds"),
        peer_name=peer_name,
        ratio=(part, "times_faster_than", peer),
        more_is_better=True,
    )


def _correlation(what: str, part: str) -> Headline:
    key = ("1x8x768x14x14", part)
    return Headline(
        what=what,
        result=CORRELATION,
        ours=(*key, "candidates", "kinescan", "cpu_seconds"),
        peer=(*key, "candidates", COMPILED_DENSE, "cpu_seconds"),
        peer_name="compiled dense product",
        ratio=(*key, "speedup_over_best_peer"),
        more_is_better=True,
    )


HEADLINES = (
    _scan(
        "[selective scan]({result}), forward + backward, 784 x 8 x 1536, in memory that is kept",
        "forward_and_backward_in_kept_memory",
        "compiled_loop",
        "compiled step loop",
    ),
    _scan(
        "[selective scan]({result}), forward, 1568 x 8 x 1536, in memory that is kept",
        "forward_in_kept_memory",
        "compiled_loop",
        "compiled step loop",
    ),
    _scan("[one streaming step]({result}), 196 x 1536", "step_in_kept_memory", "compiled_step", "compiled step"),
    _correlation("[local correlation]({result}), 8 frames, 14 x 14, 768 channels", "forward"),
    _correlation("[the same]({result}), forward + backward", "forward and backward"),
    Headline(
        what="[PKS4-B/16]({result}) on 8 frames, forward, over the ViT without it",
        result="pks4_over_vit_cpu",
        ours=("forward", "pks4_vit_b16", "cpu_seconds"),
        peer=("forward", "vit_b16", "cpu_seconds"),
        peer_name="the bare ViT",
        ratio=("forward", "cpu_ratio"),
        more_is_better=False,
    ),
    Headline(
        what="[PKS4-B/16]({result}) on 64 frames, bfloat16, over VideoMAE (on 8 frames, with half the tokens, "
        "VideoMAE is faster)",
        result=PEERS,
        ours=("forward, bfloat16", "pks4_vit_b16, 64 frames", "cpu_seconds"),
        peer=("forward, bfloat16", "videomae, 64 frames", "cpu_seconds"),
        peer_name="VideoMAE",
        ratio=("pks4_cpu_time_over", "forward, bfloat16", "64 frames", "videomae"),
        more_is_better=False,
    ),
    Headline(
        what="[exported for OpenVINO]({result}), bfloat16, 8 frames",
        result="deployment_cpu",
        ours=("latency", "openvino, bfloat16", "cpu_seconds"),
        peer=("latency", "torch.compile, bfloat16 autocast", "cpu_seconds"),
        peer_name="torch.compile, bfloat16",
        ratio=("times_faster_than_eager", "openvino, bfloat16"),
        more_is_better=True,
        ratio_of=" of eager float32",
    ),
    Headline(
        what="[a stream]({result}), small model, frame 100,000",
        result="stream_cpu",
        ours=(*SMALL_STREAM, "cpu_seconds"),
        peer=(*SMALL_STREAM, "cpu_seconds_of_a_young_stream"),
        peer_name="a stream just begun",
        ratio=(SMALL_STREAM[0], "time_over_a_young_stream_at_the_end"),
        more_is_better=False,
    ),
    Headline(
        what="[StateKV]({result}), prefill of 512 frames, small model",
        result="statekv_speed_cpu",
        ours=("total_seconds", "statekv"),
        peer=("total_seconds", "full"),
        peer_name="full attention",
        ratio=("total_over_full", "statekv"),
        more_is_better=False,
    ),
)


def table(documents: Mapping[str, Mapping[str, Any]]) -> str:
    """The table, in Markdown."""
    return HEADER + "".join(f"{row(headline, documents[headline.result]['results'])}\n" for headline in HEADLINES)


def row(headline: Headline, results: Mapping[str, Any]) -> str:
    """A row of the table.

    Args:
        headline: what it says.
        results: those of its JSON.
    """
    ours = value(results, headline.ours)
    peer = value(results, headline.peer)
    up = not headline.more_is_better
    ratio = times(value(results, headline.ratio), up=up)
    spread = [
        (*headline.ratio[:-2], f"{headline.ratio[-2]}{end}", headline.ratio[-1]) for end in ("_lowest", "_highest")
    ]
    if headline.ratio[-2] + "_lowest" in _at(results, headline.ratio[:-2]):
        ratio += " ({} to {})".format(*(times(value(results, keys), up=up) for keys in spread))
    what = headline.what.format(result=f"benchmarks/results/{headline.result}.json")
    peer_cell = f"{seconds(peer, up=False)}, {headline.peer_name}"
    return f"| {what} | {seconds(ours, up=True)} | {peer_cell} | {ratio}{headline.ratio_of} |"


def value(results: Mapping[str, Any], keys: Sequence[str]) -> float:
    """The number that stands under the keys."""
    return float(_at(results, keys))


def seconds(number: float, *, up: bool) -> str:
    """Three digits, in s or ms, rounded up or down."""
    unit, scale = ("s", 1.0) if number >= 1 else ("ms", 1e3)
    decimals = max(0, 2 - math.floor(math.log10(number * scale)))
    return f"{_rounded(number * scale, decimals, up):.{decimals}f} {unit}"


def times(ratio: float, *, up: bool) -> str:
    """A ratio with one decimal where more is better, else two, rounded to the less kind side."""
    decimals = 2 if up else 1
    return f"{_rounded(ratio, decimals, up):.{decimals}f}x"


def _rounded(number: float, decimals: int, up: bool) -> float:
    # A hair, so that a number that has no more decimals stays what it is.
    scaled = number * 10**decimals
    return (math.ceil(scaled - 1e-9) if up else math.floor(scaled + 1e-9)) / 10**decimals


def _at(results: Mapping[str, Any], keys: Sequence[str]) -> Any:
    for key in keys:
        results = results[key]
    return results


def update(documents: Mapping[str, Mapping[str, Any]], readme: Path = README, *, check: bool) -> bool:
    """Puts the table into README instead of the one that is there.

    Args:
        documents: results by name.
        readme: the file.
        check: write nothing.

    Returns:
        whether it was another one; with `check`, it still is.
    """
    text = readme.read_text(encoding="utf-8")
    [old] = [block for block in text.split("\n\n") if block.startswith(HEADER.splitlines()[0])]
    new = table(documents).rstrip("\n")
    if old != new and not check:
        readme.write_text(text.replace(old, new), encoding="utf-8")
    return old != new
