"""Every reader of a file, with files damaged at random: a result or an error of ours, never a traceback.

KINESCAN_FUZZ_EXAMPLES=5000 looks longer; without it, the same examples are sampled in every run.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from kinescan.config import build_run, dump_recipe, load_recipe
from kinescan.data.convert.conversion import ConvertOptions, convert_export
from kinescan.data.interval_listing import read_intervals
from kinescan.data.listing import read_items
from kinescan.data.sampling import Views
from kinescan.errors import CheckpointError, KinescanError
from kinescan.events.detector import EventDetector
from kinescan.events.rules import ClassRules, EventRules, load_rules, save_rules
from kinescan.events.told import Told, told_from
from kinescan.inference.export_record import ExportRecord, read_record
from kinescan.inference.model_source import resolve_model
from kinescan.inference.stream_state import save_stream_state
from kinescan.inference.transformers_folder import read_transformers_folder
from kinescan.models.pks4_state import PKS4State
from kinescan.models.saving.run_record import read_run
from kinescan.models.weights.checkpoint_file import read_checkpoint
from kinescan.models.zoo import create_model, from_pretrained
from kinescan.preprocessing import Preprocessing
from kinescan.runs.bench import read_suite
from kinescan.runs.compare import compare_reports
from kinescan.runtime.escaping import to_json
from kinescan.runtime.files import read_json_object
from kinescan.settings import to_plain
from kinescan.training.checkpoint import TrainState, find_checkpoint, load_state, read_rng, write_checkpoint, write_rng
from kinescan.training.run_log import Journal

EXAMPLES = int(os.environ.get("KINESCAN_FUZZ_EXAMPLES", "60"))
TINY: dict[str, Any] = {"depth": 2, "image_size": 32, "insert_after": 1, "window": 3, "width": 16, "heads": 1}
TINY |= {"mlp_dim": 16, "embed_dim": 8, "kinematic_width": 8, "norm": "group"}

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, -0.5, 1e308, float("nan"), float("inf")),
    *("", "text", "\0", "../../etc/passwd", "/dev/zero", "$\\frac{x$", "\ud800", "x" * 5000, "1", "=" * 9),
    *([], {}, [[]], [None], [1, 2, 3], {"a": 1}, [["x"] * 3] * 3),
]


@dataclass
class Case:
    """A kind of file.

    Attributes:
        make: writes a sound one into a folder.
        read: reads what is there, and uses it as far as it goes.
        files: what is damaged.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    files: tuple[str, ...]
    folder: Path = field(default_factory=Path)
    sound: dict[str, bytes] = field(default_factory=dict)


def small_model(**options: Any) -> Any:
    torch.manual_seed(0)
    labels, preprocessing = ["left", "right"], {"num_frames": 2}
    return create_model("pks4_vit_ti16", labels=labels, preprocessing=preprocessing, **TINY, **options)


def make_events(folder: Path) -> None:
    detector, told = EventDetector(("background", "fall"), stream_id="s"), []
    for frame in range(8):
        told += detector.push(frame / 10, [0.1, 0.9 * (frame != 5)])
    records = [Told(update=update, source="a.mp4", sequence=1).to_plain() for update in told]
    (folder / "state.json").write_text(json.dumps({"detector": detector.state(), "told": records}))
    save_rules(folder, EventRules(classes={"fall": ClassRules(on=0.9)}), classes=detector.classes, weights="w")


def read_events(folder: Path) -> None:
    rules = load_rules(folder, classes=("background", "fall"), weights="w")
    content = read_json_object(folder / "state.json", error=CheckpointError)
    detector = EventDetector(("background", "fall"), rules)
    detector.restore(content.get("detector", {}))
    for frame in range(20):
        detector.push(1 + frame / 10, [0.1, 0.9 * (frame < 5)])
    records = content.get("told")
    for record in records if isinstance(records, list) else []:
        to_json(told_from(record).to_plain())


def make_tuned(folder: Path) -> None:
    sizes: dict[str, Any] = {"depth": 1, "width": 16, "image_size": 32, "num_frames": 2}
    save_file(create_model("videomamba_tiny", labels=["a", "b"], **sizes).state_dict(), folder / "base.safetensors")
    base = folder / "base.safetensors"
    create_model(
        "adapter_videomamba_tiny", labels=["a", "b"], weights=base, bottleneck=4, num_frames=2
    ).save_pretrained(folder)


