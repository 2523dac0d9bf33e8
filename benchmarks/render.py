"""Writes docs/benchmarks.md, a page for each benchmark, their plots and README's measured table.

All of it comes from benchmarks/results/*.json.

Run: python benchmarks/render.py            (--check fails where a page or a plot is not what the results say)
     python benchmarks/render.py --results FOLDER --page FOLDER/benchmarks.md     (of a run of your own)

A new result shows up by itself, with the tables and curves that `findings` sees in it. To say what was aimed at, add a
row to AIMS; to give it a title, a sentence, or to leave parts to the full list, add it to SECTIONS.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import curves
import headlines
from findings import Curves, Table, findings, is_timing, said, words

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
PLOTS = "plots"
"""Folder of the plots, beside the page. The page of a benchmark is in the folder that is named like the page."""
MADE = "Made by `python benchmarks/render.py`"
"""What every page that this script wrote says."""
MOST_COLUMNS = 8
LONGEST_LIST = 12

INTRODUCTION = f"""# Benchmarks

{MADE} from `benchmarks/results/*.json`; do not edit. A speed is measured after the
parity test passed in the same run; peers take turns; times are medians; ratios are within one run. CPU time is that of
the process: the machines are shared, so trust it before wall time. What fell short of its aim stands here too.
The numbers behind each line are on the page of its benchmark. `kinescan bench` measures it all again.

