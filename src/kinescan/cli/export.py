import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kinescan import runs
from kinescan.cli.options import json_option
from kinescan.cli.output import print_json, reported
from kinescan.cli.own_modules import OwnModules, import_own_modules
from kinescan.cli.terminal import print_text

if TYPE_CHECKING:
    from kinescan.inference.export_record import ExportRecord

EXAMPLES = (
    "kinescan export runs/own_videos_cpu deployed --to openvino --precision bfloat16 --video a.mp4",
    "kinescan export runs/causal deployed --to onnx --step",
    "kinescan export runs/own_videos_cpu deployed --to transformers --json",
)


@reported
def command(
    model: Annotated[str, typer.Argument(help="A run's folder, a saved model or a hub name.")],
    folder: Annotated[Path, typer.Argument(help="Where to: a new folder, or that of an earlier export.")],
    to: Annotated[str, typer.Option(help="onnx, openvino, torch (torch.export) or transformers.")],
    batch: Annotated[str, typer.Option(help="Clips that go in at once: a number, or dynamic for any.")] = "dynamic",
    frames: Annotated[int | None, typer.Option(help="Frames of a clip. By default the model's.")] = None,
    precision: Annotated[str, typer.Option(help="float32, or bfloat16 (openvino only).")] = "float32",
    videos: Annotated[
        list[Path],
        typer.Option("--video", help="Compare on this file or folder; may be repeated. Otherwise on synthetic clips."),
    ] = [],  # noqa: B006
    tolerance: Annotated[
        float | None, typer.Option(help="How far logits may be off, as a fraction of the largest (at least of 1).")
    ] = None,
    step: Annotated[
        bool, typer.Option("--step", help="Write one step of a stream, with its state; the model must be causal.")
    ] = False,
    modules: OwnModules = [],  # noqa: B006
    as_json: Annotated[bool, json_option("Print the record of the export as JSON.")] = False,
) -> None:
    """Write a model for deployment, checked against the model itself: it fails where they differ."""
    import_own_modules(modules)
    record = runs.export.export_model(
        model,
        folder,
        to=to,
        batch=batch,
        num_frames=frames,
        precision=precision,
        videos=videos,
        tolerance=tolerance,
        step=step,
    )
    if as_json:
        print_json(asdict(record))
    else:
        print_text(describe(record, folder).splitlines())


def describe(record: "ExportRecord", folder: Path) -> str:
    """What was written, what is fixed, and how it compares, in three lines."""
    check = record.check
    clips = "clips" if record.step is None else "streams"
    batch = f"any number of {clips}" if record.batch is None else f"{record.batch} {clips} at once"
    if record.step is None:
        frames, compared = f"of {record.num_frames} frames", "clips"
    else:
        values = sum(math.prod(state.shape) for state in record.step.states)
        frames = f"frame by frame, with a state of {values:,} numbers each"
        compared = f"clips at each of {check['num_steps']} frames"
    return (
        f"{folder / record.file}: {record.model} for {record.format}, computing in {record.precision}\n"
        f"takes {batch} {frames}, {record.size} x {record.size}; labels and preprocessing are in export.json\n"
        f"logits differ by up to {check['largest_difference']:.2g} from the model's (allowed: "
        f"{check['allowed_difference']:.2g}), the best class is the same on {check['same_top1']} of "
        f"{len(check['clips'])} {compared}"
    )
