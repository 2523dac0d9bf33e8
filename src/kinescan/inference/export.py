import copy
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from kinescan.data.clips import read_clips, video_files
from kinescan.data.sampling import Views
from kinescan.data.synthetic.motion import MOTION_PAIRS, MotionConfig, render_motion
from kinescan.data.transforms import EvalTransform
from kinescan.errors import ConfigError, ExportError, KinescanError
from kinescan.inference.export_formats import FORMATS, FormatName, Precision, quiet_exporters
from kinescan.inference.export_record import (
    ExportCheck,
    ExportRecord,
    StepRecord,
    check_precision,
    is_exported,
    read_record,
)
from kinescan.inference.exported import ExportedModel, ExportedStep, load_exported
from kinescan.inference.model_source import ModelSource, holds_export, resolve_model
from kinescan.models.classifier import VideoClassifier
from kinescan.models.mode import complete_view
from kinescan.models.pks4 import PKS4
from kinescan.models.saving.location import EXPORT_FILE
from kinescan.models.stream_step import StreamStep
from kinescan.runtime.addresses import require_local
from kinescan.runtime.atomic_write import atomic_files, write_text
from kinescan.runtime.error_text import first_line
from kinescan.runtime.escaping import to_json
from kinescan.runtime.run_folder import RULES_FILE
from kinescan.settings import closest, to_plain
from kinescan.version import __version__

TOLERANCES: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.05}
"""How far logits may be off, as a fraction of the largest (and at least of 1)."""
NUM_SYNTHETIC_CLIPS = 3
NUM_COMPARED_STEPS = 100
"""Frames of each clip that an exported step is compared on, one after the other."""
NUM_STEPS_ALONE = 10
"""Frames of each clip that go in without others beside them, too."""
_SMALLEST_SYNTHETIC_FRAME = 64


def export(
    model: ModelSource,
    folder: str | Path,
    *,
    to: FormatName,
    batch: int | Literal["dynamic"] = "dynamic",
    num_frames: int | None = None,
    precision: Precision = "float32",
    videos: Sequence[str | Path] = (),
    tolerance: float | None = None,
    step: bool = False,
) -> ExportRecord:
    """Writes a model for deployment, and checks what was written against the model before it replaces anything.

    The folder then holds the file (model.onnx; model.xml and model.bin; or model.pt2) and export.json with labels,
    preprocessing and sizes; `load_exported` runs it. Our operators are taken apart into plain torch operations, so that
    nothing of kinescan is needed to run the file. Number of frames and frame size are fixed; the batch may vary.

    With `step`, the file holds one step of a stream instead: frame and state go in, logits and the next state come out
    (see `StreamStep`); `stream` runs it, and it is compared with the model at each of a hundred frames.

    "transformers" writes what its `AutoModelForVideoClassification` and its video-classification pipeline load after
    `ks.register_transformers()`, with our operators and any batch and number of frames.

    Args:
        model: a classifier; the folder or hub name of a saved one; the folder of a run (its best checkpoint). It is
            left as it is.
        folder: made if need be; an earlier export in it is replaced.
        to: "onnx", "openvino", "torch" (torch.export) or "transformers".
        batch: clips that go in at once, or "dynamic" for any number.
        num_frames: frames of a clip; by default those of the model's preprocessing. A step takes one at a time.
        precision: what the file computes in; "bfloat16" with openvino only. Weights are stored in float32.
        videos: files, or folders of them, to compare on; without any, synthetic clips of moving shapes.
        tolerance: how far logits may be off, as a fraction of the largest (at least of 1); by default 1e-3, and 0.05 in
            bfloat16. The best class has to be the same on every clip in any case; with `step`, at every frame where the
            two best classes are further apart than that.
        step: export one step of a stream; the model must be causal.

    Returns:
        What is in export.json.

    Raises:
        ConfigError: an argument is out of range, the format cannot compute in that precision, the model answers for
            every frame, or the folder holds something else.
        ExportError: the model cannot be exported, or the file differs from it; then nothing is left behind.
        VideoError: one of the videos cannot be read.
        DependencyError: a package of the extra "export" (or "vlm", for transformers) is not installed.
        CheckpointError: `model` is a folder or name that holds no saved model.
    """
    require_local(folder)
    target = Path(folder).resolve()
    _check_arguments(to, batch, num_frames, precision, tolerance, step=step)
    earlier = _earlier_files(target)
    resolved = complete_view(_on_cpu(model))
    if resolved.answers_frames and not step:
        raise ConfigError(
            f"{resolved.name} answers for every frame, and such a file answers for whole clips. Of a causal model, "
            "export the step of a stream: --step; or run the model itself: kinescan predict --segments."
        )
    module = _step_of(resolved) if step else resolved
    record = _record_of(
        module, resolved, to=to, batch=None if batch == "dynamic" else batch, num_frames=num_frames, precision=precision
    )
    names, clips = _clips_to_compare(record, videos)
    with torch.no_grad():
        expected = module.model.forward_stream(clips)[0] if isinstance(module, StreamStep) else resolved(clips)
    allowed = TOLERANCES[precision] if tolerance is None else tolerance
    with atomic_files(target, last=EXPORT_FILE, instead_of=earlier, error=ExportError) as aside:
        if resolved.saved_rules is not None:
            # thresholds that were chosen for a model fit what is exported of it, too
            (aside / RULES_FILE).write_text(to_json(resolved.saved_rules, indent=2) + "\n", encoding="utf-8")
        record = _write(module, record, aside)
        check = _compare(aside, names, clips, expected, allowed)
        record = replace(record, check=_plain(check))
        _write_record(record, aside)
        if not check.passed:
            raise ExportError(_failure(record, check))
    return record


