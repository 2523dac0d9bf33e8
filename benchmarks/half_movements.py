"""Up against down: half-movements of drawn people that a model has not seen, by the study own_motion_cpu.

Run:  OMP_NUM_THREADS=1 python benchmarks/half_movements.py --from VIDEOS   (an hour; what is done is not done again)

The nine people of people.py lift their arms, bend, squat and jump, half a movement a clip of 0.3 to 1.2 seconds: up,
or down through the same poses, so that no single frame and no average over frames tells the two apart. The study trains
its rows on six people and tests them on three, in three folds, with three seeds.
Writes benchmarks/results/half_movements.json.
"""

import argparse
import csv
import math
import random
import statistics
from dataclasses import replace
from pathlib import Path

import av
import numpy as np

import measure
from kinescan.studies import load_study, run_study
from people import HEIGHT, PEOPLE, RATE, VIDEOS, WIDTH, Frame, Person, Pose, draw_person

NAME = "half_movements"
WORK = Path("runs/half_movements")
TEMPOS = {"jack": 0.9, "bend": 0.45, "wave2": 1.2, "pjump": 1.0, "wave1": 1.3, "squat": 0.5}
"""Whole movements a second."""
SEEDS = (0, 1, 2)
CLIPS_EACH = 2
"""Of each person, movement and direction."""


def _pose(movement: str, up: float, reach: float, face: int) -> Pose:
    """The pose at a height from 0 to 1."""
    pose, down = Pose(face if movement in ("bend", "squat") else 0), 1 - up
    if movement == "jack":
        pose.legs, pose.arms = [(4 + 24 * up * reach, 0)] * 2, [(10 + 150 * up, 0)] * 2
    elif movement == "bend":
        pose.bend = 95 * down * reach
        pose.arms, pose.legs = [(pose.bend * 0.9, 0)] * 2, [(-6 * down, 4 * down)] * 2
    elif movement == "squat":
        pose.bend = 15 * down
        pose.legs, pose.arms = [(70 * down * reach, 120 * down * reach)] * 2, [(80 * down, 5)] * 2
    elif movement == "pjump":
        pose.legs, pose.arms, pose.lift = [(8 * down, 16 * down)] * 2, [(8, 4)] * 2, 15 * up * reach
    elif movement == "wave1":
        pose.arms = [(90 + 60 * up * reach, 20), (6, 3)]
    else:
        pose.arms = [(82 + 76 * up * reach, 10)] * 2
    return pose


def frames_of(person: Person, movement: str, goes_up: bool, seed: int) -> list[Frame]:
    """The frames of half a movement, [H, W, 3] each."""
    draw, noise = random.Random(seed), np.random.default_rng(seed)
    tempo, reach = person.tempo * draw.uniform(0.9, 1.1), person.reach * draw.uniform(0.93, 1.07)
    left, face = draw.uniform(60, 120), draw.choice([1, -1])
    count = max(8, int(RATE * 0.5 / (TEMPOS[movement] * tempo)))
    frames = []
    for index in range(count):
        height = 0.5 - 0.5 * math.cos(math.pi * index / (count - 1))
        image = person.picture.copy()
        draw_person(image, person, left, _pose(movement, height if goes_up else 1 - height, reach, face))
        noisy = np.asarray(image).astype(np.int16) + noise.normal(0, 5, (HEIGHT, WIDTH, 3)).astype(np.int16)
        frames.append(noisy.clip(0, 255).astype(np.uint8))
    return frames


def draw_clips(folder: Path, videos: list[Path]) -> Path:
    """A clip a file, and a list with a column of the person; what is there stays."""
    listed = folder / "list.csv"
    if listed.is_file():
        return listed
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(PEOPLE):
        person = Person(number, videos)
        for index, movement in enumerate(TEMPOS):
            for clip in range(CLIPS_EACH):
                for goes_up in (True, False):
                    label = "up" if goes_up else "down"
                    path = f"clips/person{number}_{movement}_{clip}_{label}.mp4"
                    with av.open(str(folder / path), "w") as container:
                        stream = container.add_stream("libx264", rate=RATE, options={"crf": "20"})
                        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
                        for frame in frames_of(
                            person, movement, goes_up, 10000 * number + 100 * index + 10 * clip + goes_up
                        ):
                            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
                        container.mux(stream.encode())
                    rows.append([path, label, f"person{number}"])
    with listed.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "person"])
        writer.writerows(rows)
    return listed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="videos", type=Path, default=VIDEOS, help="Folder of videos for what is behind.")
    listed = draw_clips(WORK, sorted(parser.parse_args().videos.resolve().glob("*.mp4")))
    overrides = [f"data.train={listed}", "data.group=column person"]
    study = replace(load_study("own_motion_cpu"), seeds=SEEDS)
    found = run_study(study, output=WORK / "study", overrides=overrides, any_code=True)
    candidates = {}
    for row in found.study.rows:
        runs = [run for run in found.runs if run.row == row.name]
        scores = [run.scores["top1"] for run in runs]
        each = {str(seed): [run.scores["top1"] for run in runs if run.seed == seed] for seed in SEEDS}
        candidates[row.name] = {
            "top1": {
                "mean": statistics.mean(scores),
                "standard_deviation": statistics.stdev(scores),
                "runs": len(runs),
            },
            "each fold, by seed": each,
            "minutes_of_cpu_each": round(statistics.median(run.cpu_seconds for run in runs) / 60, 2),
        }
    settings = {
        "what": "share of clips of drawn people whose direction is named right, up or down (by chance 0.5); six people "
        "are trained on and three tested, in three folds; the last checkpoint of each run",
        "people": PEOPLE,
        "seeds": list(SEEDS),
        "clips": sum(1 for _ in listed.open(encoding="utf-8")) - 1,
        "movements": list(TEMPOS),
        "command": "kinescan study own_motion_cpu --set data.train=LIST --set 'data.group=column person'",
        "commits of the runs": sorted({run.code for run in found.runs}),
    }
    measure.write_result(
        NAME, seed=SEEDS[0], n=len(SEEDS), settings=settings, results={"unseen people": {"candidates": candidates}}
    )


if __name__ == "__main__":
    main()
