"""Cuts small reference values out of the published implementations' outputs, for tests/layers.

Sources (commits in the file's metadata): state-spaces/mamba (a Mamba-1 block of width 32 on 8 steps) and whwu95/ATM
(the depthwise temporal convolution on the class token). Run: python tests/golden/make_layers.py ../shared/fixtures
"""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent


def main(fixtures: Path) -> None:
    provenance = json.loads((fixtures / "manifest.json").read_text())["provenance"]
    mamba = load_file(fixtures / "mamba_block.safetensors")
    cut = {k.removeprefix("mamba1_d32/"): v for k, v in mamba.items() if k.startswith("mamba1_d32/state_dict/")}
    for name in ("x", "y_f64", "dx_f64", "grad_out", "step_ssm_state_f32", "step_conv_state_f32", "step_y_f32"):
        cut[f"L8/{name}"] = mamba[f"mamba1_d32/L8/{name}"]
    save_file(
        {k: v.contiguous() for k, v in cut.items()},
        HERE / "mamba_block.safetensors",
        {"source": f"state-spaces/mamba {provenance['state-spaces/mamba']}"},
    )
    blocks = load_file(fixtures / "kinematic_blocks.safetensors")
    save_file(
        {k.removeprefix("tokent1d/"): v.contiguous() for k, v in blocks.items() if k.startswith("tokent1d/")},
        HERE / "class_token_conv.safetensors",
        {"source": f"whwu95/ATM {provenance['whwu95/ATM']}"},
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
