"""Events of drawn people, in three folds of people that a model has not seen: what the recipe events_cpu learns.

Run:  OMP_NUM_THREADS=1 python benchmarks/people.py --from VIDEOS     (an hour a seed; what is done is not done again)

Nine people are drawn, each with a build, colours, a tempo and a still picture behind, cut from one of the videos: ten
actions of 1.6 to 3.2 seconds one after the other in an order of its own, 25 frames a second, with noise. Every frame
has a label. `kinescan cross-validate` trains events_cpu on six people and tests it on three, in three folds: as it is,
and without PKS4's module, so that a frame is known by what changed since the one before and nothing else. Then each
fold's thresholds are chosen anew by `kinescan eval`, as the code of today chooses them, and its test videos are scored.
Writes benchmarks/results/people.json.
"""

import argparse
import contextlib
import csv
import itertools
import math
import random
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

import measure
from kinescan.runs.cross_validate import cross_validate
from kinescan.runs.evaluate import evaluate

NAME = "people"
WORK = Path("runs/people")
VIDEOS = measure.HERE.parent.parent / "shared" / "videos" / "clips"
WIDTH, HEIGHT, RATE, PEOPLE = 180, 144, 25, 9
SPEEDS = {"walk": 42, "run": 85, "side": 50, "skip": 60, "jump": 52}
"""Pixels a second of a person of 66 pixels; the other actions stay at their place."""
TEMPOS = {
    "walk": 1.0, "run": 1.6, "side": 1.4, "skip": 1.5, "jump": 1.4,
    "pjump": 1.5, "jack": 0.9, "bend": 0.0, "wave1": 1.3, "wave2": 1.2,
}  # fmt: skip
"""Repetitions a second of each action."""
ACTIONS = tuple(TEMPOS)
MODULE = ("scanner", "correlation", "variation")
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "PKS4": ("runs/cv", []),
    "without the module": ("runs/notime", [f"model.options.{part}=false" for part in MODULE]),
}
"""Where the folds of each go, and what is set."""
SCORES = (
    *("frame_map", "missed_ratio", "false_alarms_per_hour", "median_delay_seconds", "missed", "false"),
    *("tiou_map", "frames_right", "edit", "f1_at_50"),
    *("decoded_frame_map", "decoded_tiou_map", "decoded_frames_right", "decoded_edit", "decoded_f1_at_50"),
)

Pair = tuple[float, float]
Frame = npt.NDArray[np.uint8]


class Person:
    """How one of them looks and moves."""

    def __init__(self, number: int, videos: list[Path]) -> None:
        draw = random.Random(500 + number)
        self.size, self.fat = draw.uniform(58, 76), draw.uniform(0.85, 1.25)
        self.colours = [tuple(draw.randrange(15, 240) for _ in range(3)) for _ in range(2)]
        self.colours.append((draw.randrange(150, 235), draw.randrange(120, 190), draw.randrange(90, 160)))
        self.ground = HEIGHT - draw.uniform(8, 24)
        self.tempo, self.picture, self.reach = (
            draw.uniform(0.85, 1.2),
            _picture(number, videos),
            draw.uniform(0.85, 1.15),
        )


class Pose:
    """One moment: angles in degrees, of each leg (hip, knee) and arm (shoulder from below, elbow).

    `face` is where the person looks: -1 left, 1 right, 0 at the camera.
    """

    def __init__(self, face: int) -> None:
        self.legs: list[Pair] = [(4, 0), (-4, 0)]
        self.arms: list[Pair] = [(6, 4), (-6, 4)]
        self.bend = self.lift = 0.0
        self.face = face


def _picture(number: int, videos: list[Path]) -> Image.Image:
    """A quarter of the sixth frame of one of the videos."""
    with av.open(str(videos[number % len(videos)])) as container:
        frames = container.decode(video=0)
        image = next(frame for index, frame in enumerate(frames) if index == 5).to_image()
    draw = random.Random(number)
    width, height = image.size
    left, top = (int(draw.random() * side / 2) for side in (width, height))
    return image.crop((left, top, int(left + width / 2), int(top + height / 2))).resize((WIDTH, HEIGHT)).convert("RGB")


def _limb(draw: ImageDraw.ImageDraw, joints: list[Pair], width: int, colour: Any) -> None:
    for start, end in itertools.pairwise(joints):
        draw.line([start, end], fill=colour, width=width)
    for x, y in joints:
        draw.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=colour)