## Aimed at and reached
"""


SCAN, CORRELATION, MODEL = "ops_selective_scan_cpu", "ops_local_correlation_cpu", "pks4_over_vit_cpu"
SERVED = "serve_load"
STREAM = "statekv_speed_cpu"
DEPLOYMENT = "deployment_cpu"
DATA = "data_path_cpu"
EVENTS = "events"
STILL = "still_patches"
PEERS, MEMORY = "models_cpu", "table1_memory"
BEST_EVENTS = ("rows", "PKS4, windows")
TIME = "pks4_cpu_time_over"
LONG = "pks4_vit_ti16, 4 blocks, 64 pixels"
B16, L14 = "B16, 32 x 8 frames, bfloat16", "L14, 16 x 8 frames, bfloat16"
OLD_KEYS = {
    "peak_share_of": "peak_ratio_to",
    "shares": "divisors",
    "pieces": "costs",
    "packed_share": "packed_fraction",
    "_run_pieces": "_run_splits",
    "_run_pieces_back": "_run_splits_back",
    "_link_pieces": "_link_splits",
    "_link_pieces, back": "_link_splits, back",
}
"""Keys of results that were measured before they were renamed."""
AIMS: tuple[tuple[str, str, tuple[str, ...], str, float], ...] = (
    (
        "still camera: frames a second over computing everything",
        STILL,
        ("B/16 with these fractions, times faster", "streams of a still camera", "pixel 4, token 0.1"),
        ">=",
        2,
    ),
    (
        "clips of which in half the whole picture moves: the same, at the default thresholds",
        STILL,
        ("B/16 with these fractions, times faster", "clips, as in training", "pixel 4, token 0.1"),
        ">=",
        1.35,
    ),
    ("scan forward: fraction of the exp roof", SCAN, ("forward_in_kept_memory", "fraction_of_exp_roof"), ">=", 0.25),
    (
        "scan forward: over the compiled loop",
        SCAN,
        ("forward_in_kept_memory", "times_faster_than", "compiled_loop"),
        ">=",
        5,
    ),
    (
        "scan forward: over the eager loop",
        SCAN,
        ("forward_in_kept_memory", "times_faster_than", "eager_loop"),
        ">=",
        20,
    ),
    (
        "scan forward, 98 tracks: over a pure-torch parallel scan",
        SCAN,
        ("forward_of_few_tracks", "times_faster_than", "parallel_scan"),
        ">=",
        40,
    ),
    (
        "scan with backward: over the compiled loop",
        SCAN,
        ("forward_and_backward_in_kept_memory", "times_faster_than", "compiled_loop"),
        ">=",
        5,
    ),
    (
        "scan with backward: peak memory over the eager loop's",
        SCAN,
        ("forward_and_backward_in_kept_memory", "peak_ratio_to", "eager_loop"),
        "<=",
        0.125,
    ),
    (
        "one step: fraction of the read and write floor",
        SCAN,
        ("step_in_kept_memory", "fraction_of_read_and_write_floor"),
        ">=",
        0.35,
    ),
    ("one step: over the eager step", SCAN, ("step_in_kept_memory", "times_faster_than", "eager_step"), ">=", 4),
    (
        "correlation 14x14: fraction of the sgemm roof",
        CORRELATION,
        ("1x8x768x14x14", "forward", "fraction_of_sgemm_roof"),
        ">=",
        0.20,
    ),
    (
        "correlation 14x14: over the best peer",
        CORRELATION,
        ("1x8x768x14x14", "forward", "speedup_over_best_peer"),
        ">=",
        1.3,
    ),
    (
        "correlation 14x14 with backward: over the best peer",
        CORRELATION,
        ("1x8x768x14x14", "forward_and_backward", "speedup_over_best_peer"),
        ">=",
        2,
    ),
    (
        "correlation 28x28: over the best peer",
        CORRELATION,
        ("1x8x768x28x28", "forward", "speedup_over_best_peer"),
        ">=",
        2.5,
    ),
    ("PKS4-B/16 over the bare ViT: forward, CPU time", MODEL, ("forward", "cpu_ratio"), "<=", 1.12),
    ("PKS4-B/16 over the bare ViT: training step, CPU time", MODEL, ("training_step", "cpu_ratio"), "<=", 1.15),
    (
        "PKS4-B/16 over the bare ViT: peak memory of training",
        MODEL,
        ("memory", "ratios", "training_peak_bytes"),
        "<=",
        1.10,
    ),
    (
        "OpenVINO in bfloat16: over eager float32",
        DEPLOYMENT,
        ("times_faster_than_eager", "openvino, bfloat16"),
        ">=",
        2,
    ),
    (
        "OpenVINO in bfloat16: largest difference of a logit",
        DEPLOYMENT,
        ("difference_from_eager", "openvino, bfloat16", "largest_difference"),
        "<=",
        0.05,
    ),
    ("PKS4-B/16: time of 64 frames over 8", MODEL, ("growth_8_to_64", "cpu_ratio_of_minima"), "<=", 8.3),
    (
        "a clip decoded, resized, normalised: CPU time over decoding it",
        DATA,
        ("key_frame_every_250", "cpu_ratio_to_decoding", "decode_resize_normalise"),
        "<=",
        1.25,
    ),
    (
        "the same where there is least to decode, a key frame every 12 frames",
        DATA,
        ("key_frame_every_12", "cpu_ratio_to_decoding", "decode_resize_normalise"),
        "<=",
        1.25,
    ),
    (
        "a PKS4 stream: time of a frame up to frame 100,000 over that at the start, beside a young stream",
        "stream_cpu",
        (LONG, "time_of_the_last_windows_over_the_first"),
        "<=",
        1.05,
    ),
    ("its resident memory, likewise", "stream_cpu", (LONG, "memory_of_the_last_window_over_the_first"), "<=", 1.01),
    (
        "`kinescan serve`: its memory after 10,000 requests over that after the first thousand",
        SERVED,
        ("memory", "last_over_the_second"),
        "<=",
        1.05,
    ),
    ("`--help` of any verb, and `kinescan list`: CPU seconds", "start_cpu", ("worst", "seconds"), "<=", 1.0),
    ("its memory at its peak, MiB", "start_cpu", ("worst", "peak_mib"), "<=", 150.0),
    ("StateKV: 512 frames over full attention, CPU time", STREAM, ("total_over_full", "statekv"), "<=", 0.3),
    (
        "attention with scores over plain attention: 64 queries on 576 keys",
        STREAM,
        ("op", "4 on 2 heads of 32, 64 queries, 576 keys", "ratio"),
        "<=",
        1.6,
    ),
    (
        "attention with scores over plain attention: 256 queries on 4352 keys",
        STREAM,
        ("op", "14 on 2 heads of 64, 256 queries, 4352 keys", "ratio"),
        "<=",
        1.6,
    ),
    (
        "attention with scores over plain attention: 196 queries on 4292 keys",
        STREAM,
        ("op", "16 on 8 heads of 128, 196 queries, 4292 keys", "ratio"),
        "<=",
        1.6,
    ),
    *(
        (f"PKS4-{size} over the bare ViT, {frames}: {what}, CPU time", PEERS, (TIME, group, frames, bare), "<=", aim)
        for size, bare, group, frames, what, aim in (
            ("B/16", "vit_b16", "forward, float32", "64 frames", "forward", 1.12),
            ("B/16", "vit_b16", "training step, float32", "64 frames", "training step", 1.15),
            ("L/14", "vit_l14", "forward, L/14, float32", "8 frames", "forward", 1.12),
            ("L/14", "vit_l14", "training step, L/14, float32", "8 frames", "training step", 1.15),
            ("L/14", "vit_l14", "forward, L/14, bfloat16", "64 frames", "forward in bfloat16", 1.12),
        )
    ),
    *(
        (f"PKS4-B/16 over {peer}, {frames}: {what}", PEERS, (kind, f"{work}, float32", frames, peer.lower()), "<=", 1)
        for work, kind, what in (
            ("forward", TIME, "forward, CPU time"),
            ("training step", TIME, "training step, CPU time"),
            ("training step", "pks4_peak_memory_over", "training step, peak memory"),
        )
        for frames in ("8 frames", "64 frames")
        for peer in ("TimeSformer", "ViViT", "VideoMAE")
    ),
    (
        "PKS4's training compute over the best peer's, at its accuracy; seeds that never reached it left out",
        "training_compute",
        ("pks4_over", "best_peer", "flops_ratio", "mean"),
        "<=",
        1 / 3,
    ),
    (
        "likewise over VideoMamba's",
        "training_compute",
        ("pks4_over", "VideoMamba", "flops_ratio", "mean"),
        "<=",
        0.1,
    ),
    ("events told within 0.5 s of their onset", EVENTS, (*BEST_EVENTS, "told_within_0.5_s"), ">=", 0.9),
    ("false alarms an hour, there", EVENTS, (*BEST_EVENTS, "false_alarms_per_hour"), "<=", 2),
    ("training memory, B/16, counted, GB", MEMORY, (B16, "pks4", "peak_gb"), "<=", 16),
    (
        "training memory, B/16, activation checkpointing, counted, GB",
        MEMORY,
        (B16, "pks4, activation checkpointing", "peak_gb"),
        "<=",
        8,
    ),
    ("training memory, L/14, counted, GB", MEMORY, (L14, "pks4", "peak_gb"), "<=", 20),
    (
        "training memory, L/14, activation checkpointing, counted, GB",
        MEMORY,
        (L14, "pks4, activation checkpointing", "peak_gb"),
        "<=",
        9,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Section:
    """How a result file is introduced.

    Attributes:
        title: its heading.
        says: a sentence or two on what was measured.
        parts: beginnings of the headings to show as tables; empty for all. The rest stands in the full list.
    """

    title: str
    says: str
    parts: tuple[str, ...] = ()


SECTIONS: Mapping[str, Section] = {
    MODEL: Section(
        title="PKS4-B/16 over the bare ViT, CPU",
        says="The same backbone on the same frames, with the module in its middle and without it.",
    ),
    DEPLOYMENT: Section(
        title="Deployment, CPU",
        says="PKS4-B/16 as exported files and in torch, one clip of 8 frames, one thread; every file passed its check.",
        parts=("latency", "times faster than eager", "difference from eager"),
    ),
    PEERS: Section(
        title="PKS4 beside other video models, CPU",
        says="One clip, 224 x 224, B/16 or L/14 in all, random weights, scaled_dot_product_attention; one thread. "
        "ViViT and VideoMAE put two frames into one token, so that they see half as many. Peak memory of a step is "
        "with weights and AdamW's moments. What was left out, and why, stands in the full list.",
    ),
    MEMORY: Section(
        title="Memory of training, counted",
        says="Counted, not measured on a GPU: every storage of a whole step, at the full batch, on tensors without "
        "memory; AdamW, weights in float32, bfloat16 by CUDA's autocast, which has the residual stream in float32. The "
        "peers are rebuilt from their papers on the same ViT, which computes norms and activations again in the "
        "backward pass; the paper's numbers stand beside.",
    ),
    SCAN: Section(
        title="Selective scan, CPU",
        says="8 steps, 1536 channels, 16 states each, one thread. The floor is the time of the exponentials alone. "
        "What is claimed is measured in memory that the allocator keeps (`mallopt`, thresholds at 2 GiB): how long "
        "a system takes to hand over fresh memory differs widely, from machine to machine and from one moment to the "
        "next, and the compiled loop needs more of it. Fresh memory is told beside. A virtual machine may have to get "
        "pages from its host first, which can take longer than the scan; `out=` is the way round.",
        parts=(
            "forward in kept memory",
            "forward and backward in kept memory",
            "step in kept memory",
            "forward before training",
            "forward and backward before training",
            "forward of few tracks",
            "forward in fresh memory",
            "forward and backward in fresh memory",
        ),
    ),
    CORRELATION: Section(
        title="Local correlation, CPU",
        says="Window 9 x 9, frames -2 to 2; sizes are clips x frames x channels x height x width; one thread.",
        parts=("1x8x768x14x14", "1x8x768x28x28", "step"),
    ),
    "stream_cpu": Section(
        title="A stream, CPU",
        says="A causal PKS4 frame by frame, from frame 100 on; one thread. Beside the long stream a young one, which "
        "starts anew all the time, is timed in turn: what a machine does over minutes is in both.",
    ),
    "long_scan_cpu": Section(
        title="Selective scan over long sequences, CPU",
        says="As VideoMamba has them: 8 and 64 frames of 196 tokens, one state of 16 for each channel, one thread.",
    ),
    "training_memory": Section(
        title="What a training step keeps for its backward pass",
        says="Bytes of one clip of 8 frames in float32, counted by saved-tensor hooks, without weights and optimizer.",
    ),
    "triton_compile": Section(
        title="Triton kernels, compiled without a GPU",
        says="Registers and spilled bytes at production sizes, VideoMamba's long scan in pieces of time among them. No "
        "speed: that needs a GPU.",
    ),
    "ray_scaling": Section(
        title="Predictions by Ray with one and with two workers",
        says="Rows a second of the command from when a quarter of its parts is written, and processor time of the "
        "workers; runs take turns. Rows are those of one process.",
    ),
    "long_list": Section(
        title="A list of a million lines through Ray",
        says="Time and memory of the command for the list itself, a hundred bad lines among them, and of the same "
        "command again: the list names a few videos, each of which is predicted once.",
    ),
    "checkpoint_wait": Section(
        title="How long training waits for checkpoints of PKS4-L/14",
        says="The three of an evaluation: written while training waits, and by a thread; one run beside some 25 other "
        "processes on two cores and one disk, so that only the ratio says something.",
    ),
    "large_runs": Section(
        title="Large runs, on paper",
        says="Arithmetic over what was measured; a step on a GPU is assumed.",
    ),
    STREAM: Section(
        title="Streams into video VLMs: time of a frame, CPU",
        says="Against frames already seen: transformers' own forward, full attention, a compressed state.",
    ),
    "statekv_accuracy": Section(
        title="Streams into video VLMs: accuracy",
        says=(
            "Cue, then event: docs/statekv.md says what the task is and what came out. Kind A is looked for in every "
            "frame, kind B at its own events alone; chance is one third."
        ),
    ),
    "statekv_together_cpu": Section(
        title="StateKV: several streams as one batch, CPU",
        says="Pushed and asked together against one by one: 4 decoder layers of width 512, 4 tokens a frame",
    ),
    "statekv_compiled_cpu": Section(
        title="StateKV: layers through torch.compile, CPU",
        says="The same frames and question with and without: 4 decoder layers of width 512, 16 tokens a frame, one run",
    ),
    "statekv_memory_cpu": Section(
        title="StateKV: memory of a full KV cache with a limit, CPU",
        says="Resident memory of the process while 100,000 frames of four tokens enter, one run for each policy: "
        "growth is that of the mean from the second tenth to the last, beside what the cache alone would have grown by "
        "without its limit. Retrieval: a question's first logits from some chunks of the cache against those from all, "
        "with random weights, which attend to everything alike: the hardest case.",
    ),
    "statekv_hour_cpu": Section(
        title="StateKV: an hour of a recording by kinescan ask --watch, CPU",
        says="Resident memory of the command's process, in bytes, with a limit of 2,000 tokens, without one, and as a "
        "live source; a tiny model of random weights, 120 answers. The end is compared with what follows the first "
        "third, in which the process loads and fills its limit.",
    ),
    "statekv_limits": Section(
        title="StateKV: what a limit of the full KV cache costs",
        says="The cue task and a needle task at a quarter and a sixteenth of the tokens (docs/statekv.md); chance is "
        "one third. `n` is the number of seeds that count; kind B of the cue task has one alone.",
    ),
    "statekv_open_questions": Section(
        title="StateKV: what the method leaves free",
        says="The task of statekv_accuracy at an eighth of the tokens, on the one training that loses with the "
        "published rule (`statekv`); events of kind A, chance is one third. Settings were fixed before fresh seeds "
        "were trained, of which none has been scored as a whole yet. Not made by its command alone, to be made again "
        "(benchmarks/results/README.md).",
    ),
    STILL: Section(
        title="Not computing what stands still, CPU",
        says="Accuracy of the motion model of seven names that shipped before, everything computed beside "
        "skipping what stands still "
        "(docs/still.md) on the same pixels, and which fractions of the patches were computed. PKS4 B/16 with "
        "random weights on one frame of a stream at a time, in turn, one thread; how many times faster it would be"
        " with the small model's fractions. `made streams`: an object rests, moves and rests before a still camera"
        " with noise of 2 levels. `real videos`: the fraction of patches that are computed at each threshold in "
        "levels, on clips of people, cameras in hand among them. `gate`: the same model trained for 150 batches "
        "more, without and with gates. Its parts were measured one after the other; the command is that of the "
        "last.",
    ),
    DATA: Section(
        title="From file to batch, CPU",
        says="8 frames of 10 s of 320x240 H.264, one thread for each process. CPU time is what a clip costs. Clips per "
        "second are those of two idle cores: of more workers than two nothing has been measured.",
    ),
    "ssp_tuners": Section(
        title="Tuners of one frozen VideoMamba",
        says="A training experiment: a small model on motions that it has not seen; its table is also in ssp.md.",
    ),
    "ssp_grid": Section(
        title="State-space prompts on a real grid",
        says="A training experiment on why prompts come out below the bare head: a VideoMamba of 8 blocks on 7 x 7 "
        "patches, what empty prompts alone do to it, where SSP's gradient goes, and its tuners; what it says is in "
        "docs/ssp.md.",
    ),
    "people": Section(
        title="Events of drawn people that a model has not seen",
        says="A training experiment: the recipe events_cpu in three folds of three people, ten actions one after the "
        "other, three seeds, with PKS4's module and without it. Thresholds are chosen on ten events of one person of "
        "the six that a fold is trained on: missed events and false alarms lie far apart from fold to fold. Decoded: "
        "each frame of a file decided with those before and after it; its times were chosen on these and drawn falls.",
    ),
    "people_hour": Section(
        title="An hour of one stream of events",
        says="`kinescan stream --events` with a model of events_cpu on an hour of drawn people that it has not seen, "
        "25 frames a second, read at the command's own pace. The same 80 seconds come again and again: what is missed, "
        "false and late should not depend on how long the stream runs.",
    ),
    "half_movements": Section(
        title="Up against down: half-movements of drawn people that a model has not seen",
        says="A training experiment: the study own_motion_cpu, three folds of three people. Both classes "
        "go through the same poses in opposite order: averaging over frames is at chance by construction.",
    ),
    "training_compute": Section(
        title="Training compute to equal accuracy",
        says="A training experiment: PKS4 beside six other ways to make a video model of the same still-trained ViT "
        "(VideoMamba from its own), on motions and the same backwards. FLOPs are counted operation by operation, "
        "seconds are CPU time of the process; what it says is in docs/pks4.md.",
    ),
    "kinematic_norm": Section(
        title="Normalisation of the kinematic encoder",
        says="A training experiment: PKS4 at the demo's size on the twelve motions, accuracy on held-out textures, "
        "three seeds each. BatchNorm is scored with its running statistics and with those of the test batch.",
    ),
    "pks4_tables": Section(
        title="Tables 5 to 9 of the PKS4 paper at demo scale",
        says="A training experiment: `kinescan reproduce table5` to `table9`, on drawn objects that move left, right, "
        "up or down (chance 0.25; what averages over frames is at 0.5 at most) and on windows that move left or right "
        "over real videos (chance 0.5, and so is averaging). Top-1 on held-out clips, mean over seeds; `to base` is "
        "the mean difference to the table's base row in pairs of the same seed, with Student's interval of 95 %. "
        "The paper's scores are of CLIP B/16 on Something-Something V2: orders of rows can be compared, sizes cannot.",
    ),
    "motion_levels": Section(
        title="How hard the synthetic motions are",
        says="What is there to be read: correlation maps of neighbouring frames give each patch a displacement; travel "
        "is read from its sum, turning from its curl about the middle of what moves, with no training; the fraction of "
        "clips read right. What is learned: the demo's model and settings, short trainings from the same still-trained "
        "weights, scored on held-out clips within pairs. 0.5 is chance in both. Six of the learned rows were not made "
        "by the script itself (benchmarks/results/README.md).",
    ),
    "motion_model": Section(
        title="The motion model that comes with kinescan",
        says="Clips of files as `kinescan predict` reads them, one view in the middle; none of their pixels was "
        "trained on. Windows over the videos of a folder (15 clips of people), and drawn objects of the test pool.",
    ),
    "stream_average": Section(
        title="What a stream of a clip classifier remembers",
        says="A training experiment: a small causal PKS4 on four motions, means over seeds; test clips one after the "
        "other. Averages are named by their seconds in lengths of a training clip. Accuracies are over frames; `clips` "
        "is over single clips, at their last frame; chance is 0.25.",
    ),
    "stream_clips": Section(
        title="A stream of a clip classifier at frame 100 and at frame 100,000",
        says="The motion model of seven names that shipped before, without any training: drawn clips of 8 "
        "frames one after the other, the "
        "same 99 of them near the stream's beginning and at its end, averaged as a stream does by default and by the "
        "mean of everything. An action counts as recalled when one of its frames has its label; one that has none "
        "counts with the delay of its length, 1.33 s. What the model carries of the actions before differs between "
        "the two places, and with it the answer to some frames. Chance is one seventh.",
    ),
    EVENTS: Section(
        title="Events in long videos",
        says="A training experiment on `kinescan data make events` at 48 x 48 pixels and 6 frames a second: classes "
        "left, right, up and down, two objects of which one moves at a time, no distractors. A small ViT trained on "
        "stills, its lower half frozen, with different models of time and equal training (500 steps, a few minutes of "
        "one core), as many seeds as the table says. Thresholds are those that tell of most events of validation "
        "videos within half a second at no more than two false alarms an hour, and, in a second table, those of the "
        "best F1; numbers are of an hour of test videos. An event is told when its alarm comes before its end; the "
        "delay is from its onset to the alarm. One stream: the same test videos at frame 100 and at frame 100,000. "
        "What the aim still lacks: a model that is sure sooner, and false alarms, which are more on the test videos "
        "than on the hour and a half that the thresholds were chosen on. With turning and scaling objects or with a "
        "distractor, so few steps reach less.",
    ),
    f"{EVENTS}_distractors": Section(
        title="Events in long videos, with a panel that moves and means nothing",
        says="As `events`, with one distractor: a square, chequered panel that moves in the same ways as the objects.",
    ),
    f"{EVENTS}_everything": Section(
        title="Events in long videos, with turning and scaling objects and a distractor",
        says="As `events`, with one distractor, and with eight classes: left, right, up, down, clockwise, "
        "counterclockwise, growing, shrinking.",
    ),
    "stream_throughput_cpu": Section(
        title="Live streams on one CPU core",
        says="A causal PKS4, one frame of each stream at a time, one thread: the demo's model at 64 x 64 pixels, Ti/16 "
        "and B/16 at 224 x 224. A step exported to OpenVINO was compared with the model over a hundred frames before. "
        "All 25 frames a second go in, without and with the decoding of 320x240 H.264; or 8 of the 25 are taken, for a "
        "model that was trained at that rate. The machine was busy with other work, which makes a frame dearer.",
    ),
    "videomamba_cpu": Section(
        title="VideoMamba, CPU",
        says="Forward passes of one clip at 224 x 224, one thread.",
    ),
    SERVED: Section(
        title="`kinescan serve` under load",
        says="Requests (a video of 8 frames of 64 x 64) and streams (JPEG frames of that size) of 1, 4 and 16 clients "
        "at once, with the motion model that comes with kinescan, on two cores that other work used at the same time "
        "(see the load average): latencies are those of that machine, CPU times are the service's own. `health` is "
        "what HTTP alone costs. Stalling clients are silent, send a byte a second, or lie about lengths.",
        parts=(
            "predict",
            "health",
            "streams: value",
            "streams: p50 ms",
            "streams: p95 ms",
            "streams: p99 ms",
            "stalling",
            "memory",
            "memory of streams",
        ),
    ),
    "start_cpu": Section(
        title="How soon the command line answers",
        says="CPU seconds and peak memory of each verb's help and of `kinescan list`, a process each.",
    ),
    "data_check_cpu": Section(
        title="Damage that `kinescan data check` finds",
        says="Flipped bits, zeroed blocks, cuts, and files joined to themselves, in files of our own.",
    ),
}
"""In the order of the list; results that are not named here follow, by name."""


def render(results: Path, page: Path, *, check: bool, note: str = "") -> list[Path]:
    """Writes the page of a folder of results, with a page for each benchmark and the plots beside it.

    Args:
        results: folder of JSON files.
        page: the Markdown file of what was aimed at and reached.
        check: write nothing.
        note: what a reader has to know before the numbers.

    Returns:
        The files that were not what the results say; with `check`, they still are not.
    """
    found = {path.stem: path for path in results.glob("*.json")}
    order = [name for name in SECTIONS if name in found] + sorted(name for name in found if name not in SECTIONS)
    documents = {name: read_result(found[name]) for name in order}
    folder, plot_folder = page.parent / page.stem, page.parent / PLOTS
    plots: dict[Path, tuple[Curves, str]] = {}
    warning = [f"**{note}**\n"] if note else []
    pages = {}
    for name, document in documents.items():
        link = Path(os.path.relpath(found[name], folder)).as_posix()
        lines = [*head(name, page.name), *warning, *section(document, link, plot_folder, plots)]
        pages[folder / f"{name}.md"] = "\n".join(lines)
    pages[page] = "\n".join([INTRODUCTION, *warning, *aims(documents, page.stem), *contents(documents, page.stem)])
    stale = [path for path, (curve, title) in plots.items() if not curves.shows(path, curve, title)]
    stale += [path for path in plot_folder.glob("*.svg") if path not in plots]
    stale += [path for path in folder.glob("*.md") if path not in pages and MADE in path.read_text(encoding="utf-8")]
    stale += [path for path, content in pages.items() if not _says(path, content)]
    if not check:
        folder.mkdir(parents=True, exist_ok=True)
        for path in stale:
            if path in plots:
                curves.draw(*plots[path], path)
            elif path in pages:
                path.write_text(pages[path], encoding="utf-8")
            else:
                path.unlink()
    return stale


def read_result(path: Path) -> dict[str, Any]:
    """A result of a benchmark, with the names that its keys have now."""

    def current(table: dict[str, Any]) -> dict[str, Any]:
        return {OLD_KEYS.get(key, key): value for key, value in table.items()}

    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), object_hook=current)
    return document


def _says(path: Path, content: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == content


def about(name: str) -> Section:
    """How a result is introduced, named in SECTIONS or not."""
    return SECTIONS.get(name) or Section(title=words(name), says="")


def head(name: str, page: str) -> Iterator[str]:
    """The beginning of a benchmark's page."""
    yield f"# {about(name).title}\n"
    yield f"{MADE}; do not edit. [All benchmarks](../{page}).\n"


