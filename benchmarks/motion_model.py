"""The motion model that comes with kinescan: trains it, scores it on textures it has not seen, writes its card.

    OMP_NUM_THREADS=1 python benchmarks/motion_model.py train --textures PICTURES
    OMP_NUM_THREADS=1 python benchmarks/motion_model.py score [--videos VIDEOS]
    python benchmarks/motion_model.py card

1. A ViT learns from single pictures (kinescan demo --stills, its recipe with 3 blocks at 48 pixels).
2. Behind PKS4's module, a linear layer learns how far what each patch shows has moved (dense targets, known since the
   clips are drawn). Without this step, 160 steps of classification had taught nothing.
3. Behind the module, which stays as it is, the model learns the motions' names by the recipe motion_model; at the same
   time it learns how far the whole picture travels, grows and turns. With the names alone growing and shrinking had
   been right in 7 and 13 % of the windows over photographs.

All clips are drawn as they are asked for (kinescan.data.synthetic.motion_clips); no video is read. PICTURES: photos
for a quarter of the textures, whose licence allows it; the card names those that were taken. `--start` names a model
whose weights step 3 begins with; steps 1 and 2 are then left out.
`score` writes benchmarks/results/motion_model.json, without the windows over real videos where none are given;
`card` writes the card in src/kinescan/shipped/motion, which quotes it.
"""

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import measure
from kinescan.config import RunConfig, load_recipe
from kinescan.data.synthetic import MotionConfig, WindowConfig, make_motion, make_windows
from kinescan.data.synthetic.motion_clips import MIRRORED, MOTION_NAMES, REVERSED, MotionClips, MotionClipsConfig
from kinescan.data.video import VideoReader
from kinescan.inference.predictor import predict
from kinescan.models.pks4 import PKS4
from kinescan.models.pks4_state import PKS4State
from kinescan.models.saving.shipped import MOTION, SHIPPED
from kinescan.models.symmetry import Symmetry
from kinescan.models.zoo import create_model, from_pretrained
from kinescan.runs.stills import train_on_stills
from kinescan.runtime.quantities import percent
from kinescan.settings import to_plain
from kinescan.training.callbacks import Callback, Step
from kinescan.training.loop import fit

WORK = Path("runs/motion_model")
STILLS = ("model.options.depth=3", "preprocessing.size=48", "optim.epochs=12")
FIELD_BATCHES, NAME_BATCHES = 600, 1600
FIELD_RATE, FIELD_SCALE = 4e-3, 3.0
"""Displacements are multiplied by the scale: most are a fraction of a patch."""
FOUND = 0.5
"""Of the scaled displacement: a clip's field counts as found when it is off by less on average."""
NUM_MOTION_TARGETS = 4
SYMMETRIES = (
    Symmetry(classes=MIRRORED, mirrored=True),
    Symmetry(classes=REVERSED, reversed=True),
    Symmetry(classes=tuple(MIRRORED[kind] for kind in REVERSED), mirrored=True, reversed=True),
)
NUM_CLIPS = 4
"""Of a video, whose scores are averaged: they are short, and four of them look at most of a short video."""
SHOWN = (*MOTION_NAMES, "growing", "growing", "clockwise")
"""What is hard to learn comes more often; every motion comes with its reversal."""


class MotionFields(PKS4):
    """PKS4 up to its module, and a linear layer: how far what each patch shows has moved, [B, T, N, 2]."""

    def forward(self, clip: Tensor) -> Tensor:
        tokens = self.vit.embed(clip.flatten(0, 1)).unflatten(0, clip.shape[:2])
        tokens, _ = self._run_blocks(range(self.config.insert_after), tokens, {}, keep_state=False)
        patches = tokens[:, :, self.config.num_prefix_tokens :]
        moved, _, _ = self._run_module(patches, PKS4State(), keep_state=False)
        fields: Tensor = self.head(moved - patches)
        return fields


def field_task(outputs: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
    """Of the first two frames, too little came before."""
    wanted, given = FIELD_SCALE * fields[:, 2:], outputs[:, 2:]
    errors = (given - wanted).detach().abs().mean(dim=(1, 2, 3))
    return F.smooth_l1_loss(given, wanted), errors < FOUND


class NamedClips(MotionClips):
    """Motion clips whose labels are a motion's index and what `mean_motion` gives, [B, 1 + NUM_MOTION_TARGETS]."""

    def targets(self, labels: Tensor, fields: Tensor) -> Tensor:
        return torch.cat([labels[:, None].float(), mean_motion(fields)], dim=1)


def mean_motion(fields: Tensor) -> Tensor:
    """Mean shift in x and y, growth and turn of fields [B, T, N, 2], scaled to about the same size: [B, 4]."""
    side = round(fields.shape[2] ** 0.5)
    means = fields[:, 2:].mean(1)
    axis = torch.arange(side) - (side - 1) / 2
    positions = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).reshape(-1, 2)
    size = positions.square().sum()
    growth = (means * positions).sum((1, 2)) / size
    turn = (means[..., 1] * positions[:, 0] - means[..., 0] * positions[:, 1]).sum(1) / size
    return torch.stack([3 * means[..., 0].mean(1), 3 * means[..., 1].mean(1), 8 * growth, 8 * turn], dim=1)


