"""Why state-space prompts come out below the bare head: a VideoMamba with a real grid, tuned in every way.

Run, again and again until it says "complete":   OMP_NUM_THREADS=1 python benchmarks/ssp_grid.py --seconds 900
Some of it:   --targets motions --tuners SSP "linear probe" --rates 4e-3 --seeds 0
Motions on real pixels (windows over your own videos and pictures):   --source FOLDER --targets real

1. The base (`ssp_grid_base.py`): 7 x 7 patches, 8 frames, 8 blocks; stills, then half of the motions and of the looks.
2. `slots`: what empty prompts alone do. A linear head is solved on the frozen base's features with 0, 1, 3, 10 empty
   prompt tokens behind the patches of every time step, as SSP has them before its first step.
3. `gradients`: the gradient of every part of SSP at the start, after one step and after one epoch. Of every SSP that
   is tuned: the same before and after, how far each part has moved, and its accuracy without what gathering adds to
   patches, and without the prompts.
4. `tune`: every tuner on each target. The learning rate of a tuner is the one, of those that were run on the first
   seed, that is best on held-out clips (textures of training); other seeds take that one. Scores are of test clips.

Writes benchmarks/results/ssp_grid.json from what is done.
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import measure
import memory_clips
import ssp_grid_base as base
from kinescan.data.synthetic.sources import find_sources
from kinescan.data.synthetic.windows import WindowConfig, render_window
from kinescan.models.mode import evaluation_view
from kinescan.models.videomamba.tuners.ssp import SSPVideoMamba
from kinescan.models.videomamba.videomamba import VideoMamba
from kinescan.models.zoo import create_model
from kinescan.profiling.cost import FLOPS_PER_MAC
from kinescan.profiling.training_cost import count_training_macs
from kinescan.training.accelerator import TrainConfig
from kinescan.training.callbacks import Callback, Step
from kinescan.training.loop import fit
from ssp_grid_base import Clips

NAME = "ssp_grid"
WORK = Path("runs/ssp_grid")
SSP: dict[str, Any] = {"inner_width": 24, "attention_width": 16, "attention_heads": 4}
TUNERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "linear probe": ("linear_probe", {}),
    "SSP": ("ssp", SSP),
    "full": ("full", {}),
    "LoRA": ("lora", {"rank": 3}),
    "state offset": ("state_offset", {}),
    "Adapter": ("adapter", {"bottleneck": 16}),
    "ST-Adapter": ("st_adapter", {"bottleneck": 15}),
    "SSP, 1 prompt": ("ssp", {**SSP, "num_prompts": 1}),
    "SSP, importance over the batch": ("ssp", {**SSP, "importance_scope": "batch"}),
    "VPT, deep": ("vpt", {"num_prompts": 4}),
    "VPT, shallow": ("vpt", {"num_prompts": 4, "deep": False}),
}
"""Those that train about 12,000 parameters are sized to do so."""
REAL_PAIRS = ("horizontal", "vertical", "scaling")
TRAIN_PER_CLASS, HELD_OUT_PER_CLASS, TEST_PER_CLASS, FIRST_HELD_OUT = 32, 20, 30, 50_000
EPOCHS, BATCH, RATES, SEEDS = 6, 16, (1e-3, 4e-3, 1.6e-2), (0, 1, 2)
SLOTS = (0, 1, 3, 10)
PARTS: Mapping[str, tuple[str, ...]] = {
    "scale and bias of gathering": ("tuner.inner_prompt.conv.",),
    "maps of gathering": ("tuner.inner_prompt.fc",),
    "kernel of the gate": ("tuner.inner_prompt.inter.convs.",),
    "map of the gate": ("tuner.inner_prompt.inter.heads.",),
    "attention over frames": ("tuner.prompt_attentions.",),
    "scales of importance": ("tuner.dynamic_scales.",),
    "last norm": ("norm_f.",),
    "head": ("head.",),
}
"""Part of SSP -> beginnings of its parameters' names."""


def real_clips(source: str) -> Callable[[Any, int, int], Clips]:
    """Windows over real videos and pictures; training and test clips have no source in common."""
    config = WindowConfig(
        source=source, pairs=REAL_PAIRS, frame_size=base.SIZES["image_size"], num_frames=base.NUM_FRAMES
    )
    sources = find_sources(
        source, needed={"train": 1, "test": 1}, test_ratio=config.test_ratio, seed=config.seed, workers=1
    )

    def render(split: Any, per_class: int, first: int) -> Clips:
        pixels, labels = [], []
        for k, pair in enumerate(REAL_PAIRS):
            for index in range(first, first + per_class):
                clip = render_window(config, sources, split, pair, index)
                pixels += [clip, clip.flip(0)]
                labels += [2 * k, 2 * k + 1]
        return torch.stack(pixels), torch.tensor(labels)

    return render


