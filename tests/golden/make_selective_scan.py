"""Cuts small reference values out of the published implementation's outputs, for tests/ops/test_selective_scan.py.

Source (commit in the file's metadata): state-spaces/mamba, its reference scan in float64 and float32; B and C are
[batch, state, length] there and u, delta, z [batch, channels, length].
Run: python tests/golden/make_selective_scan.py ../shared/fixtures
"""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
CASES = ("case00", "case02", "case06")


def main(fixtures: Path) -> None:
    provenance = json.loads((fixtures / "manifest.json").read_text())["provenance"]
    values = load_file(fixtures / "selective_scan.safetensors")
    save_file(
        {name: tensor.contiguous() for name, tensor in values.items() if name.split("/")[0] in CASES},
        HERE / "selective_scan.safetensors",
        {"source": f"state-spaces/mamba {provenance['state-spaces/mamba']}"},
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