def make_shards(folder: Path) -> None:
    save_file({"a": torch.zeros(3)}, folder / "model-1.safetensors")
    weight_map = {"a": "model-1.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def make_record(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"x")
    record = ExportRecord(
        kinescan_version="0.1.0",
        model="pks4_vit_ti16",
        format="onnx",
        file="model.onnx",
        files=("model.onnx",),
        labels=("a", "b"),
        preprocessing=Preprocessing(),
        batch=None,
        num_frames=8,
        size=224,
        precision="float32",
    )
    (folder / "export.json").write_text(json.dumps(to_plain(record)))


def make_state(folder: Path) -> None:
    state = TrainState(optimizer={"state": {0: {"step": torch.tensor(1.0)}}}, rng=[read_rng()], unreadable={"a": "b"})
    write_checkpoint(folder / "last", small_model().files_to_save(), state)


def read_state(folder: Path) -> None:
    if (found := find_checkpoint(folder / "last")) is not None:
        write_rng(load_state(found).rng[0])


def read_state_alone(folder: Path) -> None:
    state = load_state(folder / "last")
    if state.rng:
        write_rng(state.rng[0])


def make_pickles(folder: Path) -> None:
    content = {"state_dict": {"module.a": torch.arange(6.0).view(2, 3), "module.b": torch.ones(2)}, "epoch": 3}
    torch.save(content, folder / "a.pt")
    torch.save(content, folder / "b.pt", _use_new_zipfile_serialization=False)


def make_script(folder: Path) -> None:
    torch.jit.script(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())).save(str(folder / "a.pt"))


def make_run(folder: Path) -> None:
    (folder / "recipe.toml").write_text(dump_recipe(build_run({"model": "vit_ti16", "data": {"train": "videos"}})))
    report = {"data": "videos", "views": "8x2x3", "num_videos": 2, "top1": 0.5, "top5": 1.0, "top5_classes": 2}
    report |= {"calibration_error": 0.1, "notes": ["a note"], "num_unreadable": 0}
    lines = [json.dumps({"video_id": str(n), "label": "a", "prediction": "ab"[n]}) for n in range(2)]
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "report.json").write_text(json.dumps(report))
        (folder / name / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "report.json").write_text(json.dumps(report))


def make_transformers(folder: Path) -> None:
    model = small_model()
    save_file(
        {f"classifier.{name}": tensor for name, tensor in model.state_dict().items()}, folder / "model.safetensors"
    )
    config = {"architecture": model.name, "options": to_plain(model.config), "id2label": {"0": "a", "1": "b"}}
    (folder / "config.json").write_text(json.dumps(config | {"preprocessing": to_plain(model.preprocessing)}))


def make_stream(folder: Path) -> None:
    model = small_model(causal=True).eval()
    with torch.no_grad():
        _, state = model.forward_stream(torch.zeros(1, 1, 3, 32, 32), PKS4State())
    save_stream_state(state, folder / "state.safetensors")


def read_journal(folder: Path) -> None:
    Journal(folder / "log.jsonl", keep_lines=2).close()


def make_suite(folder: Path) -> None:
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "suite.toml").write_text(
        '[a]\nscript = "a.py"\nsays = "x"\nminutes = 1.0\nneeds = ["b"]\n'
    )


