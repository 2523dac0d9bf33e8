"""Cuts small reference values out of the published implementations' outputs, for tests/layers and tests/models.

Sources (commits in the files' metadata): OpenGVLab/VideoMamba (a two-direction mixer of width 32 on 8 steps, the
inflation of image kernels). Run: python tests/golden/make_videomamba.py ../shared/fixtures
"""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent


def main(fixtures: Path) -> None:
    provenance = json.loads((fixtures / "manifest.json").read_text())["provenance"]
    source = {"source": f"OpenGVLab/VideoMamba {provenance['OpenGVLab/VideoMamba']}"}
    blocks = load_file(fixtures / "mamba_block.safetensors")
    prefix = "bimamba_v2_d32/"
    names = [name for name in blocks if name.startswith(prefix + "state_dict/")]
    names += [f"{prefix}L8/{name}" for name in ("x", "y_f64", "dx_f64", "grad_out")]
    cut = {name.removeprefix(prefix): blocks[name].contiguous() for name in names}
    save_file(cut, HERE / "bimamba_block.safetensors", source)
    inflated = load_file(fixtures / "videomamba_inflate.safetensors")
    kernels = {
        name.removeprefix("inflate/"): tensor[:4].contiguous()
        for name, tensor in inflated.items()
        if name.endswith("patch_embed.proj.weight")
    }
    save_file(kernels, HERE / "videomamba_inflate.safetensors", source)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
