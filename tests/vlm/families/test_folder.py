"""Damaged and hostile model folders: an error of ours before anything runs, and before the weights are read."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.mentions import mentions

from kinescan.errors import CheckpointError, ConfigError, DependencyError, KinescanError
from kinescan.vlm import load_vlm, open_stream

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
RAN = "ran"


@pytest.fixture
def folder(vlm, tokenizer, tmp_path):
    """A small random VLM as its folder on disk, one's own."""
    folder_path = tmp_path / "model"
    vlm("internvl").save_pretrained(folder_path)
    tokenizer().save_pretrained(folder_path)
    (folder_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    return folder_path


def change(path, **changes):
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


def in_text_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"].update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def sharded(folder, keep=True):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, held in parts.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    return sorted(parts)


def tensors_changed(folder, work):
    tensors = load_file(folder / "model.safetensors")
    work(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def empty_tokenizer(folder):
    # no letters, no words: every question is no tokens
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={}, merges=[]))
    transformers.PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(folder)


def pointer(name):
    return lambda folder: (folder / name).write_text(POINTER)


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lost_shard(folder):
    (folder / sharded(folder)[1]).unlink()


def cut_shard(folder):
    path = folder / sharded(folder)[1]
    path.write_bytes(path.read_bytes()[:-100])


def shard_elsewhere(folder):
    sharded(folder)
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weight_map, "../elsewhere.safetensors")}))


def index_of_other_files(folder):
    sharded(folder)
    index = folder / "model.safetensors.index.json"
    change(index, weight_map={**json.loads(index.read_text())["weight_map"], "more": "config.json"})


def lost_index(folder):
    sharded(folder)
    (folder / "model.safetensors.index.json").unlink()