CASES: Mapping[str, Case] = {
    "events": Case(make_events, read_events, ("state.json", "events.json")),
    "saved model": Case(
        lambda folder: small_model().save_pretrained(folder), resolve_model, ("config.json", "model.safetensors")
    ),
    "tuned part": Case(make_tuned, from_pretrained, ("config.json", "model.safetensors", "base.safetensors")),
    "index of shards": Case(make_shards, read_checkpoint, ("model.safetensors.index.json", "model-1.safetensors")),
    "pickle": Case(make_pickles, lambda folder: read_checkpoint(folder / "a.pt"), ("a.pt",)),
    "old pickle": Case(make_pickles, lambda folder: read_checkpoint(folder / "b.pt"), ("b.pt",)),
    "TorchScript": Case(make_script, lambda folder: read_checkpoint(folder / "a.pt"), ("a.pt",)),
    "export": Case(make_record, read_record, ("export.json",)),
    "export to transformers": Case(
        make_transformers, lambda folder: read_transformers_folder(folder / "model.safetensors"), ("config.json",)
    ),
    "checkpoint": Case(make_state, read_state, ("last/checksums.json", "last/training_state.pt", "last/optimizer.pt")),
    "training state": Case(make_state, read_state_alone, ("last/training_state.pt", "last/optimizer.pt")),
    "run": Case(make_run, read_run, ("recipe.toml", "report.json")),
    "recipe": Case(make_run, lambda folder: load_recipe(folder / "recipe.toml"), ("recipe.toml",)),
    "reports": Case(make_run, lambda f: compare_reports(f / "a", f / "b"), ("a/report.json", "a/predictions.jsonl")),
    "journal": Case(
        lambda folder: (folder / "log.jsonl").write_text('{"kind": "step"}\n' * 3), read_journal, ("log.jsonl",)
    ),
    "suite": Case(make_suite, read_suite, ("benchmarks/suite.toml",)),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Case]:
    for name, case in CASES.items():
        case.folder = tmp_path_factory.mktemp(name.replace(" ", "_"))
        case.make(case.folder)
        case.sound = {file: (case.folder / file).read_bytes() for file in case.files}
    return CASES


def damage(draw: Any, content: bytes) -> bytes:
    """A few bytes flipped, cut, zeroed, doubled, put in or taken away."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(len(changed) - 1, 0)))
        length = draw(st.sampled_from([1, 2, 4, 8, 64, len(changed) // 4 + 1]))
        kind = draw(st.sampled_from(["flip", "byte", "cut", "zero", "double", "insert", "remove", "ones"]))
        part = bytes(changed[start : start + length])
        if kind == "cut":
            del changed[start:]
            continue
        if kind in ("flip", "byte"):
            part = part[:1]
        changed[start : start + len(part)] = {
            "flip": bytes(byte ^ (1 << draw(st.integers(0, 7))) for byte in part),
            "byte": draw(st.binary(min_size=1, max_size=1)) if part else b"",
            "zero": bytes(len(part)),
            "double": part * 2,
            "insert": draw(st.binary(max_size=8)) + part,
            "remove": b"",
            "ones": b"\xff" * len(part),
        }[kind]
    return bytes(changed)


def exchange(draw: Any, value: Any) -> Any:
    """The same JSON value with one of its parts replaced, renamed or taken away."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value)))
        rest = {name: held for name, held in value.items() if name != key}
        kind = draw(st.integers(0, 9))
        return rest if kind == 0 else {**rest, "other" if kind == 1 else key: exchange(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 2)):
        index = draw(st.integers(0, len(value) - 1))
        return [*value[:index], exchange(draw, value[index]), *value[index + 1 :]]
    return draw(st.sampled_from(VALUES))


def read_damaged(case: Case, file: str, content: bytes) -> None:
    for name, sound in case.sound.items():
        (case.folder / name).write_bytes(content if name == file else sound)
    problem = ""
    try:
        case.read(case.folder)
    except KinescanError as error:
        problem = str(error)
    assert len(problem) < 10_000


FUZZ = settings(
    max_examples=EXAMPLES,
    derandomize="KINESCAN_FUZZ_EXAMPLES" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_damaged_files_are_read_or_refused(name: str, cases: Mapping[str, Case]) -> None:
    case = cases[name]
    for file, sound in case.sound.items():
        (case.folder / file).write_bytes(sound)
    case.read(case.folder)

    @FUZZ
    @given(st.data())
    def run(data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(case.files))
        read_damaged(case, file, damage(data.draw, case.sound[file]))

    run()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "file"), [(n, f) for n, case in CASES.items() for f in case.files if f.endswith((".json", ".jsonl"))]
)
def test_values_of_the_wrong_kind_are_refused(name: str, file: str, cases: Mapping[str, Case]) -> None:
    case = cases[name]

    @FUZZ
    @given(st.data())
    def run(data: st.DataObject) -> None:
        lines = (
            [json.loads(line) for line in case.sound[file].decode().split("\n") if line] if "jsonl" in file else None
        )
        changed = exchange(data.draw, json.loads(case.sound[file]) if lines is None else lines)
        held = changed if lines is not None and isinstance(changed, list) else [changed]
        read_damaged(case, file, "\n".join(json.dumps(value) for value in held).encode())

    run()


