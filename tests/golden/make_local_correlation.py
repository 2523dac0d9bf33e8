"""Makes local_correlation.safetensors: a cut of correlation maps computed in float64 by a published implementation.

Source: whwu95/ATM, commit 98ba3aa2ac258cc1b91beefe9317136657ae3d8d, as stored in ../shared/fixtures (its README says
how). Kept are one clip of the 3x3 case with gradients, and every 7th value of a 9x9 case.
Run: python tests/golden/make_local_correlation.py FOLDER_OF_THE_FIXTURES
"""

import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

THINNING = 7


def main(folder: Path) -> None:
    values = load_file(folder / "local_correlation.safetensors")
    cut = {
        f"window3/{name}": values[f"g5_win3/{name}"][:1].contiguous()
        for name in ("F", "grad_out", "corr_f64", "grad_F_f64")
    }
    cut["window9/F"] = values["g1/F"]
    cut["window9/every_7th_corr_f64"] = values["g1/corr_f64"].flatten()[::THINNING].contiguous()
    save_file(cut, Path(__file__).with_name("local_correlation.safetensors"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
