"""Copies the small cases of the reference values for temporal metrics, so that the tests have them everywhere.

Source: the published evaluators named under "provenance". Run: python tests/golden/make_temporal_metrics.py
"""

import json
from pathlib import Path

from safetensors.numpy import load_file, save_file

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[2] / "shared" / "fixtures"
KEPT = {
    "detection": (
        "envelope",
        "exact_thresholds",
        "duplicates",
        "ties_all_small",
        "no_ground_truth",
        "two_labels_one_segment",
    ),
    "segmentation": ("exact_overlap", "over_segmentation", "under_segmentation", "permuted_order", "missing_class"),
    "frames": ("twelve_frames", "ties_rounded", "three_videos"),
    "point": ("early_and_late", "duplicates", "class_without_starts", "frames_random"),
}


def main() -> None:
    cases = json.loads((SOURCE / "temporal_metrics.json").read_text(encoding="utf-8"))
    kept = {key: cases[key] for key in ("about", "provenance", "versions")}
    for kind, names in KEPT.items():
        kept[kind] = {name: cases[kind][name] for name in names}
    (HERE / "temporal_metrics.json").write_text(json.dumps(kept) + "\n", encoding="utf-8")
    arrays = load_file(SOURCE / "temporal_metrics.safetensors")
    names = {f"{kind}/{name}" for kind, own in KEPT.items() for name in own}
    save_file(
        {key: array for key, array in arrays.items() if key.rpartition("/")[0] in names},
        HERE / "temporal_metrics.safetensors",
    )


if __name__ == "__main__":
    main()