def draw_person(image: Image.Image, person: Person, x: float, pose: Pose) -> None:
    """The person into the picture, standing at x."""
    draw, size = ImageDraw.Draw(image, "RGBA"), person.size
    width, side_on = max(3, int(size * 0.085 * person.fat)), pose.face or 1
    front = pose.face == 0

    def down(angle: float, length: float) -> Pair:
        return math.sin(math.radians(angle)) * length, math.cos(math.radians(angle)) * length

    legs = []
    for hip, knee in pose.legs:
        (kx, ky), (dx, dy) = down(hip, 0.245 * size), down(hip - knee, 0.245 * size)
        legs.append(((kx, ky), (kx + dx, ky + dy)))
    hip_x, hip_y = x, person.ground - pose.lift - max(foot[1] for _, foot in legs)  # the lower foot stands
    lean = math.radians(pose.bend)
    neck_x = hip_x + math.sin(lean) * 0.32 * size * side_on
    neck_y = hip_y - math.cos(lean) * 0.32 * size
    apart = 0.06 * size if front else 0.0

    def arm(shoulder: float, elbow: float, side: int) -> list[Pair]:
        to = side_on * (side if front else 1)
        start = (neck_x + side * apart, neck_y + 0.03 * size)
        (ux, uy), (fx, fy) = down(shoulder, 0.18 * size), down(shoulder + elbow, 0.17 * size)
        middle = (neck_x + side * apart + ux * to, start[1] + uy)
        return [start, middle, (middle[0] + fx * to, middle[1] + fy)]

    _limb(draw, arm(*pose.arms[1], -1), max(2, width - 1), person.colours[0])
    for index, side in ((1, -1), (0, 1)):
        to, off = side_on * (side if front else 1), side * apart * 0.7
        (kx, ky), (fx, fy) = legs[index]
        joints = [(hip_x + off, hip_y), (hip_x + off + kx * to, hip_y + ky), (hip_x + off + fx * to, hip_y + fy)]
        _limb(draw, joints, width, person.colours[1])
    draw.line([(hip_x, hip_y), (neck_x, neck_y)], fill=person.colours[0], width=int(width * (2.1 if front else 1.7)))
    _limb(draw, arm(*pose.arms[0], 1), max(2, width - 1), person.colours[0])
    radius = 0.075 * size
    head_x, head_y = neck_x + math.sin(lean) * radius * 1.3 * side_on, neck_y - math.cos(lean) * radius * 1.3
    draw.ellipse([head_x - radius, head_y - radius, head_x + radius, head_y + radius], fill=person.colours[2])


def _pose(action: str, phase: float, done: float, reach: float, face: int) -> Pose:
    """The pose at a phase of the repetition, and after a fraction `done` of the action."""
    sine, cosine = math.sin(phase), math.cos(phase)
    pose = Pose(face if action in ("walk", "run", "skip", "jump", "bend") else 0)
    if action in ("walk", "run"):
        runs = action == "run"
        swing, knee = (42 if runs else 26) * reach, 70 if runs else 22
        pose.legs = [(swing * sine, knee * max(0, cosine) + 4), (-swing * sine, knee * max(0, -cosine) + 4)]
        pose.arms = [(-swing * 0.9 * sine, 75 if runs else 10), (swing * 0.9 * sine, 75 if runs else 10)]
        pose.bend, pose.lift = (12, 4 * abs(cosine) * reach) if runs else (3, 0)
    elif action == "skip":
        up = max(0, sine)
        pose.legs, pose.arms = [(55 * up * reach, 80 * up), (-12 * up, 5)], [(-35 * sine, 20), (35 * sine, 20)]
        pose.lift = 9 * up * reach
    elif action in ("jump", "pjump"):
        up = abs(math.sin(phase / 2))
        low = 1 - up
        forward = action == "jump"
        pose.legs = [(35 * low, 60 * low) if forward else (8 * low, 16 * low)] * 2
        pose.arms = [(40 * up, 10) if forward else (8, 4)] * 2
        pose.lift, pose.bend = (14 if forward else 15) * up * reach, 12 * low if forward else 0
    elif action == "side":
        swing = 20 * abs(sine) * reach + 3
        pose.legs, pose.arms, pose.lift = [(swing, 0)] * 2, [(8, 0)] * 2, 3 * abs(cosine)
    elif action == "jack":
        open_ = 0.5 - 0.5 * cosine
        pose.legs, pose.arms = [(4 + 24 * open_ * reach, 0)] * 2, [(10 + 150 * open_, 0)] * 2
        pose.lift = 6 * abs(sine)
    elif action == "bend":
        part = math.sin(math.pi * min(1, done))
        pose.bend = 95 * part * reach
        pose.arms, pose.legs = [(pose.bend * 0.9, 0)] * 2, [(-6 * part, 4 * part)] * 2
    elif action == "wave1":
        pose.arms = [(135 + 12 * sine, 30 + 32 * sine * reach), (6, 3)]
    else:
        pose.arms = [(120 + 38 * sine * reach, 10)] * 2
    return pose