def contents(documents: Mapping[str, Mapping[str, Any]], folder: str) -> Iterator[str]:
    """A list of the benchmarks' pages."""
    yield "## The benchmarks\n"
    for name in documents:
        first_sentence = about(name).says.partition(". ")[0].removesuffix(".")
        yield f"- [{about(name).title}]({folder}/{name}.md){': ' * bool(first_sentence)}{first_sentence}"
    yield ""


def aims(documents: Mapping[str, Mapping[str, Any]], folder: str) -> Iterator[str]:
    """A table of what was aimed at and what was reached; each row leads to its benchmark."""
    yield "| what | aim | reached | |\n|---|---|---|---|"
    for what, name, keys, sign, aim in AIMS:
        value = reached(documents, name, keys)
        if value is None:
            yield f"| {what} | {sign} {aim:g} | not measured here | |"
            continue
        verdict = "reached" if (value >= aim if sign == ">=" else value <= aim) else "**missed**"
        yield f"| [{what}]({folder}/{name}.md) | {sign} {aim:g} | {value:.3g} | {verdict} |"
    yield ""


def reached(documents: Mapping[str, Mapping[str, Any]], name: str, keys: tuple[str, ...]) -> float | None:
    """The number of an aim; None where it was not measured."""
    value: Any = documents[name]["results"] if name in documents else {}
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key, value.get(key.replace("_", " ")))
    return value if isinstance(value, int | float) else None


