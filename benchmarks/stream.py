"""A stream on a CPU: time per frame and resident memory from frame 100 to frame 100,000.

Run: OMP_NUM_THREADS=1 python benchmarks/stream.py            (about eight minutes of one core)
     python benchmarks/stream.py --frames 2000 --base-frames 0
Writes benchmarks/results/stream_cpu.json. First, a stream's logits have to be those of the clip of all its frames.

The long stream is of a model of four blocks on 16 patches, so that 100,000 frames take minutes. A machine is never as
fast at the end of minutes as at their start; so every tenth frame a young stream of the same model, which starts anew
all the time, is timed in turn, and what counts is the ratio of the two. Windows are medians over parts of it.
A shorter stream of B/16 at 224 x 224 shows what a frame costs there.
"""

import argparse
import gc
import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

import measure
from kinescan.inference.stream import StreamSession
from kinescan.models.pks4 import PKS4
from kinescan.models.zoo import create_model

NAME = "stream_cpu"
SEED = 0
START = 100
"""Frames before the first that counts: caches, allocator and processor have settled."""
WINDOWS = 20
TURN = 10
"""Frames of the stream for one of the young stream."""
TOLERANCE = 1e-4
AIMS = {"time_of_the_last_windows_over_the_first": 1.05, "memory_of_the_last_window_over_the_first": 1.01}


SMALL = {"image_size": 64, "depth": 4, "insert_after": 2}


def build(name: str, **options: int) -> PKS4:
    torch.manual_seed(SEED)
    model = create_model(name, num_classes=174, causal=True, **options)
    assert isinstance(model, PKS4)
    # The projections that are zero at the start would let the module's state change nothing.
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


def frames_of(size: int) -> Iterator[Tensor]:
    """A few random frames, round and round."""
    frames = torch.randint(0, 256, (16, 3, size, size), dtype=torch.uint8)
    while True:
        yield from frames


def check(model: PKS4) -> float:
    """The largest difference between a stream's logits and those of the clips that end with each frame."""
    size = model.config.image_size
    session, clip = StreamSession(model, average="mean"), torch.stack(list(itertools.islice(frames_of(size), 12)))
    streamed = torch.stack([session.push(frame).logits for frame in clip])
    with torch.inference_mode():
        inputs = session._transform(clip)
        whole = torch.cat([model(inputs[:, : t + 1]) for t in range(len(clip))])
    difference = (streamed - whole).abs().max().item()
    if difference > TOLERANCE * whole.abs().max().item():
        raise SystemExit(f"a stream differs from its clip by {difference}. No speed is reported.")
    return difference


def run(model: PKS4, num_frames: int) -> dict[str, Any]:
    """Seconds of a frame, of the stream and of a young one, and resident bytes, by window of frames from START on."""
    session, young, process = StreamSession(model), StreamSession(model), psutil.Process()
    frames = frames_of(model.config.image_size)

    def seconds_of(session: StreamSession) -> float:
        frame, start = next(frames), time.process_time()
        session.push(frame)
        return time.process_time() - start

    for _ in range(START):
        seconds_of(session)
        seconds_of(young)
    gc.collect()
    length = max(TURN, (num_frames - START) // WINDOWS)
    windows: dict[str, dict[str, float]] = {}
    for window in range(WINDOWS):
        times, young_times = [], []
        for k in range(length):
            times.append(seconds_of(session))
            if k % TURN == 0:
                young_times.append(seconds_of(young))
            if young.state.frames_seen >= 2 * START:
                young = StreamSession(model)
        windows[f"{START + (window + 1) * length} frames"] = {
            "cpu_seconds": statistics.median(times),
            "cpu_seconds_of_a_young_stream": statistics.median(young_times),
            "resident_bytes": process.memory_info().rss,
        }
    state = sum(tensor.nbytes for tensor in session.state.tensors().values())
    return {"windows": windows, **summary(windows), "state_bytes": state, "frames": session.state.frames_seen}


def summary(windows: dict[str, dict[str, float]]) -> dict[str, float]:
    """First quarter of the windows against the last, and the slope over all of them with its standard error."""
    own, young, resident = (np.array(column) for column in zip(*(w.values() for w in windows.values()), strict=True))
    ratio, quarter = own / young, WINDOWS // 4
    (slope, _), covariance = np.polyfit(np.linspace(0, 1, WINDOWS), ratio / np.median(ratio), 1, cov=True)
    return {
        "cpu_seconds_of_a_frame": float(np.median(own)),
        "time_over_a_young_stream_at_the_end": round(float(np.median(ratio[-quarter:])), 4),
        "time_of_the_last_windows_over_the_first": round(
            float(np.median(ratio[-quarter:]) / np.median(ratio[:quarter])), 4
        ),
        "the_same_without_the_young_stream": round(float(np.median(own[-quarter:]) / np.median(own[:quarter])), 4),
        "slope_of_time_over_the_stream": round(float(slope), 4),
        "its_standard_error": round(float(covariance[0, 0] ** 0.5), 4),
        "memory_of_the_last_window_over_the_first": round(float(resident[-1] / resident[0]), 4),
        "resident_growth_bytes": int(resident[-1] - resident[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=100_000, help="of the long stream")
    parser.add_argument("--base-frames", type=int, default=300, help="of the stream of B/16; 0 leaves it out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    small = build("pks4_vit_ti16", **SMALL)
    results: dict[str, Any] = {"parity": {"stream_max_difference": check(small)}}
    results["pks4_vit_ti16, 4 blocks, 64 pixels"] = run(small, args.frames)
    if args.base_frames:
        results["pks4_vit_b16, 224 pixels"] = run(build("pks4_vit_b16", image_size=224), args.base_frames)
    settings = {"frames": args.frames, "start": START, "windows": WINDOWS, "dtype": "float32", "clips": 1}
    n = (args.frames - START) // WINDOWS
    print(measure.write_result(NAME, seed=SEED, n=n, settings=settings, results={**results, "aims": AIMS}))
    for name, found in results.items():
        print(name, {key: value for key, value in found.items() if key != "windows"})


if __name__ == "__main__":
    main()
