"""`ask` of damaged model folders, as a program of its own: one line about what is wrong, and nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")
from tests.vlm import published

from kinescan.data.video import write_video

RUN = """
import json, sys
from kinescan.cli.main import main

for name, arguments in json.load(sys.stdin).items():
    print(f"\\n== {name}", file=sys.stderr, flush=True)
    sys.argv = ["kinescan", *arguments]
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    print(f"\\n-- {code}", file=sys.stderr, flush=True)
"""


def without_a_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "mlp" in name))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def of_another_shape(folder):
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layers.1.mlp.down" in name)
    weights[name] = weights[name][:-1].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) * 6 // 10])


def without_words(folder):
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["model"]["vocab"], stored["added_tokens"] = {}, []
    (folder / "tokenizer.json").write_text(json.dumps(stored))


def quantised(method):
    def change(folder):
        stored = json.loads((folder / "config.json").read_text())
        stored["quantization_config"] = {"quant_method": method, "bits": 4}
        (folder / "config.json").write_text(json.dumps(stored))

    return change


DAMAGE = {
    "tensor missing": (without_a_tensor, "mlp"),
    "other shape": (of_another_shape, "mlp.down"),
    "cut": (cut, "model.safetensors"),
    "weights missing": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "tokenizer without words": (without_words, "tokenizer"),
    "tokenizer empty": (lambda folder: (folder / "tokenizer.json").write_text(""), "tokenizer.json"),
    "gguf": (lambda folder: (folder / "model.safetensors").rename(folder / "a.gguf"), "GGUF"),
    "config broken": (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    "generation config broken": (lambda folder: (folder / "generation_config.json").write_text("{"), "generation"),
    "quantised by a package that is not there": (quantised("quip9"), "quip9"),
    "empty": (lambda folder: [path.unlink() for path in folder.iterdir()], "empty"),
    "no folder": (shutil.rmtree, "no folder"),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each case prints to standard error, and its exit code; one process, since a start takes seconds."""
    folder = tmp_path_factory.mktemp("ask")
    clip = folder / "noise.mkv"
    write_video(clip, torch.randint(0, 256, (4, 3, 16, 32), dtype=torch.uint8), fps=2)
    whole = published.save("internvl", folder / "internvl")
    cases = {}
    for name, (damage, _) in DAMAGE.items():
        damage(Path(shutil.copytree(whole, folder / name)))
        cases[name] = ["ask", str(clip), "What?", "--model", str(folder / name), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(cases), capture_output=True, text=True, timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    found = {}
    for part in done.stderr.split("\n== ")[1:]:
        name, _, text = part.partition("\n")
        text, _, code = text.rpartition("\n-- ")
        # a bar that is drawn over itself is one line, and no message
        found[name] = ([line for line in text.splitlines() if line and "Loading weights" not in line], int(code))
    return found


@pytest.mark.bad_input
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_line(name, said):
    lines, code = said[name]
    assert code == 1, lines
    assert len(lines) == 1, lines
    assert "Error: " in lines[0]
    assert DAMAGE[name][1] in lines[0]
