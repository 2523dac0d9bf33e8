import json
from pathlib import Path
from typing import Any

import pytest

from kinescan.errors import ConfigError
from kinescan.models.zoo import create_model
from kinescan.runs.profile import profile

SMALL = ["--set", "depth=2", "--size", "32", "--frames", "2", "--device", "cpu"]


def test_profile_counts_several_models_without_weights(kinescan: Any) -> None:
    models = ["pks4_vit_b16", "vit_b16", "videomamba_tiny"]
    result = kinescan("profile", *models, "--num-classes", "174", "--repeats", "0", "--json")
    assert result.exit_code == 0, result.stderr
    pks4, vit, mamba = json.loads(result.stdout)
    assert (pks4["num_parameters"], pks4["num_trained"], pks4["num_frozen"]) == (91_693_550, 91_693_550, 0)
    assert round(pks4["macs_as_published"] / 1e9, 2) == 145.19
    assert round(vit["macs_without_attention"] / 1e9, 2) == 134.79
    assert vit["flops_with_attention"] == 2 * vit["macs_with_attention"]
    assert mamba["macs_with_attention"] == mamba["macs_without_attention"] > 0
    for found in (pks4, vit, mamba):
        assert found["seconds_per_view"] is None
        for key in ("num_parameters", "macs_with_attention", "saved_activation_bytes"):
            assert sum(part[key] for part in found["parts"]) == found[key] > 0


def test_profile_times_models_side_by_side_and_part_by_part(kinescan: Any) -> None:
    result = kinescan("profile", "pks4_vit_ti16", "vit_ti16", *SMALL, "--repeats", "1", "--batch", "2")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["model", "pks4_vit_ti16", "vit_ti16"]
    rows = {line.split("  ")[0]: line.split()[-2:] for line in lines[1 : lines.index("")]}
    assert set(rows) > {"as published", "kept", "time a view", "views/s", "batch", "peak"}
    assert (rows["frames"], rows["pixels"], rows["batch"]) == (["2", "2"], ["32", "32"], ["2", "2"])
    parts = [line.split("  ")[0] for line in lines[lines.index("pks4_vit_ti16, part by part") + 2 :]]
    assert parts[: parts.index("")] == [
        *("stem", "class_token_routes", "kinematic.correlation", "kinematic.variation"),
        *("scanner", "blocks after", "head"),
    ]
    assert "1 MAC is 2 FLOPs" in result.stdout


def test_profile_gives_frames_to_models_that_are_built_for_them() -> None:
    found = profile("videomamba_tiny", num_frames=4, image_size=32, options={"depth": 1}, repeats=0)
    assert (found.cost.num_frames, found.cost.image_size) == (4, 32)


def test_profile_of_a_tuned_model_tells_what_is_frozen() -> None:
    found = profile("vpt_videomamba_tiny", num_frames=2, image_size=32, options={"depth": 1}, repeats=0).to_json()
    assert found["num_trained"] + found["num_frozen"] == found["num_parameters"]
    tuner = next(part for part in found["parts"] if part["name"] == "tuner")
    assert tuner["num_trained"] == tuner["num_parameters"] > 0


def test_profile_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"repeats.*0.*-1"):
        profile("vit_ti16", repeats=-1)
    create_model("vit_ti16", num_classes=2, depth=1).save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"model.*image_size, num_classes"):
        profile(tmp_path / "model", image_size=32, num_classes=3, repeats=0)
    with pytest.raises(ConfigError, match="model"):
        profile(tmp_path / "model", options={"depth": 2}, repeats=0)
    assert profile(tmp_path / "model", num_frames=2, repeats=0).cost.num_frames == 2