def _check_arguments(
    to: FormatName,
    batch: int | str,
    num_frames: int | None,
    precision: Precision,
    tolerance: float | None,
    *,
    step: bool,
) -> None:
    if to not in FORMATS:
        raise ConfigError(f"cannot export to {to!r}. {closest(to, FORMATS)}")
    if step and not FORMATS[to].holds_steps:
        able = ", ".join(name for name, kind in FORMATS.items() if kind.holds_steps)
        raise ConfigError(f"{to} cannot hold one step of a stream. Formats with step: {able}.")
    if step and num_frames is not None:
        raise ConfigError(f"a step takes one frame at a time, so num_frames cannot be {num_frames}. Leave it out.")
    if precision not in get_args(Precision):
        raise ConfigError(f"precision must be float32 or bfloat16, got {precision!r}.")
    check_precision(to, precision)
    if batch != "dynamic" and not FORMATS[to].fixed_batch:
        raise ConfigError(f"{to} takes any number of clips, so batch cannot be {batch!r}. Leave it out.")
    if batch != "dynamic" and (not isinstance(batch, int) or batch < 1):
        raise ConfigError(f"batch must be 1 or more, or 'dynamic', got {batch!r}.")
    if num_frames is not None and num_frames < 1:
        raise ConfigError(f"num_frames must be at least 1, got {num_frames}.")
    if tolerance is not None and not tolerance > 0:
        raise ConfigError(f"tolerance must be positive, got {tolerance}. By default: {TOLERANCES}.")