def load(target: str, what: str, source: str | None) -> Clips:
    """Clips of a target, rendered once: "train", "held_out" or "test"."""
    split, per_class, first = {
        "train": ("train", TRAIN_PER_CLASS, 0),
        "held_out": ("train", HELD_OUT_PER_CLASS, FIRST_HELD_OUT),
        "test": ("test", TEST_PER_CLASS, 0),
    }[what]

    def render() -> Clips:
        made = real_clips(str(source)) if target == "real" else base.TARGETS[target]
        return made(split, per_class, first)

    return base.kept(WORK / f"{target}_{what}_{per_class}.pt", render)


def make(tuner: str, options: Mapping[str, Any], seed: int) -> VideoMamba:
    torch.manual_seed(seed)
    labels = [str(index) for index in range(6)]
    model = create_model(f"{tuner}_videomamba_tiny", weights=WORK / "base.pth", labels=labels, **options)
    assert isinstance(model, VideoMamba)
    return model


@torch.inference_mode()
def accuracy(model: VideoMamba, clips: Clips) -> float:
    view = evaluation_view(model)
    batches = zip(clips[0].split(30), clips[1].split(30), strict=True)
    hits = [view(memory_clips.to_clips(some)).argmax(1) == true for some, true in batches]
    return torch.cat(hits).float().mean().item()


def slots(target: str, source: str | None) -> dict[str, Any]:
    """With so many empty prompts a time step: accuracy of a linear head that is solved to the end, and how far features
    have moved from those without prompts, in their own standard deviations over clips."""
    train, test = load(target, "train", source), load(target, "test", source)
    found, bare = {}, None
    for count in SLOTS:
        model = make("ssp", {**SSP, "num_prompts": count}, 0) if count else make("linear_probe", {}, 0)
        seen, asked = features(model, train[0]), features(model, test[0])
        head = solved_head((seen - seen.mean(0)) / seen.std(0), train[1])
        answers = head((asked - seen.mean(0)) / seen.std(0)).argmax(1)
        bare = asked if bare is None else bare
        found[f"{count} empty prompts"] = {
            "accuracy": (answers == test[1]).float().mean().item(),
            "features_moved_by": ((asked - bare).square().mean() / bare.var(0).mean()).sqrt().item(),
        }
    return found


@torch.no_grad()
def features(model: VideoMamba, pixels: Tensor) -> Tensor:
    view = evaluation_view(model)
    return torch.cat([view.forward_features(memory_clips.to_clips(some)) for some in pixels.split(30)])


