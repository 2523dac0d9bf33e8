"""One of two processes that evaluate together: python two_processes.py RANK FOLDER (with a model and videos.json).

Writes what it got as result-RANK.pt: scores, features, targets, ids and unreadable files for each list of videos, and
the error that both have to raise when the model of one of them is broken.
"""

import json
import sys
from pathlib import Path

import torch
from torch import distributed

from kinescan.data.datasets import VideoDataset
from kinescan.data.listing import VideoItem
from kinescan.data.loader import LoaderConfig
from kinescan.data.sampling import Views
from kinescan.data.transforms import EvalTransform
from kinescan.errors import KinescanError
from kinescan.evaluation.multiview import evaluate_model
from kinescan.models.zoo import from_pretrained
from kinescan.preprocessing import Preprocessing


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=(folder / "meeting").resolve().as_uri(), rank=rank, world_size=2)
    model = from_pretrained(folder / "model")
    lists = json.loads((folder / "videos.json").read_text(encoding="utf-8"))
    results = []
    for videos in lists:
        dataset = make_dataset(videos)
        found = evaluate_model(model, dataset, loader=LoaderConfig(batch_size=2, num_workers=0), with_features=True)
        results.append(
            {
                "scores": found.scores,
                "features": found.features,
                "targets": found.targets,
                "ids": [item.video_id for item in found.items],
                "unreadable": [file.path for file in found.unreadable],
            }
        )
    if rank == 1:
        torch.nn.init.constant_(model.get_submodule("head").bias, float("nan"))
    try:
        evaluate_model(model, make_dataset(lists[0]))
        error = "none"
    except KinescanError as raised:
        error = f"{type(raised).__name__}: {raised}"
    torch.save({"results": results, "error": error}, folder / f"result-{rank}.pt")
    distributed.destroy_process_group()


def make_dataset(videos: list[tuple[str, int, str]]) -> VideoDataset:
    items = [VideoItem(Path(path), label, video_id) for path, label, video_id in videos]
    views = Views.parse("4x2x3")
    preprocessing = Preprocessing(size=16, num_frames=4)
    transform = EvalTransform(preprocessing, crops=views.crops)
    return VideoDataset(items, ("dark", "bright"), transform, preprocessing=preprocessing, mode="test", views=views)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