def no_weight_map(folder):
    sharded(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')


def lost_tensors(folder):
    tensors_changed(folder, lambda held: [held.pop(name) for name in sorted(held) if "layers.1" in name])


def lost_head(folder):
    # which is the embedding, stored once
    tensors_changed(folder, lambda held: [held.pop(name) for name in list(held) if "embed_tokens" in name])


def other_shape(folder):
    tensors_changed(folder, lambda held: held.update({"lm_head.weight": torch.zeros(300, 64)}))


def without(name):
    def remove(folder):
        (folder / name).unlink()

    return remove


def written(name, text):
    return lambda folder: (folder / name).write_text(text)


def pipe(name):
    def make(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def no_tokenizer(folder):
    for path in folder.glob("token*"):
        path.unlink()


def larger_tokenizer(folder):
    in_text_config(folder, vocab_size=40)


def pickled_junk(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"junk" * 10_000)


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def adapter(folder):
    emptied(folder)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "nobody/nothing"}')


def linked_elsewhere(name):
    def work(folder):
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return work


DAMAGE = {
    "link of weights": (linked_elsewhere("model.safetensors"), CheckpointError, "outside of its folder"),
    "link of config": (linked_elsewhere("config.json"), CheckpointError, "outside of its folder"),
    "link of tokenizer": (linked_elsewhere("tokenizer.json"), CheckpointError, "outside of its folder"),
    "tokenizer pipe": (pipe("tokenizer.json"), CheckpointError, "tokenizer.json is a named pipe"),
    "template pipe": (pipe("chat_template.jinja"), CheckpointError, "a named pipe"),
    "many labels": (
        lambda folder: change(folder / "config.json", num_labels=10**8),
        CheckpointError,
        "num_labels = 100000000",
    ),
    "pointer weights": (pointer("model.safetensors"), CheckpointError, "git lfs pull"),
    "pointer tokenizer": (pointer("tokenizer.json"), CheckpointError, "git lfs pull"),
    "pointer config": (pointer("config.json"), CheckpointError, "git lfs pull"),
    "cut": (cut, CheckpointError, r"model\.safetensors is cut"),
    "lost shard": (lost_shard, CheckpointError, "1 of 2 files of weights are missing"),
    "cut shard": (cut_shard, CheckpointError, r"model-00002-of-00002\.safetensors is cut"),
    "shard elsewhere": (shard_elsewhere, CheckpointError, "outside of the folder"),
    "index of other files": (index_of_other_files, CheckpointError, "'config.json', which is not a file of weights"),
    "lost index": (lost_index, CheckpointError, r"2 files of weights .*index\.json is missing"),
    "no weight map": (no_weight_map, CheckpointError, "weight_map"),
    "no weights": (without("model.safetensors"), CheckpointError, "no weights"),
    "weights pipe": (pipe("model.safetensors"), CheckpointError, "a named pipe"),
    "config pipe": (pipe("config.json"), CheckpointError, "a named pipe"),
    "lost tensors": (lost_tensors, CheckpointError, r"lack .*layers\.1"),
    "lost head": (lost_head, CheckpointError, r"lack .*(lm_head|embed_tokens)"),
    "other shape": (other_shape, CheckpointError, "cannot be loaded as a video VLM"),
    "no config": (without("config.json"), CheckpointError, "no config.json"),
    "config text": (written("config.json", "hello"), CheckpointError, "not valid JSON"),
    "config list": (written("config.json", "[1]"), CheckpointError, "JSON object"),
    "config deep": (written("config.json", "[" * 5000 + "]" * 5000), CheckpointError, "nested too deep"),
    "config bytes": (
        lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{}"),
        CheckpointError,
        "not UTF-8",
    ),
    "no type": (written("config.json", "{}"), ConfigError, "None, which is not supported"),
    "other type": (lambda folder: change(folder / "config.json", model_type="llama"), ConfigError, "'llama'"),
    "list type": (lambda folder: change(folder / "config.json", model_type=["internvl"]), ConfigError, "internvl"),
    "text config": (lambda folder: change(folder / "config.json", text_config=3), CheckpointError, "cannot be loaded"),
    "many layers": (
        lambda folder: in_text_config(folder, num_hidden_layers=10**9),
        CheckpointError,
        "num_hidden_layers",
    ),
    "wide": (lambda folder: in_text_config(folder, intermediate_size=10**8), CheckpointError, "parameters"),
    "quantised": (
        lambda folder: change(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        (CheckpointError, DependencyError),
        "model",
    ),
    "quantised oddly": (
        lambda folder: change(folder / "config.json", quantization_config={"quant_method": "nothing"}),
        CheckpointError,
        "cannot be loaded",
    ),
    "no tokenizer": (no_tokenizer, CheckpointError, "no tokenizer"),
    "broken tokenizer": (written("tokenizer.json", '{"model": 3}'), CheckpointError, "cannot be loaded"),
    "broken tokenizer config": (written("tokenizer_config.json", "{"), CheckpointError, "tokenizer_config.json"),
    "empty tokenizer": (empty_tokenizer, CheckpointError, "tokenizer"),
    "larger tokenizer": (larger_tokenizer, CheckpointError, "tokenizer gives"),
    "broken preprocessor": (written("preprocessor_config.json", "{"), CheckpointError, "preprocessor_config.json"),
    "preprocessor list": (written("preprocessor_config.json", "[]"), CheckpointError, "JSON object"),
    "preprocessor mean": (
        written("preprocessor_config.json", '{"image_mean": "half"}'),
        CheckpointError,
        "preprocessor_config.json",
    ),
    "preprocessor two means": (
        written("video_preprocessor_config.json", '{"image_mean": [0.5, 0.5]}'),
        CheckpointError,
        "mean must be three",
    ),
    "preprocessor size": (
        written("processor_config.json", '{"video_processor": {"size": {"height": 1e9, "width": 3}}}'),
        CheckpointError,
        "processor_config.json",
    ),
    "pickled junk": (pickled_junk, CheckpointError, "cannot be loaded"),
    "empty": (emptied, CheckpointError, "the folder is empty"),
    "adapter": (adapter, (CheckpointError, DependencyError), "adapter"),
    "adapter of none": (
        lambda folder: (emptied(folder), (folder / "adapter_config.json").write_text("{}")),
        CheckpointError,
        "base_model_name_or_path",
    ),
    "gguf": (
        lambda folder: (emptied(folder), (folder / "model-q4.gguf").write_bytes(b"GGUF")),
        CheckpointError,
        "GGUF",
    ),
    "gguf beside the config": (
        lambda folder: (folder / "model.safetensors").rename(folder / "model-q4.gguf"),
        CheckpointError,
        "GGUF",
    ),
    "tokenizer empty": (written("tokenizer.json", ""), CheckpointError, "tokenizer.json"),
    "tokenizer cut": (written("tokenizer.json", '{"version": "1.0", "mod'), CheckpointError, "tokenizer.json"),
    "own code": (
        lambda folder: change(folder / "config.json", model_type="internvl_chat"),
        CheckpointError,
        "InternVL3-1B-hf",
    ),
    "unknown type with code": (
        lambda folder: change(folder / "config.json", model_type="mine", auto_map={"AutoModel": "own.Own"}),
        CheckpointError,
        "trust_remote_code",
    ),
    "bidirectional": (lambda folder: change(folder / "config.json", model_type="molmo2"), ConfigError, "directions"),
    "windows": (lambda folder: change(folder / "config.json", model_type="gemma3n"), ConfigError, "window"),
    "windows in a layer": (
        lambda folder: in_text_config(folder, layer_types=["full_attention", "sliding_attention", "full_attention"]),
        ConfigError,
        "sliding_attention",
    ),
    "distributed": (written(".metadata", "x"), CheckpointError, ".metadata"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_an_error_that_names_it(folder, damage):
    work, error, match = DAMAGE[damage]
    work(folder)
    with pytest.raises(error, match=match) as raised:
        load_vlm(folder)
    assert isinstance(raised.value, KinescanError)
    assert str(folder) in str(raised.value)


QUANTISED = {
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, ["bitsandbytes", "accelerate"]),
    "bitsandbytes of old": ({"load_in_8bit": True}, ["bitsandbytes", "accelerate"]),
    "gptq": ({"quant_method": "gptq", "bits": 4}, ["gptqmodel", "optimum"]),
    "awq": ({"quant_method": "awq", "bits": 4}, ["gptqmodel", "accelerate"]),
    "compressed-tensors": ({"quant_method": "compressed-tensors", "format": "int-quantized"}, ["compressed-tensors"]),
    "torchao": ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, ["torchao"]),
}


@pytest.mark.parametrize("method", QUANTISED)
def test_quantised_weights_name_the_package_that_they_need(folder, method, monkeypatch):
    from kinescan.vlm.families import door

    config, packages = QUANTISED[method]
    change(folder / "config.json", quantization_config=config)
    # before the weights are looked at, so that nothing is fetched in vain
    (folder / "model.safetensors").unlink()
    for lacking in packages:
        there = [name.replace("-", "_") for name in packages if name != lacking]
        monkeypatch.setattr(door.importlib.util, "find_spec", lambda name, there=there: name in there or None)
        with pytest.raises(DependencyError, match=lacking) as raised:
            load_vlm(folder)
        assert f"pip install {' '.join(packages)}" in str(raised.value)


@pytest.mark.bad_input
@pytest.mark.parametrize("config", ["int8", [8], {}, {"quant_method": None}, {"quant_method": ["gptq"]}])
def test_a_quantisation_that_says_nothing_is_an_error(folder, config):
    change(folder / "config.json", quantization_config=config)
    with pytest.raises(CheckpointError):
        load_vlm(folder)


def test_a_gguf_file_is_refused_by_name(folder):
    (folder / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="GGUF"):
        load_vlm(folder / "model.gguf")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_runs_beside_its_base_or_merged(folder, vlm, tmp_path):
    peft = pytest.importorskip("peft")
    import copy

    base = copy.deepcopy(vlm("internvl"))
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(base, lora).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    change(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(folder))
    frames = torch.arange(3 * 3 * 16 * 16).reshape(3, 3, 16, 16).remainder(256).byte()

    def logits(model):
        with open_stream(model) as stream:
            stream.push(frames)
            return stream.ask([5, 6, 7], max_new_tokens=1).logits

    expected = logits(adapted)
    for merge in (False, True):
        loaded = load_vlm(tmp_path / "adapter", merge_adapter=merge)
        torch.testing.assert_close(logits(loaded.model), expected, atol=1e-4, rtol=1e-4)
    assert (logits(load_vlm(folder).model) - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    "damage",
    [
        *("no tokenizer", "broken tokenizer", "larger tokenizer", "broken preprocessor", "other type", "wide"),
        *("gguf", "own code", "bidirectional", "windows", "windows in a layer"),
    ],
)
def test_what_is_cheap_is_found_before_the_weights_are_read(folder, damage, monkeypatch):
    import transformers

    def read(*args, **options):
        raise AssertionError("the weights were read")

    DAMAGE[damage][0](folder)
    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", read)
    with pytest.raises(KinescanError):
        load_vlm(folder)


SETTINGS = ["config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json",
            "video_preprocessor_config.json"]  # fmt: skip
LOAD_EACH = """
import sys
from kinescan.errors import CheckpointError
from kinescan.vlm import load_vlm

for folder in sys.argv[1:]:
    try:
        load_vlm(folder)
    except CheckpointError as error:
        print(error)
"""


def test_code_of_a_folder_never_runs(folder, tmp_path):
    """Also where standard input says yes."""
    mark = tmp_path / RAN
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\nclass Own: pass\n")
    kinds = ("AutoConfig", "AutoTokenizer", "AutoProcessor", "AutoModel", "AutoModelForImageTextToText",
             "AutoVideoProcessor", "AutoImageProcessor")  # fmt: skip
    auto_map = dict.fromkeys(kinds, "own.Own") | {"AutoTokenizer": ["own.Own", None]}
    folders = []
    for name in SETTINGS:
        folders.append(shutil.copytree(folder, tmp_path / name))
        change(folders[-1] / name, auto_map=auto_map)
    done = subprocess.run(
        [sys.executable, "-c", LOAD_EACH, *folders], input="y\n" * 99, capture_output=True, text=True, check=True
    )
    said = done.stdout.splitlines()
    assert len(said) == len(SETTINGS)
    for line, folder_path, name in zip(said, folders, SETTINGS, strict=True):
        assert line.startswith(
            f"{folder_path} cannot be loaded as a video VLM: {name} names code or files of its own (auto_map)"
        )
    assert not mark.exists()


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights_run_nothing(folder, tmp_path, zipped):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert load_vlm(folder).tokenizer is not None
    torch.save({**tensors, "x": Runs(str(tmp_path / RAN))}, folder / "pytorch_model.bin",
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    with pytest.raises(CheckpointError, match="loaded"):
        load_vlm(folder)
    assert not (tmp_path / RAN).exists()


def test_kernels_that_a_config_names_are_refused(folder):
    in_text_config(folder, _attn_implementation="somebody/kernel")
    with pytest.raises(CheckpointError, match="names code"):
        load_vlm(folder)


def test_extra_tensors_are_said(folder, caplog):
    tensors_changed(folder, lambda held: held.update({"of.another": torch.zeros(3)}))
    load_vlm(folder)
    assert mentions(caplog.text, "1", "of.another")


def test_shards_and_a_processor_of_transformers_5_are_read(folder):
    sharded(folder)
    (folder / "preprocessor_config.json").unlink()
    written("processor_config.json", json.dumps({"image_processor": {"image_mean": [0.1, 0.2, 0.3]}}))(folder)
    vlm = load_vlm(folder)
    assert vlm.pixels.mean == (0.1, 0.2, 0.3)
    with open_stream(vlm.model, vlm.tokenizer, pixels=vlm.pixels) as stream:
        stream.push(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
        assert isinstance(stream.ask("What?", max_new_tokens=2).text, str)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("/nowhere/model", "folder"),
        ("./nowhere", "folder"),
        ("nowhere", "folder"),
        ("a/b/c", "folder"),
        ("~/nowhere/model", "folder"),
        ("https://me:hunter2@hub/x/y", "folder"),
        ("nobody/nothing-of-that-name", "folder"),
        ("x" * 5000, "folder not found|name too long"),
        (__file__, "folder"),
    ],
)
def test_names_that_lead_nowhere(name, match):
    with pytest.raises(CheckpointError, match=f"(?i){match}") as raised:
        load_vlm(name)
    assert "Repo id" not in str(raised.value)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dtype": "float17"}, "dtype"),
        ({"dtype": torch.int8}, "dtype"),
        ({"device": "cuda:77"}, "device 'cuda:77'"),
        ({"device": "gpu"}, "device 'gpu'"),
    ],
)
def test_wrong_places_are_named_before_anything_is_read(options, match):
    with pytest.raises(ConfigError, match=match):
        load_vlm("/nowhere", **options)
