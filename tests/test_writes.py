"""What is written goes through `runtime.atomic_write`: every other call that writes or renames stands in a list."""

import ast
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import kinescan
from kinescan.data.synthetic import MotionConfig, make_motion
from kinescan.data.video import write_video
from kinescan.errors import KinescanError
from kinescan.inference.stream_state import save_stream_state
from kinescan.models import VideoClassifier, create_model
from kinescan.training.checkpoint import write_checkpoint
from kinescan.training.run_log import Journal

SOURCE = Path(kinescan.__file__).parent
ATOMIC = {"atomic_write", "atomic_files", "atomic_folder", "write_file"}
HOME = "runtime/atomic_write.py"
GIVEN = {
    "inference/export_formats.py": "writes into the folder that export's atomic_files gives it",
    "data/video/writer.py": "_encode writes into the file that atomic_write gives it",
}
"""Functions that are called within such a block, with the path that it gives."""
OTHERS = {
    ("training/run_log.py", "open"): "a log that grows line by line",
    ("runs/finished.py", "open"): "a journal that grows line by line, until the report is there",
    ("runtime/output_folder.py", "NamedTemporaryFile"): "an empty file that tries the folder out",
    ("evaluation/report_parts.py", "replace"): "the report of another model moves into a folder of its own",
    ("data/video/fetching.py", "NamedTemporaryFile"): "a video that was given as bytes, for the time that it is read",
    ("events/disk_queue.py", "replace"): "a message that is refused moves into a folder of its own",
    ("profiling/speed.py", "write_text"): "a file of Linux's /proc",
    ("web/pictures.py", "save"): "a picture in memory",
}
MODES = set("wxa+")


def _call(node: ast.Call) -> str | None:
    """The name of a call that writes or renames a file; None for all others."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    holder = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
    if name == "open" and not holder.endswith("av"):
        texts = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        modes = [text.value for text in texts if isinstance(text, ast.Constant) and isinstance(text.value, str)]
        return name if any(len(mode) <= 3 and MODES & set(mode) for mode in modes) else None
    if name in {"write_bytes", "save_file", "mkstemp", "NamedTemporaryFile", "savefig", "rename", "renames", "move"}:
        return name
    if name == "write_text" and holder:
        return name
    if name == "save" and holder in {"torch", "torch.export", "np", "numpy", "image"}:
        return name
    # str.replace takes two arguments, dataclasses.replace keywords
    if name == "replace" and (holder == "os" or (holder and len(node.args) == 1 and not node.keywords)):
        return name
    return None


def _is_atomic(node: ast.With) -> bool:
    calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
    return any(getattr(call.func, "id", "") in ATOMIC for call in calls)


def _writes(node: ast.AST, *, inside: bool = False) -> Iterator[tuple[int, str]]:
    """Line and name of each call outside of the blocks that write aside."""
    if isinstance(node, ast.Call) and not inside and (name := _call(node)) is not None:
        yield node.lineno, name
    for child in ast.iter_child_nodes(node):
        yield from _writes(child, inside=inside or (isinstance(node, ast.With) and _is_atomic(node)))


def test_every_write_is_aside_or_stands_in_the_list() -> None:
    seen: set[tuple[str, str]] = set()
    unknown = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if name == HOME or name in GIVEN:
            continue
        for line, call in _writes(ast.parse(path.read_text(encoding="utf-8"))):
            seen.add((name, call))
            if (name, call) not in OTHERS:
                unknown.append(f"{name}:{line}: {call}")
    assert unknown == []
    assert set(OTHERS) == seen


@pytest.mark.parametrize(
    "source",
    [
        "os.replace(a, b)",
        "aside.replace(path)",
        "path.write_text('x')",
        "open(path, 'w')",
        "path.open(mode='ab')",
        "torch.save(state, path)",
        "save_file(tensors, path)",
        "with open(path) as file:\n    other.write_bytes(b'')",
    ],
)
def test_each_way_to_write_is_seen(source: str) -> None:
    assert list(_writes(ast.parse(source)))
    assert not list(
        _writes(ast.parse("with atomic_files(folder) as aside:\n" + "    " + source.replace("\n", "\n    ")))
    )


@pytest.mark.parametrize(
    "source", ["text.replace('a', 'b')", "replace(record, name=1)", "path.open('rb')", "open(path)"]
)
def test_what_does_not_write_is_passed_over(source: str) -> None:
    assert not list(_writes(ast.parse(source)))


@pytest.fixture(scope="module")
def model() -> VideoClassifier:
    sizes = {"width": 24, "depth": 2, "heads": 2, "mlp_dim": 24, "embed_dim": 24, "insert_after": 1, "image_size": 32}
    return create_model("pks4_vit_ti16", num_classes=2, causal=True, kinematic_width=8, **sizes)


def _writers(model: VideoClassifier) -> dict[str, Callable[[Path, int], object]]:
    """Each writes into a folder; the second argument makes what is written differ."""

    def stream_state(folder: Path, number: int) -> None:
        with torch.no_grad():
            _, state = model.forward_stream(torch.rand(1, number, 3, 32, 32), None)
        save_stream_state(state, folder / "state.safetensors")

    def model_folder(folder: Path, number: int) -> None:
        model.labels = tuple(f"{name} {number}" for name in "ab")
        model.save_pretrained(folder)

    def journal(folder: Path, number: int) -> None:
        log = Journal(folder / "log.jsonl", keep_lines=0)
        log.write("step", {"step": number})
        log.close()

    frames = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    few = {"train_per_class": 1, "test_per_class": 1, "frame_size": 32, "num_frames": 4, "pairs": ("horizontal",)}
    return {
        "model": model_folder,
        "checkpoint": lambda folder, number: write_checkpoint(folder / "last", model.files_to_save(), None),
        "state of a stream": stream_state,
        "video": lambda folder, number: write_video(folder / "a.mp4", frames + number, fps=4),
        "data set": lambda folder, number: make_motion(folder / "d", MotionConfig(seed=number, overwrite=True, **few)),
        "log": journal,
    }


NAMES = ("model", "checkpoint", "state of a stream", "video", "data set", "log")


@pytest.mark.parametrize("name", NAMES)
def test_disk_that_is_full_leaves_what_was_written_before(
    name: str, model: VideoClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = _writers(model)[name]
    write(tmp_path, 1)
    kept = {"data set": "meta.json"}.get(name, "*")
    before = {path: path.read_bytes() for path in tmp_path.rglob(kept) if path.is_file()}

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KinescanError, match="space"):
        write(tmp_path, 2)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in before} == before
    assert [path for path in tmp_path.rglob("*") if ".part" in path.name] == []
    write(tmp_path, 2)
    for path in tmp_path.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