def section(
    document: Mapping[str, Any], link: str, plot_folder: Path, plots: dict[Path, tuple[Curves, str]]
) -> Iterator[str]:
    """A result: what was measured, its tables and curves, where it comes from, every number.

    Args:
        document: the JSON.
        link: to its file.
        plot_folder: where its plots go.
        plots: gets the plots to draw.
    """
    name = document["name"]
    shown = about(name)
    if shown.says:
        yield f"{shown.says}\n"
    for finding in findings(document["results"]):
        if shown.parts and not any(
            finding.heading == part or finding.heading.startswith(f"{part},") for part in shown.parts
        ):
            continue
        if isinstance(finding, Table):
            yield from table(finding)
            continue
        yield from curve_table(finding)
        if len(finding.sizes) >= 3:
            heading = "-".join("".join(c if c.isalnum() else " " for c in finding.heading.lower()).split())
            path = plot_folder / f"{name}-{heading or 'curve'}.svg"
            title = finding.heading or shown.title
            plots[path] = (finding, title)
            yield f"![{title}](../{PLOTS}/{path.name})\n"
    yield from origin(document, link)


def heading(finding: Table | Curves) -> Iterator[str]:
    facts = f": {'; '.join(finding.facts)}" if finding.facts else ""
    if finding.heading:
        yield f"**{finding.heading}**{facts}\n"


