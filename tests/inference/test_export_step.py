from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kinescan.errors import CheckpointError, ConfigError, ShapeError
from kinescan.events.rules import EventRules, save_rules
from kinescan.inference.event_rules import model_rules
from kinescan.inference.export import NUM_COMPARED_STEPS, export
from kinescan.inference.export_record import read_record
from kinescan.inference.exported import ExportedStep, load_exported
from kinescan.inference.stream import stream
from kinescan.models.pks4 import PKS4
from kinescan.shapes import BACKGROUND

from .conftest import LABELS, tiny_model
from .test_export import PACKAGES, SIZES, _need

CAUSAL = {**SIZES, "causal": True}


def _trained(**options: Any) -> PKS4:
    """As after some training: no part adds nothing."""
    background = options.get("output") == "frames" and not options.get("overlapping")
    labels = (BACKGROUND, *LABELS[1:]) if background else LABELS
    model = tiny_model(**{**CAUSAL, **options}, labels=labels)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def causal() -> PKS4:
    return _trained(border="replicate")


@pytest.fixture(scope="module")
def deployed(causal: PKS4, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("step") / "deployed"
    export(causal, folder, to="torch", step=True)
    return folder


def _exported(folder: Path) -> ExportedStep:
    exported = load_exported(folder, allow_code=True)
    assert isinstance(exported, ExportedStep)
    return exported


@pytest.mark.parametrize("to", sorted(PACKAGES))
def test_a_step_gives_the_logits_of_every_prefix(to: Any, tmp_path: Path) -> None:
    _need(to)
    model = _trained()
    record = export(model, tmp_path / "deployed", to=to, step=True)
    assert record.check["passed"]
    assert record.check["num_steps"] == NUM_COMPARED_STEPS == 100
    assert record.check["largest_logit"] > 0.1, "logits that never move compare as equal, whatever the state does"
    exported = _exported(tmp_path / "deployed")
    clip = torch.randn(3, 7, 3, 32, 32)
    with torch.no_grad():
        wanted, _ = model.forward_stream(clip)
        frames, _ = model.stream_frames(clip)
    first, state = exported.forward_stream(clip[:, :4])
    second, state = exported.forward_stream(clip[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(exported.stream_frames(clip)[0], frames, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(exported(clip), wanted[:, -1], atol=1e-4, rtol=1e-4)
    assert state.frames_seen == 7


@pytest.mark.parametrize(
    "options",
    [
        {"output": "frames"},
        {"output": "frames", "overlapping": True},
        {"average": "exponential"},
        {"scanner": False, "correlation": False, "variation": False, "class_token_route": "none", "output": "frames"},
        {"residual": "literal", "class_token_route": "tsm", "norm": "group"},
    ],
)
def test_every_causal_form_has_a_step(options: dict[str, Any], tmp_path: Path) -> None:
    model = _trained(**options)
    export(model, tmp_path / "deployed", to="torch", step=True)
    exported = _exported(tmp_path / "deployed")
    assert (exported.answers_frames, exported.overlapping) == (model.answers_frames, model.overlapping)
    clip = torch.randn(2, 6, 3, 32, 32)
    with torch.no_grad():
        wanted, expected = model.forward_stream(clip)[0], model(clip)
    torch.testing.assert_close(exported.forward_stream(clip)[0], wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(exported(clip), expected, atol=1e-4, rtol=1e-4)


def test_streams_of_different_age_go_side_by_side(causal: PKS4, deployed: Path) -> None:
    exported = _exported(deployed)
    clip = torch.randn(2, 5, 3, 32, 32)
    with torch.no_grad():
        old, _ = causal.stream_frames(clip[:1])
        young, _ = causal.stream_frames(clip[1:, 3:])
    _, state = exported.stream_frames(clip[:1, :3])
    both = [torch.cat(pair) for pair in zip(exported.pack(state), exported.start(1), strict=True)]
    logits = []
    for index in (3, 4):
        first = torch.tensor([0.0, float(index == 3)])
        scores, both = exported.take(clip[:, index], both, first=first)
        logits.append(scores)
    torch.testing.assert_close(torch.stack(logits), torch.stack([old[0, 3:], young[0]], dim=1), atol=1e-4, rtol=1e-4)


def test_the_record_says_what_goes_in_and_out(causal: PKS4, deployed: Path) -> None:
    record = read_record(deployed)
    assert record.step is not None
    assert record.weights == causal.weights_fingerprint()
    assert record.step.repeats_first
    assert tuple(record.signature.inputs)[:3] == ("frame", "first", "class_tokens.0")
    assert record.signature.outputs == ("logits", *(f"next.{state.name}" for state in record.step.states))
    assert record.signature.inputs["frame"] == (None, 3, 32, 32)


def test_a_fixed_batch_is_filled_up(tmp_path: Path) -> None:
    model = _trained()
    assert export(model, tmp_path, to="torch", step=True, batch=2).check["passed"]
    exported = _exported(tmp_path)
    clip = torch.randn(3, 3, 3, 32, 32)
    with torch.no_grad():
        wanted, _ = model.forward_stream(clip)
    torch.testing.assert_close(exported.forward_stream(clip)[0], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.bad_input
def test_what_a_step_refuses(deployed: Path, causal: PKS4, tmp_path: Path) -> None:
    exported = _exported(deployed)
    with pytest.raises(ShapeError, match="32"):
        exported.forward_stream(torch.zeros(1, 2, 3, 48, 48))
    with torch.no_grad():
        _, wrong = _trained(width=32).forward_stream(torch.zeros(1, 1, 3, 32, 32))
    with pytest.raises(CheckpointError, match="class_tokens"):
        exported.forward_stream(torch.zeros(1, 1, 3, 32, 32), wrong)
    with torch.no_grad():
        _, two = causal.forward_stream(torch.zeros(2, 1, 3, 32, 32))
    with pytest.raises(CheckpointError, match="class_tokens"):
        exported.forward_stream(torch.zeros(1, 1, 3, 32, 32), two)


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (lambda: tiny_model(**SIZES), {"to": "torch"}, "causal = true"),
        (lambda: tiny_model(**CAUSAL), {"to": "transformers"}, "onnx, openvino, torch"),
        (lambda: tiny_model(**CAUSAL), {"to": "torch", "num_frames": 4}, "num_frames"),
    ],
)
def test_what_has_no_step(make: Callable[[], PKS4], options: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        export(make(), tmp_path / "deployed", step=True, **options)
    assert not (tmp_path / "deployed").exists()


def test_a_stream_runs_on_a_step_as_on_the_model(causal: PKS4, deployed: Path, tmp_path: Path) -> None:
    frames = [(torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8), index / 8) for index in range(12)]
    wanted = [one.logits for one in stream(causal, frames)]
    got = [one.logits for one in stream(deployed, frames, allow_code=True)]
    torch.testing.assert_close(torch.stack(got), torch.stack(wanted), atol=1e-4, rtol=1e-4)
    kept = tmp_path / "state.safetensors"
    first = [one.logits for one in stream(deployed, frames[:5], allow_code=True, state=kept)]
    second = [one.logits for one in stream(deployed, frames[5:], allow_code=True, state=kept)]
    torch.testing.assert_close(torch.stack(first + second), torch.stack(wanted), atol=1e-4, rtol=1e-4)
    with pytest.raises(CheckpointError, match="--allow-code"):
        stream(deployed, frames)


def test_thresholds_beside_a_model_go_with_it(tmp_path: Path) -> None:
    model = _trained(output="frames")
    model.save_pretrained(tmp_path / "saved")
    rules = EventRules(on=0.7)
    save_rules(tmp_path / "saved", rules, classes=model.class_names, weights=model.weights_fingerprint())
    export(tmp_path / "saved", tmp_path / "deployed", to="torch", step=True)
    assert model_rules(_exported(tmp_path / "deployed"), tmp_path / "deployed") == rules