@FUZZ
@given(st.text(max_size=30))
def test_texts_of_settings_are_read_or_refused(text: str) -> None:
    for read in (
        Views.parse,
        lambda given: build_run({}, [given]),
        lambda given: build_run({}, [f"optim.lr={given}"]),
        lambda given: build_run({}, [f"data.train={given}"]),
    ):
        try:
            read(text)
        except KinescanError:
            continue


@FUZZ
@given(st.data())
def test_damaged_lists_of_videos_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    sound = b'path,label\na.mp4,jump\nb.mp4,run\nc.mp4,"a, b"\n'
    (folder / "list.csv").write_bytes(damage(data.draw, sound))
    try:
        read_items(folder / "list.csv")
    except KinescanError:
        return


TASK = {"id": 1, "data": {"video": "/data/upload/1/0a1b2c3d-a.mp4"}}
RESULT = {"type": "timelinelabels", "value": {"ranges": [{"start": 3, "end": 9}], "timelinelabels": ["fall"]}}
EXPORTS = {
    "a.json": json.dumps([TASK | {"annotations": [{"result": [RESULT]}]}]),
    "b.json": json.dumps({"database": {"a": {"subset": "train", "annotations": [{"segment": [1, 2], "label": "x"}]}}}),
    "a.eaf": '<ANNOTATION_DOCUMENT><HEADER TIME_UNITS="milliseconds"><MEDIA_DESCRIPTOR MEDIA_URL="file:///a.mp4"/>'
    '</HEADER><TIME_ORDER><TIME_SLOT TIME_SLOT_ID="1" TIME_VALUE="500"/><TIME_SLOT TIME_SLOT_ID="2" TIME_VALUE="900"/>'
    '</TIME_ORDER><TIER TIER_ID="t"><ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a" TIME_SLOT_REF1="1" '
    'TIME_SLOT_REF2="2"><ANNOTATION_VALUE>x</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER>'
    "</ANNOTATION_DOCUMENT>",
    "a.xml": "<annotations><meta><task><size>60</size><source>a.mp4</source></task></meta><track id='0' label='x'>"
    "<box frame='3' outside='0'><attribute name='n'>true</attribute></box><box frame='9' outside='1'/></track>"
    "</annotations>",
    "a.tsv": "Observation id\tSource\tMedia duration (s)\tBehavior\tBehavior type\tStart (s)\tStop (s)\n"
    "o\tplayer #1:b.mp4;a.mp4\t3;3\tx\tSTATE\t3.5\t4\n",
    "b.tsv": "Time\tMedia file path\tBehavior\tStatus\n1\ta.mp4\tx\tSTART\n2\ta.mp4\tx\tSTOP\n",
    "a.txt": "event\t\t00:00:00.500\t0.5\t00:00:01.250\t1.25\t00:00:00.750\t0.75\tfall\n",
    "b.txt": "Begin Time - ss.msec\tEnd Time - ss.msec\tevent\tFile Path\n0.5\t1.25\tfall\t/x/a.eaf\n",
    "a.csv": '# ATTRIBUTE = {"1":{"aname":"w","options":{"0":"x"}}}\n'
    "# CSV_HEADER = metadata_id,file_list,temporal_coordinates,metadata\n"
    '"1","[""a.mp4""]","[0.5,1.25]","{""1"":""0""}"\n',
    "b.csv": "path,start_frame,end_frame,label\na.mp4,3,9,x\n",
    "c.csv": 'path,start,end,label,split\na.mp4,"0,5",0:01,x,train\nb.mp4,,,,val\n',
}


@FUZZ
@given(st.data(), st.sampled_from(sorted(EXPORTS)))
def test_damaged_exports_of_annotation_tools_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "exports"
    folder.mkdir(exist_ok=True)
    for video in ("a.mp4", "b.mp4"):
        (folder / video).touch()
    if name.endswith(".json") and data.draw(st.booleans()):
        content = json.dumps(exchange(data.draw, json.loads(EXPORTS[name]))).encode()
    else:
        content = damage(data.draw, EXPORTS[name].encode())
    (folder / name).write_bytes(content)
    for read in (
        lambda: convert_export(folder / name, ConvertOptions(frame_rate=20, least_seconds=0.5)),
        lambda: read_intervals(folder / name),
    ):
        try:
            read()
        except KinescanError:
            continue