def solved_head(inputs: Tensor, labels: Tensor, decay: float = 1e-3) -> nn.Linear:
    """The head of least cross-entropy plus `decay` times the squared weights; the same from wherever it starts."""
    head = nn.Linear(inputs.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    solver = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(head(inputs), labels) + decay * head.weight.square().sum()
        value.backward()
        return value

    solver.step(loss)  # type: ignore[arg-type]
    return head


def gradient_of_parts(model: VideoMamba, clips: Clips) -> dict[str, float]:
    """Norm of the gradient of every part on the first clips of each class."""
    chosen = torch.cat([(clips[1] == label).nonzero()[:3, 0] for label in range(6)])
    model.train().zero_grad()
    F.cross_entropy(model(memory_clips.to_clips(clips[0][chosen])), clips[1][chosen]).backward()
    found = {}
    for part, beginnings in PARTS.items():
        own = [p.grad for name, p in model.named_parameters() if name.startswith(beginnings) and p.grad is not None]
        found[part] = sum(float(gradient.square().sum()) for gradient in own) ** 0.5
    model.zero_grad()
    return found


class GradientsOnTheWay(Callback):
    """The gradient of every part after some of the steps.

    Args:
        clips: that it is computed on.
        steps: after which.
    """

    def __init__(self, model: VideoMamba, clips: Clips, steps: Sequence[int]) -> None:
        self.model, self.clips, self.steps = model, clips, steps
        self.found = {"at the start": gradient_of_parts(model, clips)}

    def on_step(self, step: Step) -> None:
        if step.step in self.steps:
            self.found[f"after step {step.step}"] = gradient_of_parts(self.model, self.clips)


def gradients(target: str, source: str | None) -> dict[str, Any]:
    """One epoch of SSP, and where the gradient goes meanwhile: part -> when -> norm."""
    model, train = make("ssp", SSP, 0), load(target, "train", source)
    clips = memory_clips.MemoryClips(*train, num_classes=6, seed=0, batch_size=BATCH)
    watch = GradientsOnTheWay(model, train, (1, clips.num_batches))
    output = WORK / "tuning" / f"{target}_gradients"
    shutil.rmtree(output, ignore_errors=True)
    settings = TrainConfig(device="cpu", trackers=(), checkpoint_minutes=0)
    optim = memory_clips.optim(RATES[1], 1, warmup=0.0)
    fit(model, clips, output=output, train=settings, optim=optim, callbacks=[watch])
    return {part: {when: found[part] for when, found in watch.found.items()} for part in PARTS}


def change_of_parts(model: VideoMamba, start: Mapping[str, Tensor]) -> dict[str, float]:
    """Root mean square of how far every part's parameters have moved."""
    found = {}
    for part, beginnings in PARTS.items():
        moved = [(p - start[name]).flatten() for name, p in model.named_parameters() if name.startswith(beginnings)]
        found[part] = torch.cat(moved).square().mean().sqrt().item()
    return found


@torch.no_grad()
def without_parts(model: SSPVideoMamba, clips: Clips) -> dict[str, float]:
    """Accuracy of a trained SSP as it is, without what is added to patches, and with the gate shut."""
    gathering = model.get_submodule("tuner.inner_prompt")
    found = {"as trained": accuracy(model, clips)}
    for what, linear in (("nothing added to patches", "fc2"), ("gate shut", "inter.heads")):
        module = gathering.get_submodule(linear)
        assert isinstance(module, nn.Linear)
        kept = module.weight.clone(), module.bias.clone()
        module.weight.zero_()
        module.bias.zero_()
        found[what] = accuracy(model, clips)
        module.weight.copy_(kept[0])
        module.bias.copy_(kept[1])
    return found


def tune(target: str, name: str, seed: int, rate: float, source: str | None) -> dict[str, Any]:
    """One tuner from the base on: its accuracies, what it trained, its compute; of SSP, what became of its parts."""
    tuner, options = TUNERS[name]
    model = make(tuner, options, seed)
    train, test = load(target, "train", source), load(target, "test", source)
    start = {key: tensor.clone() for key, tensor in model.named_parameters()}
    first = gradient_of_parts(model, train) if tuner == "ssp" else {}
    clips = memory_clips.MemoryClips(*train, num_classes=6, seed=seed, batch_size=BATCH)
    output = WORK / "tuning" / f"{target}_{name}_{seed}_{rate}".replace(" ", "_").replace(",", "")
    shutil.rmtree(output, ignore_errors=True)
    started = time.process_time()
    settings = TrainConfig(device="cpu", trackers=(), checkpoint_minutes=0)
    fit(model, clips, output=output, train=settings, optim=memory_clips.optim(rate, EPOCHS), seed=seed)
    seconds = time.process_time() - started
    shutil.rmtree(output, ignore_errors=True)
    found: dict[str, Any] = {
        "accuracy": accuracy(model, test),
        "held_out": accuracy(model, load(target, "held_out", source)),
        "accuracy_train": accuracy(model, train),
        "trained": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "training_gflops_per_clip": FLOPS_PER_MAC * count_training_macs(model).with_attention / 1e9,
        "cpu_seconds_per_clip": seconds / (EPOCHS * clips.num_batches * BATCH),
    }
    if isinstance(model, SSPVideoMamba):
        last, moved = gradient_of_parts(model, train), change_of_parts(model, start)
        found["parts"] = {
            part: {"gradient_at_start": first[part], "gradient_at_end": last[part], "moved_by": moved[part]}
            for part in PARTS
        }
        found["without"] = without_parts(model, test)
    return found


def tune_key(target: str, name: str, seed: int, rate: float) -> str:
    return f"tune|{target}|{name}|{seed}|{rate}"


def jobs(done: Mapping[str, Any], arguments: argparse.Namespace) -> Iterator[str]:
    """Keys of what is not done: empty prompts and gradients, then all rates of the first seed, then the other seeds."""
    short = [f"{kind}|{target}" for target in arguments.targets for kind in ("slots", "gradients")]
    yield from (key for key in short if key not in done)
    for target in arguments.targets:
        for rate in arguments.rates:
            for name in arguments.tuners:
                if SEEDS[0] in arguments.seeds and tune_key(target, name, SEEDS[0], rate) not in done:
                    yield tune_key(target, name, SEEDS[0], rate)
        for seed in arguments.seeds:
            for name in arguments.tuners:
                best = best_rate(done, target, name)
                if best is not None and tune_key(target, name, seed, best) not in done:
                    yield tune_key(target, name, seed, best)


def rates_run(done: Mapping[str, Any], target: str, name: str) -> dict[float, float]:
    """Rate -> accuracy on held-out clips, of the first seed."""
    prefix = f"tune|{target}|{name}|{SEEDS[0]}|"
    return {float(key.removeprefix(prefix)): run["held_out"] for key, run in done.items() if key.startswith(prefix)}


def best_rate(done: Mapping[str, Any], target: str, name: str) -> float | None:
    found = rates_run(done, target, name)
    return max(found, key=lambda rate: found[rate]) if found else None


def summarise(done: Mapping[str, Any]) -> dict[str, Any]:
    summary: dict[str, Any] = {"base": done["base"]}
    for target in (*base.TARGETS, "real"):
        found: dict[str, Any] = {}
        if f"slots|{target}" in done:
            found["head on features with empty prompts"] = done[f"slots|{target}"]["found"]
        if f"gradients|{target}" in done:
            found["gradients of SSP"] = done[f"gradients|{target}"]["found"]
        rows = {name: row for name in TUNERS if (row := row_of(done, target, name))}
        if rows:
            found["tuners"] = rows
        ssp = done.get(tune_key(target, "SSP", SEEDS[0], best_rate(done, target, "SSP") or 0.0))
        if ssp:
            found |= {"parts of SSP": ssp["parts"], "SSP without a part": ssp["without"]}
        if found:
            summary[f"target: {target}"] = found
    return summary


def row_of(done: Mapping[str, Any], target: str, name: str) -> dict[str, Any] | None:
    rate = best_rate(done, target, name)
    keys = [tune_key(target, name, seed, rate) for seed in SEEDS] if rate else []
    runs = [done[key] for key in keys if key in done]
    if not runs:
        return None
    scores = [run["accuracy"] for run in runs]
    return {
        "seeds": len(runs),
        "rate": rate,
        "rates_searched": len(rates_run(done, target, name)),
        "accuracy": statistics.mean(scores),
        "accuracy_lowest": min(scores),
        "accuracy_highest": max(scores),
        "accuracy_train": statistics.mean(run["accuracy_train"] for run in runs),
        "trained": runs[0]["trained"],
        "training_gflops_per_clip": runs[0]["training_gflops_per_clip"],
        "cpu_seconds_per_clip": statistics.median(run["cpu_seconds_per_clip"] for run in runs),
    }


def publish(done: Mapping[str, Any]) -> None:
    settings = {
        **base.SIZES,
        "num_frames": base.NUM_FRAMES,
        "seen_pairs": base.SEEN_PAIRS,
        "unseen_pairs": base.UNSEEN_PAIRS,
        "real_pairs": REAL_PAIRS,
        "stills": base.STILLS * base.STILL_EPOCHS,
        "base_clips_per_motion": base.MOTIONS_PER_CLASS,
        "base_clips_per_look": base.LOOKS_PER_CLASS,
        "base_epochs": base.EPOCHS,
        "train_per_class": TRAIN_PER_CLASS,
        "test_per_class": TEST_PER_CLASS,
        "epochs": EPOCHS,
        "batch": BATCH,
        "chance": 1 / 6,
    }
    summary = summarise(done)
    counts = [row["seeds"] for found in summary.values() for row in found.get("tuners", {}).values()]
    measure.write_result(NAME, seed=SEEDS[0], n=min(counts, default=1), settings=settings, results=summary)


def read_done() -> dict[str, Any]:
    """What all processes have done: a file for each piece of work."""
    runs = [json.loads(path.read_text()) for path in sorted((WORK / "done").glob("*.json"))]
    return {run["key"]: run for run in runs}


def keep(key: str, found: Mapping[str, Any]) -> None:
    path = WORK / "done" / f"{key.replace('|', ', ')}.json"
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps({"key": key, **found}, indent=1))
    aside.replace(path)
    publish(read_done())