def name_task(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the names and the error of the mean motion, whose rows of the head come last."""
    scores, motion = outputs[:, :-NUM_MOTION_TARGETS], outputs[:, -NUM_MOTION_TARGETS:]
    labels = targets[:, 0].long()
    loss = F.cross_entropy(scores, labels, label_smoothing=0.05) + F.smooth_l1_loss(motion, targets[:, 1:])
    return loss, scores.argmax(1) == labels


class Progress(Callback):
    def __init__(self, every: int = 20) -> None:
        self.every, self.steps = every, []  # type: ignore[var-annotated]

    def on_step(self, step: Step) -> None:
        self.steps.append((step.loss, step.accuracy))
        if step.step % self.every == 0:
            loss, right = (sum(column) / self.every for column in zip(*self.steps[-self.every :], strict=True))
            print(f"{step.step}: loss {loss:.3f}, right {right:.3f}, {time.process_time():.0f} s", flush=True)


def read_textures(folder: str | None) -> tuple[list[str], list[Tensor]]:
    if folder is None:
        return [], []
    files = sorted(path for path in Path(folder).iterdir() if path.suffix in (".png", ".jpg"))
    pixels = []
    for file in files:
        with VideoReader(file) as picture:
            pixels.append(picture.read([0]).pixels[0])
    return [file.name for file in files], pixels


def train(textures: str | None, weights: str | None, start: str | None, batches: tuple[int, int]) -> None:
    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    names, given = read_textures(textures)
    config = load_recipe("motion_model", [])
    # what a model that is given has behind it
    trainings = [] if start is None else list(how_made()["trainings"])
    if start is None:
        weights = weights or str(train_on_stills(load_recipe("demo_stills", STILLS), WORK / "stills"))
        start = learn_fields(config, weights, given, batches[0])
        trainings.append(f"displacements of patches: {batches[0]} batches")
    model = learn_names(config, start, given, batches[1])
    trainings.append(f"{len(MOTION_NAMES)} names and the mean motion: {batches[1]} batches")
    model.num_clips, model.symmetries = NUM_CLIPS, SYMMETRIES
    model.save_pretrained(WORK / "saved")
    made = {
        "textures": names,
        "trainings": trainings,
        "clips in a batch": config.loader.batch_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    (WORK / "made.json").write_text(json.dumps(made, indent=1))


def learn_fields(config: RunConfig, weights: str, given: Sequence[Tensor], batches: int) -> str:
    torch.manual_seed(config.seed)
    start = create_model(
        config.model.name, num_classes=2, weights=weights, preprocessing=config.preprocessing, **config.model.options
    )
    model = MotionFields(start.config, name=start.name, preprocessing=start.preprocessing)
    model.load_state_dict(start.state_dict())
    clips = MotionClips(
        config.preprocessing,
        num_batches=batches,
        batch_size=config.loader.batch_size,
        grid=model.vit.grid[0],
        given=given,
        seed=config.seed,
    )
    optim = replace(config.optim, lr=FIELD_RATE, lr_scales={})
    frozen = replace(config.train, frozen=("vit.*",))
    output = fresh(WORK / "fields")
    fit(model, clips, output=output, train=frozen, optim=optim, task=field_task, callbacks=[Progress()])
    return str(output / "checkpoints" / "last")


def learn_names(config: RunConfig, start: str, given: Sequence[Tensor], batches: int) -> Any:
    torch.manual_seed(config.seed)
    num_outputs = len(MOTION_NAMES) + NUM_MOTION_TARGETS
    model = create_model(
        config.model.name, num_classes=num_outputs, preprocessing=config.preprocessing, **config.model.options
    )
    learned = from_pretrained(start).state_dict()
    # but for the head, and the routes of a class token that nothing is read from
    kept = {name: learned[name] for name, own in model.state_dict().items() if learned[name].shape == own.shape}
    model.load_state_dict(kept, strict=False)
    clips = NamedClips(
        config.preprocessing,
        num_batches=batches,
        batch_size=config.loader.batch_size,
        config=MotionClipsConfig(shown=SHOWN),
        grid=model.vit.grid[0],
        given=given,
        seed=config.seed + 1,
    )
    clips.num_classes = num_outputs
    fit(
        model,
        clips,
        output=fresh(WORK / "names"),
        train=replace(config.train, frozen=("kinematic.*", "scanner.*")),
        optim=config.optim,
        task=name_task,
        seed=config.seed,
        settings=to_plain(config),
        callbacks=[Progress()],
    )
    return with_names_only(model)


def with_names_only(model: Any) -> Any:
    """The model without the rows of its head that stand for the mean motion."""
    config = replace(model.config, num_classes=len(MOTION_NAMES))
    named = PKS4(config, name=model.name, labels=list(MOTION_NAMES), preprocessing=model.preprocessing)
    state = dict(model.state_dict())
    state |= {name: state[name][: len(MOTION_NAMES)] for name in ("head.weight", "head.bias")}
    named.load_state_dict(state)
    return named.eval()


HALF_THE_WAY: dict[str, Any] = {"kind": "windows", "travel": 0.5, "speed_ratio": 2.0}
SETS: dict[str, dict[str, Any]] = {
    "windows over photographs": {"kind": "photographs"},
    "windows over real videos, held still, half the way": {**HALF_THE_WAY, "clip_speed": 0.0},
    "windows over real videos, playing, half the way": {**HALF_THE_WAY, "clip_speed": 1.0},
    "drawn objects": {"kind": "objects"},
}
PAIRS = ("horizontal", "vertical", "turning", "scaling", "falling", "rising")
PER_CLASS, STILLS_SCORED = 15, 30
BEFORE = ("right", "left", "down", "up", "clockwise", "counterclockwise")
"""The motions that the model before this one knew."""


def score(videos: str | None, model_folder: Path, only: int | None) -> None:
    """Clips are files, read as `kinescan predict` reads them, but one view in the middle instead of the model's.

    Sets that were scored before, with the same weights, are not scored again; so they can be scored side by side.
    """
    torch.set_num_threads(1)
    model = from_pretrained(model_folder)
    model.num_clips = 1
    weights = hashlib.sha256((model_folder / "model.safetensors").read_bytes()).hexdigest()
    results: dict[str, Any] = {}
    for number, (name, settings) in enumerate(SETS.items()):
        if only not in (None, number):
            continue
        if settings["kind"] == "windows" and videos is None:
            print(f"{name}: left out, there is no --videos", flush=True)
            continue
        folder, before = WORK / "scored" / str(number), WORK / "scores" / f"{number}_{weights}.json"
        if not (folder / "meta.json").exists():
            make(folder, videos, settings)
        if not before.exists():
            files = sorted((folder / "test").glob("*/*.mp4"))
            scores = scores_of(model, [file for file in files if file.parent.name in model.class_names])
            before.parent.mkdir(parents=True, exist_ok=True)
            before.write_text(json.dumps(scores))
        results[name] = json.loads(before.read_text())
        print(name, results[name], flush=True)
    if only is not None:
        return
    results["still: one frame of the windows, with noise"] = {"n": STILLS_SCORED, "right": score_still(model)}
    names = sorted(path.name for path in Path(videos).iterdir() if path.is_file()) if videos is not None else []
    settings = {"made": how_made(), "videos": names}
    measure.write_result("motion_model", seed=0, n=PER_CLASS, settings=settings, results=results)


def how_made() -> Any:
    """As `train` wrote it here; where nothing was trained here, as it stands beside the committed scores."""
    own = WORK / "made.json"
    if own.exists():
        return json.loads(own.read_text())
    return json.loads((measure.PUBLISHED / "motion_model.json").read_text(encoding="utf-8"))["settings"]["made"]


def make(folder: Path, videos: str | None, settings: dict[str, Any]) -> None:
    own = {key: value for key, value in settings.items() if key != "kind"}
    sizes: dict[str, Any] = {"train_per_class": 0, "test_per_class": PER_CLASS, "frame_size": 96, "pairs": PAIRS}
    if settings["kind"] != "objects":
        source = videos if settings["kind"] == "windows" and videos is not None else str(SHIPPED / "textures")
        make_windows(folder, WindowConfig(source=source, overwrite=True, **sizes, **own))
    else:
        make_motion(folder, MotionConfig(overwrite=True, **sizes, **own))


def scores_of(model: Any, files: list[Path]) -> dict[str, Any]:
    """Fractions: right, of all and of each class; of mirrored and reversed clips, answered as their originals are."""
    names = [file.parent.name for file in files]
    plain = [answer.labels[0] for answer in predict(model, files, top=1, videos_per_batch=16)]
    frames = []
    for file in files:
        with VideoReader(file) as video:
            frames.append(video.read(range(video.num_frames)).pixels)
    fps = 12.0
    flipped = [
        answer.labels[0]
        for answer in predict(model, [clip.flip(3) for clip in frames], top=1, videos_per_batch=16, fps=fps)
    ]
    turned = [
        answer.labels[0]
        for answer in predict(model, [clip.flip(0) for clip in frames], top=1, videos_per_batch=16, fps=fps)
    ]
    by_class = {
        name: mean([own == name for own, true in zip(plain, names, strict=True) if true == name])
        for name in sorted(set(names))
    }
    return {
        "n": len(files),
        "right": mean([own == true for own, true in zip(plain, names, strict=True)]),
        "classes": by_class,
        "mirrored clips get the mirrored answer": agreement(plain, flipped, MIRRORED),
        "reversed clips get the reversed answer": agreement(plain, turned, REVERSED),
    }


def agreement(plain: list[str], changed: list[str], mates: tuple[int, ...]) -> float:
    mate = {name: MOTION_NAMES[mates[index]] for index, name in enumerate(MOTION_NAMES)}
    return mean([mate[one] == other for one, other in zip(plain, changed, strict=True)])


def mean(values: Sequence[bool]) -> float:
    return round(sum(values) / max(1, len(values)), 4)


def score_still(model: Any) -> float:
    """One frame of a window over a video, repeated, with noise on every frame."""
    files = sorted((WORK / "scored" / "0" / "test").glob("*/*.mp4"))[:: max(1, 8 * PER_CLASS // STILLS_SCORED)]
    generator = torch.Generator().manual_seed(0)
    clips = []
    for file in files[:STILLS_SCORED]:
        with VideoReader(file) as video:
            frame = video.read([0]).pixels.float()
        noise = 3 * torch.randn(24, *frame.shape[1:], generator=generator)
        clips.append((frame + noise).round().clamp(0, 255).to(torch.uint8))
    return mean([answer.labels[0] == "still" for answer in predict(model, clips, top=1, videos_per_batch=16, fps=12.0)])


TEXT = """
## What it names
How a picture, or what is large in it, moves on the screen during 1.2 seconds: {names}. At "right" what is seen
moves to the right, at "growing" it comes nearer. Ways between an axis and a diagonal of the frame get one of the two
names. It knows no actions, no things and no persons, and of several motions at once it names one. A small thing that
turns about itself, slow motions (less than about a fiftieth of the frame from one sixth of a second to the next) and
plain pictures are beyond it. Of a whole video, the average over {clips} such clips is named, evenly spread over it, by
`kinescan predict`, `ks.predict`, the page and the service alike. `kinescan stream` names the motion as it goes.

Each clip is asked four times: as it is, mirrored, backwards, and both; an answer counts for the class that the clip
itself then shows (`symmetries` in config.json), and the four are averaged. So mirrored frames get exactly the mirrored
answer, and the same frames in the opposite order the reversed one. A stream is asked once: its end is not known.

## How often it is right
On whole real videos, in which no single motion fills the picture, it is not reliable: of 14 videos of people's
actions, ten seconds of each, tried by hand, the highest score was 13 to 41 %; the mirrored file got the mirrored
answer in 11, and the file that was played backwards, of which other frames are sampled, the reversed answer in 8. The
numbers below are for clips with one motion that is known.

On single held-out clips (benchmarks/results/motion_model.json): no pixel of them was trained on. A class and its
reversal are the same frames in opposite orders, so that what averages over frames is right in half of the cases within
a pair; chance is {chance}. Likewise: the mirror image, or the clip backwards, got the answer that goes with that of the
clip itself.

{table}

By class:

{classes}

The model before this one told six of these motions and what is still apart: no diagonals, nothing that grows or
shrinks. On the same clips of those six it was right in 98.9, 88.9, 44.4 and 83.3 % (the sets in the order of the
table), this one in {before}: what was told from one other axis is now told from two diagonals, too.

## How it was made
Nothing was filmed, and no video was read: clips of 8 frames were drawn as they were asked for
(`kinescan.data.synthetic.motion_clips`), windows that move over textures and objects in front of them; half of each
batch is the other half backwards. Three quarters of the textures draw themselves ("dead leaves", clouds); a quarter
are cut from photographs in the public domain or under CC0, as scikit-image ships them: {textures}.
First, a ViT learned from single pictures that draw themselves (`kinescan demo --stills`). Then a linear layer behind
PKS4's module learned how far what each patch shows has moved. Then the model behind its first block learned the
names. The trainings, in batches of {batch} clips:

{steps}

One training, one seed; `benchmarks/motion_model.py` is all of it, with the recipe `motion_model`.

The photographs in `shipped/textures` (camera: Lav Varshney; chelsea: Stefan van der Walt; coffee: Rachel Michetti;
gravel: CC0Textures; all CC0) were not trained on: `kinescan demo` moves its windows over them.
"""


PAGE = """# The model that comes with kinescan
`kinescan predict`, `stream`, `web` and `serve` take it where no `--model` is given and no run lies under ./runs, and
say so; `--model motion` names it, and in Python `"motion"`. It lies in the package, `kinescan/shipped/motion`, with its
card.

```sh
kinescan predict a.mp4
kinescan stream a.mp4 --model motion --set stream.top=2
kinescan demo --quick --from MY_VIDEOS
```

```python
import torch
import kinescan as ks

clip = torch.zeros(12, 3, 96, 96, dtype=torch.uint8)  # two seconds at 6 frames a second
for frame in range(12):
    clip[frame, :, 32:64, 8 + 4 * frame : 40 + 4 * frame] = 200  # a square that moves to the right
[prediction] = ks.predict("motion", [clip], fps=6, top=1)
print(prediction.labels)
```
"""


def write_card(model_folder: Path) -> None:
    """The card that every saved model has, with what this one names, how often, and how it was made."""
    result = json.loads((measure.PUBLISHED / "motion_model.json").read_text(encoding="utf-8"))
    scores, made = result["results"], result["settings"]["made"]
    rows = ["| clips | n | right | mirrored likewise | reversed likewise |", "|---|---:|---:|---:|---:|"]
    for name, own in scores.items():
        others = [own.get("mirrored clips get the mirrored answer"), own.get("reversed clips get the reversed answer")]
        cells = " | ".join("" if one is None else percent(one) for one in others)
        rows.append(f"| {name} | {own['n']} | {percent(own['right'])} | {cells} |")
    with_classes = {name: own for name, own in scores.items() if "classes" in own}
    classes = ["| class | " + " | ".join(with_classes) + " |", "|---|" + "---:|" * len(with_classes)]
    for name in sorted(next(iter(with_classes.values()))["classes"]):
        classes.append(
            f"| {name} | " + " | ".join(percent(own["classes"][name]) for own in with_classes.values()) + " |"
        )
    model = from_pretrained(model_folder)
    text = TEXT.format(
        names=", ".join(model.class_names),
        chance=percent(1 / len(model.class_names)),
        table="\n".join(rows),
        classes="\n".join(classes),
        before=", ".join(percent(mean_of(own["classes"], BEFORE)) for own in with_classes.values()),
        textures=", ".join(name.partition(".")[0] for name in made["textures"]),
        steps="\n".join(f"- {one}" for one in made["trainings"]),
        batch=made["clips in a batch"],
        clips=NUM_CLIPS,
    )
    card = model_folder / "README.md"
    model.num_clips = NUM_CLIPS
    model.save_pretrained(model_folder)
    before, mark, after = card.read_text(encoding="utf-8").partition("## Labels")
    card.write_text(before + text.lstrip("\n") + "\n" + mark + after, encoding="utf-8")
    (measure.HERE.parent / "docs" / "motion_model.md").write_text(PAGE + text, encoding="utf-8")


def mean_of(right: dict[str, float], names: Sequence[str]) -> float:
    """The mean over classes of as many clips each."""
    return sum(right[name] for name in names) / len(names)


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("train", "score", "card"))
    parser.add_argument("--textures", help="Folder of photographs, .png or .jpg.")
    parser.add_argument("--weights", help="A ViT of step 1, not to train it again.")
    parser.add_argument("--start", help="The folder of a model that step 3 starts with, without steps 1 and 2.")
    parser.add_argument("--videos", help="Folder of videos whose windows are scored, too.")
    parser.add_argument("--only", type=int, help="Number of the one set of clips to score, from 0; writes no result.")
    parser.add_argument("--batches", type=int, nargs=2, default=(FIELD_BATCHES, NAME_BATCHES))
    arguments = parser.parse_args()
    if arguments.part == "train":
        train(arguments.textures, arguments.weights, arguments.start, tuple(arguments.batches))
    elif arguments.part == "score":
        score(arguments.videos, SHIPPED / MOTION, arguments.only)
    else:
        write_card(SHIPPED / MOTION)


if __name__ == "__main__":
    main()
