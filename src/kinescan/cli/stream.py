import json
import time
from pathlib import Path
from typing import Annotated

import typer

from kinescan.cli.output import reported
from kinescan.cli.runs import model_folder
from kinescan.inference.stream import stream
from kinescan.training.engine import choose_device

EXAMPLES = (
    "kinescan stream a.mp4 --model runs/causal",
    "kinescan stream a.mp4 --every 4 --top 1",
    "kinescan stream a.mp4 --json > predictions.jsonl",
)


@reported
def command(
    source: Annotated[Path, typer.Argument(help="A video file, decoded as it goes.")],
    model: Annotated[
        str | None, typer.Option(help="A run's folder, a saved causal model or a hub name. By default the newest run.")
    ] = None,
    every: Annotated[int, typer.Option(help="Feed every n-th frame and skip the others.")] = 1,
    top: Annotated[int, typer.Option(help="How many classes to name.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a frame.")] = False,
) -> None:
    """Classify a video frame by frame, at constant cost; the model must be causal."""
    before = time.perf_counter()
    for prediction in stream(model_folder(model), source, every=every, top=top, device=choose_device(device)):
        now = time.perf_counter()
        milliseconds, before = 1000 * (now - before), now
        if as_json:
            values = {
                "frame_index": prediction.frame_index,
                "seconds": prediction.seconds,
                "labels": prediction.labels,
                "scores": prediction.scores,
                "milliseconds": round(milliseconds, 3),
            }
            print(json.dumps(values, ensure_ascii=False), flush=True)
        else:
            pairs = zip(prediction.labels, prediction.scores, strict=True)
            listed = "  ".join(f"{label} {100 * score:.1f} %" for label, score in pairs)
            print(f"{prediction.seconds:8.3f} s  {listed}  ({milliseconds:.0f} ms)", flush=True)