def frames_of(person: Person, action: str, seed: int) -> list[Frame]:
    """The frames of one action, [H, W, 3] each."""
    draw, noise = random.Random(seed), np.random.default_rng(seed)
    face, start = draw.choice([1, -1]), draw.uniform(0, 6.28)
    tempo, reach = person.tempo * draw.uniform(0.93, 1.07), person.reach * draw.uniform(0.93, 1.07)
    speed = SPEEDS.get(action, 0) * tempo * person.size / 66
    count = int(RATE * (min(3.0, (WIDTH + 16) / speed) if speed else draw.uniform(1.6, 3.2)))
    left = (-8 if face > 0 else WIDTH + 8) if speed else draw.uniform(60, 120)
    frames = []
    for index in range(count):
        seconds = index / RATE
        phase = start + 2 * math.pi * TEMPOS[action] * tempo * seconds
        image = person.picture.copy()
        draw_person(image, person, left + face * speed * seconds, _pose(action, phase, index / count, reach, face))
        noisy = np.asarray(image).astype(np.int16) + noise.normal(0, 5, (HEIGHT, WIDTH, 3)).astype(np.int16)
        frames.append(noisy.clip(0, 255).astype(np.uint8))
    return frames


def draw_people(folder: Path, videos: list[Path]) -> None:
    """streams/personN.mp4, and labels.csv with a column of the person; what is there stays."""
    if (folder / "labels.csv").is_file():
        return
    (folder / "streams").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(PEOPLE):
        person = Person(number, videos)
        clips = {action: frames_of(person, action, 100 * number + index) for index, action in enumerate(ACTIONS)}
        order = list(ACTIONS)
        random.Random(number).shuffle(order)
        path, count = f"streams/person{number}.mp4", 0
        with av.open(str(folder / path), "w") as container:
            stream = container.add_stream("libx264", rate=RATE, options={"crf": "20"})
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for action in order:
                rows.append([path, count / RATE, (count + len(clips[action])) / RATE, action, f"person{number}"])
                count += len(clips[action])
                for frame in clips[action]:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
            container.mux(stream.encode())
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "start", "end", "label", "person"])
        writer.writerows([path, f"{start:.2f}", f"{end:.2f}", *rest] for path, start, end, *rest in rows)


def folds_of(name: str, seeds: list[int]) -> dict[str, Any]:
    """Scores of each fold and seed of one variant, on people that it has not seen."""
    folds = [fold for seed in seeds for fold in _folds_of_seed(name, seed)]
    print(name, folds, flush=True)
    return {key: spread([fold[key] for fold in folds]) for key in SCORES} | {"each fold": folds}


def _folds_of_seed(name: str, seed: int) -> list[dict[str, Any]]:
    output, settings = VARIANTS[name]
    output += f"-{seed}" if seed else ""
    shared = ["data.train=labels.csv", "data.validation_ratio=0.2", "data.group=column person", f"seed={seed}"]
    there = (Path(output) / "cross_validation.json").is_file()
    found = cross_validate("events_cpu", folds=3, overrides=[*shared, *settings], output=output, resume=there)
    return [{"seed": seed, "people": list(fold.groups), **scores_of(fold.output)} for fold in found.folds]


def scores_of(run: Path) -> dict[str, Any]:
    """Of the videos that a run held out, at thresholds chosen on its validation videos."""
    report = evaluate(run, device="cpu", overrides=["thresholds=choose"]).to_json()
    alarms = report["alarms"]
    return {
        "missed_ratio": alarms["missed_ratio"],
        "false_alarms_per_hour": alarms["false_alarms_per_hour"],
        "median_delay_seconds": alarms["delay_seconds"]["median"],
        "missed": alarms["num_missed"],
        "false": alarms["num_false"],
        **timeless(report),
        **{f"decoded_{name}": value for name, value in timeless(report["decoded"]).items()},
    }


def timeless(scores: dict[str, Any]) -> dict[str, float]:
    """The numbers that need no moment of an alarm."""
    segmentation = scores["segmentation"]
    return {
        "frame_map": scores["frames"]["map"],
        "tiou_map": scores["detection"]["0.3:0.1:0.7"]["average_map"],
        "frames_right": segmentation["accuracy"] / 100,
        "edit": segmentation["edit"] / 100,
        "f1_at_50": segmentation["f1"]["50"] / 100,
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"mean": mean(values), "standard_deviation": stdev(values), "runs": len(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="videos", type=Path, default=VIDEOS, help="Folder of videos for what is behind.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="Of the trainings, three folds each.")
    arguments = parser.parse_args()
    videos = sorted(arguments.videos.resolve().glob("*.mp4"))
    draw_people(WORK, videos)
    with contextlib.chdir(WORK):
        candidates = {name: folds_of(name, arguments.seeds) for name in VARIANTS}
    settings = {
        "what": "per-frame mAP (by chance 0.10), missed events, false alarms and delay of events_cpu on drawn people "
        "that it has not seen, ten actions one after the other; thresholds are chosen on one of the people trained on. "
        "tiou_map is over 0.3:0.1:0.7, edit and F1 are fractions; decoded: each frame decided with those before and "
        "after it",
        "people": PEOPLE,
        "seeds": arguments.seeds,
        "actions": list(ACTIONS),
        "command": "kinescan cross-validate events_cpu --folds 3 --set 'data.group=column person'",
    }
    measure.write_result(
        NAME,
        seed=arguments.seeds[0],
        n=PEOPLE,
        settings=settings,
        results={"unseen people": {"candidates": candidates}},
    )


if __name__ == "__main__":
    main()
