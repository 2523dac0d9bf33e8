"""What a training step keeps for its backward pass, counted, not timed.

Plain, with activation checkpointing, with a frozen stem, and with both.

Run: python benchmarks/training_memory.py            (under a minute on one core; needs no memory for the models)
The count runs on tensors without memory; tests/evaluation/test_activations.py holds it to real steps.
"""

from contextlib import nullcontext

import torch

import measure
from kinescan.models.zoo import create_model
from kinescan.profiling.activations import activation_bytes
from kinescan.training.optim import trainable_only

MODELS = {"pks4_vit_b16": 8, "pks4_vit_l14": 8, "videomamba_middle": 8}
"""Model -> frames of a clip."""


def count(name: str, num_frames: int) -> dict[str, int]:
    """Bytes for one clip, by variant."""
    counts = {}
    for checkpointing in (False, True):
        with torch.device("meta"):
            model = create_model(name, num_classes=174, activation_checkpointing=checkpointing)
        stem = model.stem_parameters() if name.startswith("pks4") else ()
        for frozen in (False, True) if stem else (False,):
            with trainable_only(model, ("*",), stem=stem) if frozen else nullcontext():
                variant = " and ".join(
                    word for word, on in (("activation checkpointing", checkpointing), ("frozen stem", frozen)) if on
                )
                counts[f"{variant or 'plain'}_bytes"] = activation_bytes(model, num_clips=1, num_frames=num_frames)
    return counts


def main() -> None:
    results = {name: count(name, num_frames) for name, num_frames in MODELS.items()}
    path = measure.write_result(
        "training_memory", seed=0, n=1, settings={"num_clips": 1, "frames": MODELS, "dtype": "float32"}, results=results
    )
    for name, counts in results.items():
        print(name, {variant: round(number / 2**20) for variant, number in counts.items()})
    print(path)


if __name__ == "__main__":
    main()
