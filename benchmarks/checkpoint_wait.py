"""How long training waits for a checkpoint of PKS4-L/14 with AdamW: written by a thread, and as it was before.

Run: python benchmarks/checkpoint_wait.py --folder DISK [--model pks4_vit_l14] [--quick]
Writes results/checkpoint_wait.json. Weights are zeros, and no step is taken: what is written has the size of a run's.

The three checkpoints of an evaluation: before it, the best, after it. Before: each is written whole, hashed and synced
while training waits. Now: training waits for a copy; a thread writes; what is the same is linked.
"""

import argparse
import shutil
import time
from pathlib import Path

import torch

from kinescan.models.zoo import create_model
from kinescan.training.checkpoint import TrainState, read_rng, write_checkpoint
from kinescan.training.checkpoint_writer import CheckpointWriter, HostCopy
from measure import RESULTS, write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder on the disk to measure")
    parser.add_argument("--model", default="pks4_vit_l14", help="a name of `kinescan list models`")
    parser.add_argument("--quick", action="store_true", help="a model of a few megabytes")
    given = parser.parse_args()
    name = "pks4_vit_ti16" if given.quick else given.model
    model = create_model(name, num_classes=174).requires_grad_(False)
    averages = {
        index: {k: torch.zeros_like(p) for k in ("exp_avg", "exp_avg_sq")} for index, p in enumerate(model.parameters())
    }
    state = TrainState(optimizer={"state": averages, "param_groups": []}, rng=[read_rng()])
    num_bytes = 3 * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())

    folder = given.folder / "before"
    begun = time.perf_counter()
    for target, own in (("last", state), ("best", None), ("last", state)):
        write_checkpoint(folder / target, model.files_to_save(), own)
    before = time.perf_counter() - begun
    print(f"before: {before:.1f} s", flush=True)
    shutil.rmtree(folder)

    writer, weights, rest = CheckpointWriter(), HostCopy(), HostCopy()
    times = {}
    for case in ("first", "second"):
        begun = time.perf_counter()
        files = model.files_to_save()
        files = type(files)(saved=files.saved, tensors=weights.take(files.tensors), card=files.card)
        copied = TrainState(**{**vars(state), "optimizer": rest.take(state.optimizer)})
        folder, known = given.folder / "now", {}

        def write(files=files, copied=copied, known=known, folder=folder) -> None:
            known |= write_checkpoint(folder / "last", files, copied)
            write_checkpoint(folder / "best", files, None, known=known)
            write_checkpoint(folder / "last", files, copied, known=known)

        writer.submit(write)
        waited = time.perf_counter() - begun
        writer.wait()
        if writer.problem is not None:
            raise writer.problem
        times[f"{case}_waited_seconds"] = round(waited, 3)
        times[f"{case}_on_disk_seconds"] = round(time.perf_counter() - begun, 3)
        print(times, flush=True)
    writer.close()
    shutil.rmtree(folder)
    results = {
        "state_bytes": num_bytes,
        "checkpoints": 3,
        "before_waited_seconds": round(before, 3),
        **times,
    }
    settings = {"model": name, "disk": "the machine's own", "before": "write_checkpoint three times, of this commit"}
    print(results)
    print(write_result("checkpoint_wait", seed=0, n=1, settings=settings, results=results, folder=RESULTS))


if __name__ == "__main__":
    main()