def table(finding: Table) -> Iterator[str]:
    yield from heading(finding)
    if finding.rows:
        yield f"| | {' | '.join(finding.columns)} |\n|---|{'---:|' * len(finding.columns)}"
        for candidate, cells in finding.rows.items():
            yield f"| {candidate} | {' | '.join(cells)} |"
        yield ""


def curve_table(finding: Curves) -> Iterator[str]:
    """The numbers of curves; of many sizes, some that span them."""
    step = -(-len(finding.sizes) // MOST_COLUMNS)
    sizes = finding.sizes[::step]
    yield from heading(finding)
    yield f"| {finding.x_label} | {' | '.join(f'{size:g}' for size in sizes)} |\n|---|{'---:|' * len(sizes)}"
    for candidate, line in finding.lines.items():
        yield f"| {candidate} | {' | '.join(said(finding.quantity, value) for value in line[::step])} |"
    yield ""


def origin(document: Mapping[str, Any], link: str) -> Iterator[str]:
    """From which file, commit and machine the numbers are, and all of them."""
    hardware = document["hardware"]
    cores = f"{hardware['threads_used']} of {hardware['cores']} cores"
    machine = f"{hardware['cpu']} ({', '.join(hardware['instructions'])}), {cores}, {hardware['memory_gib']} GiB"
    packages = ", ".join(f"{package} {number}" for package, number in document["versions"].items())
    parity = max(_parities(document["results"]), default=None)
    agreed = "" if parity is None else f" Largest difference in the parity checks: {parity:.2g}."
    yield f"[{link.rpartition('/')[2]}]({link}), commit `{document['commit'][:19]}`, {document['date'][:10]},"
    yield f"seed {document['seed']}, n = {document['n']}. {machine}, GPU: {hardware['gpu'] or 'none'}; {packages}."
    yield f"Settings: {', '.join(f'{words(key)} {text(value)}' for key, value in document['settings'].items())}."
    yield f"Made by `{document['command']}`.{agreed}\n"
    yield "<details><summary>Every number</summary>\n\n| what | value |\n|---|---|"
    yield from (f"| {where} | {value} |" for where, value in rows(document["results"], ""))
    yield "\n</details>\n"


def _parities(values: Any, inside: bool = False) -> Iterator[float]:
    """Every number below a key that speaks of parity."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _parities(value, inside or key.startswith(("parity", "errors")))
    elif isinstance(values, list):
        for value in values:
            yield from _parities(value, inside)
    elif inside and isinstance(values, int | float):
        yield values


def rows(values: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    """Every number below a mapping, with its heading."""
    for key, value in values.items():
        heading = f"{where}{words(str(key))}"
        if is_timing(value):
            times = (f"{said(kind, value[kind])} {words(kind)}" for kind in value if kind.endswith("_seconds"))
            yield heading, ", ".join(times)
        elif isinstance(value, Mapping):
            yield from rows(value, f"{heading}: ")
        else:
            yield heading, text(value)


def text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{words(key)} {text(item)}" for key, item in value.items())
    if isinstance(value, list):
        if len(value) > LONGEST_LIST:
            return f"{len(value)} values, {text(value[0])} to {text(value[-1])}"
        return ", ".join(text(item) for item in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file differs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write")
    parser.add_argument("--note", default="", help="what a reader has to know before the numbers")
    given = parser.parse_args()
    stale = render(given.results, given.page, check=given.check, note=given.note)
    if (given.results, given.page) == (RESULTS, PAGE) and headlines.README.is_file():
        documents = {path.stem: read_result(path) for path in RESULTS.glob("*.json")}
        stale += [headlines.README] if headlines.update(documents, check=given.check) else []
    if given.check and stale:
        names = ", ".join(map(str, stale))
        print(f"not what {given.results} says: {names}. Run python benchmarks/render.py", file=sys.stderr)
    return int(given.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