def work(key: str, source: str | None) -> dict[str, Any]:
    kind, target, *rest = key.split("|")
    if not rest:
        return {"found": {"slots": slots, "gradients": gradients}[kind](target, source)}
    name, seed, rate = rest
    return tune(target, name, int(seed), float(rate), source)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900, help="Start nothing new after this time.")
    parser.add_argument("--targets", nargs="+", choices=(*base.TARGETS, "real"), default=list(base.TARGETS))
    parser.add_argument("--tuners", nargs="+", choices=TUNERS, default=list(TUNERS))
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS))
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--source", help="folder with videos and pictures, for --targets real")
    parser.add_argument("--publish", action="store_true", help="Only write the JSON again.")
    arguments = parser.parse_args(words)
    if "real" in arguments.targets and not arguments.source:
        parser.error("--targets real needs --source FOLDER, with videos or pictures")
    return arguments


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    (WORK / "done").mkdir(parents=True, exist_ok=True)
    if arguments.publish:
        publish(read_done())
        return
    started = time.monotonic()
    if "base" not in read_done():
        _, scores = base.make_base(WORK)
        keep("base", {"accuracy": scores})
    while key := next(jobs(read_done(), arguments), None):
        if time.monotonic() - started > arguments.seconds:
            return
        found = work(key, arguments.source)
        keep(key, found)
        print(key, {name: value for name, value in found.items() if not isinstance(value, dict)}, flush=True)
    print("complete")


if __name__ == "__main__":
    main()