def _earlier_files(folder: Path) -> tuple[str, ...]:
    """The files of an export that is in the folder."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file. Name a folder to export to.")
    if is_exported(folder):
        return (*read_record(folder).files, EXPORT_FILE)
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds other files, and no earlier export. Name a new folder.")
    return ()


def _on_cpu(model: ModelSource) -> VideoClassifier:
    if isinstance(model, ExportedModel) or (not isinstance(model, VideoClassifier) and holds_export(model)):
        raise ConfigError(f"{model} is an exported model already. Name the model that it was exported from.")
    resolved = resolve_model(model)
    dtypes = {parameter.dtype for parameter in resolved.parameters()}
    if dtypes != {torch.float32}:
        kinds = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise ConfigError(f"models are exported in float32, {resolved.name} is in {kinds}. Give model.float().")
    return resolved if resolved.device.type == "cpu" else copy.deepcopy(resolved).to("cpu")


def _step_of(model: VideoClassifier) -> StreamStep:
    if not isinstance(model, PKS4):
        raise ConfigError(f"{model.name} keeps no state from frame to frame, so it has no step. Give a causal PKS4.")
    return StreamStep(model)


def _record_of(
    module: nn.Module,
    model: VideoClassifier,
    *,
    to: FormatName,
    batch: int | None,
    num_frames: int | None,
    precision: Precision,
) -> ExportRecord:
    """The record of what is about to be written; `module` is what is exported of the model."""
    preprocessing = replace(model.preprocessing, num_frames=num_frames or model.preprocessing.num_frames)
    return ExportRecord(
        kinescan_version=__version__,
        model=model.name,
        format=to,
        file=FORMATS[to].file,
        files=(),
        labels=model.labels,
        num_classes=model.config.num_classes,
        preprocessing=preprocessing,
        batch=batch,
        num_frames=preprocessing.num_frames,
        size=preprocessing.size,
        precision=precision,
        causal=getattr(model.config, "causal", None),
        timing=model.timing,
        num_clips=model.num_clips,
        symmetries=model.symmetries,
        output="frames" if model.answers_frames else "clip",
        overlapping=model.overlapping,
        weights=model.weights_fingerprint(),
        step=_step_record(module) if isinstance(module, StreamStep) else None,
        versions=_versions(),
    )


def _step_record(step: StreamStep) -> StepRecord:
    config = step.model.config
    return StepRecord(
        states=step.states,
        average=config.average,
        average_rate=config.average_rate,
        repeats_first=step.repeats_first,
    )


def _write(module: nn.Module, record: ExportRecord, folder: Path) -> ExportRecord:
    try:
        with quiet_exporters():
            FORMATS[record.format].write(module, record.signature, folder / record.file)
    except (RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, KinescanError):
            raise
        raise ExportError(f"{record.model} cannot be written as {record.format}: {first_line(error)}") from error
    record = replace(record, files=tuple(entry.name for entry in sorted(folder.iterdir()) if entry.is_file()))
    _write_record(record, folder)
    return record


def _write_record(record: ExportRecord, folder: Path) -> None:
    write_text(folder / EXPORT_FILE, to_json(to_plain(record), indent=2) + "\n")


def _clips_to_compare(record: ExportRecord, videos: Sequence[str | Path]) -> tuple[list[str], Tensor]:
    """Names and [n, T, 3, size, size]."""
    transform = EvalTransform(record.preprocessing)
    num_frames = record.num_frames if record.step is None else NUM_COMPARED_STEPS
    if videos:
        files = video_files(videos)
        views = Views(frames=num_frames, clips=1, crops=1)
        clips = [read_clips(file, record.preprocessing, views, transform)[0][0, 0] for file in files]
        return [str(file) for file in files], torch.stack(clips)
    config = MotionConfig(frame_size=max(record.size, _SMALLEST_SYNTHETIC_FRAME), num_frames=max(num_frames, 2), seed=0)
    pairs = list(MOTION_PAIRS)[:NUM_SYNTHETIC_CLIPS]
    clips = [transform(render_motion(config, "test", pair, 0)[:num_frames])[0] for pair in pairs]
    return [f"synthetic: {MOTION_PAIRS[pair][0]}" for pair in pairs], torch.stack(clips)


def _compare(folder: Path, names: list[str], clips: Tensor, expected: Tensor, tolerance: float) -> ExportCheck:
    """Runs the file as a user would."""
    # What we wrote ourselves.
    exported = load_exported(folder, allow_code=True)
    largest = expected.abs().max().item()
    allowed = tolerance * max(largest, 1.0)
    single = exported.config.batch is None
    if isinstance(exported, ExportedStep):
        given, _ = exported.forward_stream(clips)
        alone = [exported.forward_stream(clip[None, :NUM_STEPS_ALONE])[0] for clip in clips] if single else []
    else:
        given = exported(clips)
        alone = [exported(clip[None]) for clip in clips] if single else []
    difference, same = _difference(given, expected, allowed)
    for index, logits in enumerate(alone):
        wanted = expected[index : index + 1]
        wanted = wanted if wanted.ndim == 2 else wanted[:, : logits.shape[1]]
        of_one, same_of_one = _difference(logits, wanted, allowed)
        difference, same[index] = max(difference, of_one), same[index] & same_of_one[0]
    return ExportCheck(
        clips=tuple(names),
        largest_logit=largest,
        largest_difference=difference,
        allowed_difference=allowed,
        same_top1=int(same.sum()),
        single_clip=single,
        num_steps=None if exported.record.step is None else clips.shape[1],
    )


def _difference(given: Tensor, expected: Tensor, allowed: float) -> tuple[float, Tensor]:
    """The largest difference of logits [n, K] or [n, T, K], and [n], whether the best class is the same.

    At every frame, where the two best classes are further apart than `allowed`: of many frames, some are a draw.
    """
    difference = (given - expected).abs().max().item()
    same = given.argmax(-1) == expected.argmax(-1)
    if expected.ndim == 3:
        best = expected.topk(min(2, expected.shape[-1]), dim=-1).values
        same = (same | (best[..., 0] - best[..., -1] <= allowed)).all(dim=1)
    # NaN would compare as not larger.
    return difference if difference == difference else float("inf"), same


def _failure(record: ExportRecord, check: ExportCheck) -> str:
    advice = "Export in float32, or" if record.precision == "bfloat16" else "If that is good enough,"
    return (
        f"the exported {record.format} file differs from {record.model}: logits by up to "
        f"{check.largest_difference:.3g} (allowed: {check.allowed_difference:.3g}, the largest being "
        f"{check.largest_logit:.3g}), the same best class on {check.same_top1} of {len(check.clips)} clips. "
        f"Nothing was written. {advice} allow more with --tolerance (the best classes have to be the same in any case)."
    )


def _plain(check: ExportCheck) -> dict[str, Any]:
    return {**to_plain(check), "passed": check.passed}


def _versions() -> dict[str, str]:
    found = {}
    for package in ("torch", "onnx", "onnxscript", "onnxruntime", "openvino"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
