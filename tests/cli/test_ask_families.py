"""`ask` with each family, from a folder in the layout of published checkpoints, beside transformers' own generate."""

import json

import pytest
import torch
from tests.mentions import mentions
from typer.testing import CliRunner

pytest.importorskip("transformers")
from tests.vlm import published

from kinescan.cli.main import build_app
from kinescan.data.video import VideoReader, write_video
from kinescan.vlm import load_vlm, open_stream
from kinescan.vlm.families import FAMILIES
from kinescan.vlm.families.refused import OWN_CODE, REFUSED

QUESTION = "What moves?"
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Six seconds of coloured squares, twelve frames."""
    path = tmp_path_factory.mktemp("video") / "squares.mp4"
    squares = torch.randint(0, 256, (12, 3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_video(path, squares.repeat_interleave(8, 2).repeat_interleave(8, 3), fps=2)
    return path


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folder(request, tmp_path_factory):
    return published.save(request.param, tmp_path_factory.mktemp("vlm") / request.param)


def document(*arguments):
    result = CliRunner().invoke(build_app("ask"), ["ask", *map(str, arguments), "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def generated(folder, clip):
    """What transformers' generate says to the text and pixels that the family's processor makes."""
    vlm, name = load_vlm(folder), folder.name
    with VideoReader(clip) as reader:
        frames = reader.read(range(0, 12, 2)).pixels
    family = open_stream(vlm.model, vlm.tokenizer, pixels=vlm.pixels, horizon_frames=6, hf_compat=True).family
    inputs = published.tiny.plain_inputs(family, frames, [])
    token = published.tiny.IMAGE if published.tiny.IMAGE in inputs["input_ids"] else published.tiny.VIDEO
    patches = len(frames) // family.temporal_patch
    count = int((inputs["input_ids"] == token).sum()) // patches
    text = published.prompt(name, QUESTION, patches, vlm.tokenizer.decode([token]) * count)
    inputs["input_ids"] = torch.tensor([vlm.tokenizer.encode(text, add_special_tokens=False)])
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == token).int() * 2
    whole = vlm.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    said = whole[0, inputs["input_ids"].shape[1] :]
    assert len(said.unique()) > 1
    return vlm.tokenizer.decode(said, skip_special_tokens=True)


def test_a_new_user_asks_each_family(folder, clip, tmp_path):
    asked = [QUESTION, "--model", folder, "--max-new-tokens", NEW_TOKENS]
    state = tmp_path / "one.state"
    whole = document(clip, *asked, "--set", "hf_compat=true", "--save", state)
    answer = whole["asked"][0]["answer"]
    assert answer == generated(folder, clip)
    assert document(QUESTION, "--load", state, "--model", folder, "--max-new-tokens", NEW_TOKENS)["asked"][0][
        "answer"
    ] == answer  # fmt: skip

    limit = int(0.75 * whole["prefill"]["stats"]["num_tokens"])
    few = document(clip, *asked, "--memory", f"{limit} tokens", "--budget", 12, "--compare", "full")
    assert few["budget_reached"]
    assert few["prefill"]["stats"]["num_tokens"] <= limit
    assert few["full_prefill"]["stats"]["num_tokens"] == few["prefill"]["stats"]["num_seen_tokens"]
    assert few["asked"][0]["logit_difference"] > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["internvl", "qwen3_vl"])
def test_an_adapter_answers_as_generate_does(name, clip, tmp_path):
    peft = pytest.importorskip("peft")
    base = published.save(name, tmp_path / "base" / name)
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapter = tmp_path / name
    peft.get_peft_model(load_vlm(base).model, lora).save_pretrained(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base)
    (adapter / "adapter_config.json").write_text(json.dumps(config))

    def answer(model, *options):
        asked = [QUESTION, "--model", model, "--max-new-tokens", NEW_TOKENS, "--set", "hf_compat=true"]
        return document(clip, *asked, *options)["asked"][0]["answer"]

    assert answer(adapter) == answer(adapter, "--set", "merge_adapter=true") == generated(adapter, clip) != answer(base)


@pytest.mark.bad_input
@pytest.mark.parametrize("kind", sorted(REFUSED | OWN_CODE))
def test_a_refused_family_is_named_with_its_reason(kind, clip, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    result = CliRunner().invoke(build_app("ask"), ["ask", str(clip), QUESTION, "--model", str(tmp_path)])
    assert result.exit_code in (1, 2)
    assert mentions(result.stderr, f"type '{kind}'")
    assert mentions(result.stderr, REFUSED.get(kind) or OWN_CODE[kind])
    assert "Traceback" not in result.stderr
