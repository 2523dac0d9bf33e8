import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kinescan.config import load_recipe
from kinescan.data.synthetic import (
    MOTION_PAIRS,
    USUAL_PAIRS,
    AppearanceConfig,
    MotionConfig,
    SyntheticReport,
    make_appearance,
    make_motion,
)
from kinescan.errors import ConfigError
from kinescan.evaluation.metrics import pair_accuracy
from kinescan.evaluation.report import Report
from kinescan.inference.predictor import Prediction, predict
from kinescan.runs.demo_first import MotionScores, show_motion_model
from kinescan.runs.demo_page import HTML_FILE, write_first_page, write_page
from kinescan.runs.stills import STILLS_PER_EPOCH, train_on_stills
from kinescan.runs.train import train
from kinescan.runtime.addresses import require_local
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.escaping import to_json
from kinescan.runtime.run_folder import RunFolder
from kinescan.training.callbacks import Callback, Epoch, Start

logger = logging.getLogger(__name__)


RESULT_FILE = "demo.json"


RUNS = {
    "motion_vit": ("motion", "averaging"),
    "motion_pks4": ("motion", "pks4"),
    "appearance_vit": ("appearance", "averaging"),
    "appearance_pks4": ("appearance", "pks4"),
}
"""Run -> its data set and its model; the recipe is demo_RUN.toml."""


RELATIVE_SECONDS = {
    "first page": 8.0,
    "data": 8.0,
    "stills": 25.0,
    "motion_vit": 14.0,
    "motion_pks4": 32.0,
    "appearance_vit": 7.0,
    "appearance_pks4": 16.0,
    "explanation": 1.0,
}
"""How long the parts take beside each other: what is left is told by them."""


PAIRS = [tuple(sorted(MOTION_PAIRS[pair])) for pair in USUAL_PAIRS]


@dataclass(frozen=True, kw_only=True)
class DemoScores:
    """What one model reached on held-out files; all in [0, 1].

    Attributes:
        motion: top-1 where only the motion tells the class.
        within_pairs: the fraction that is right when only a class and its reversal are to be told apart; 0.5 is chance.
        appearance: top-1 where only the look tells the class.
        pairs: `within_pairs` of each pair, by its classes.
    """

    motion: float
    within_pairs: float
    appearance: float
    pairs: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo showed.

    Attributes:
        page: the page to read.
        first: what the model that comes with kinescan said.
        scores: by model: "averaging" (the frame-averaging ViT) and "pks4".
        num_test: held-out files of each of the two data sets.
        prediction: of the file that was explained.
        seconds: wall time of each part.
    """

    page: Path
    first: MotionScores
    scores: dict[str, DemoScores]
    num_test: dict[str, int]
    prediction: Prediction
    seconds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return asdict(self) | {"page": str(self.page)}


def demo(
    output: str | Path = "runs/demo",
    *,
    recipes: str | Path = "recipes",
    train_per_class: int = 160,
    test_per_class: int = 40,
    stills_per_epoch: int = STILLS_PER_EPOCH,
    source: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> DemoResult:
    """Runs the whole job on synthetic data, and writes a page with what it shows.

    The page is there first with what the model that comes with kinescan sees. Then the data sets motion and appearance
    are made, a small ViT is trained on stills and fine-tuned on both data sets as it is (averaging frames) and with
    PKS4's module, the four models are scored on held-out files, and one prediction is explained.

    Args:
        output: folder of everything; an earlier demo in it is replaced.
        recipes: folder with the demo's recipes.
        train_per_class: training files of each motion; looks get half as many.
        test_per_class: held-out files of each class.
        stills_per_epoch: pictures in an epoch of the image training.
        source: as for `quick_demo`.
        overrides: "dotted.key=value", for every training run.

    Raises:
        ConfigError: a recipe is missing, a setting is wrong, or the folder holds something else or cannot be written.
    """
    configs = {name: load_recipe(Path(recipes) / f"demo_{name}.toml", overrides) for name in ("stills", *RUNS)}
    output = clear_output(Path(output))
    clock = DemoClock()
    with clock.part("first page"):
        first = show_motion_model(output, source)
    progress = DemoProgress(output, first, clock)
    progress.write()
    with clock.part("data"):
        made = _make_data(output / "data", train_per_class, test_per_class)
    with clock.part("stills"):
        weights = train_on_stills(configs["stills"], output / "stills", stills_per_epoch, callbacks=[progress])
    reports = {}
    for name, (data, _) in RUNS.items():
        with clock.part(name):
            folder = output / "data" / data
            paths = replace(configs[name].data, train=str(folder / "train"), test=str(folder / "test"))
            model = replace(configs[name].model, weights=str(weights))
            run = replace(configs[name], data=paths, model=model)
            report = train(run, output=output / name, callbacks=[progress]).report
            assert isinstance(report, Report)
            reports[name] = report
        progress.end_run(name, report)
    with clock.part("explanation"):
        label = PAIRS[0][1]
        video = output / "data" / "motion" / "test" / label / "0000.mp4"
        best = RunFolder(output / "motion_pks4").best
        [prediction] = predict(str(best), [video], top=3, explain_folder=output / "explained")
    result = DemoResult(
        page=output / HTML_FILE,
        first=first,
        scores={
            model: _scores({data: reports[name] for name, (data, own) in RUNS.items() if own == model})
            for model in ("averaging", "pks4")
        },
        num_test={data: report.num_test for data, report in made.items()},
        prediction=prediction,
        seconds=clock.seconds | {"all": sum(clock.seconds.values())},
    )
    write_text(output / RESULT_FILE, to_json(result.to_json(), indent=1) + "\n")
    write_page(result.to_json(), label=label, folder=output)
    return result


def quick_demo(output: str | Path = "runs/demo", *, source: str | Path | None = None) -> Path:
    """The demo's first page alone: what the model that comes with kinescan sees; nothing is trained.

    Args:
        output: folder of everything; an earlier demo in it is replaced.
        source: folder of videos and pictures over which windows move; None: photographs that come with kinescan.

    Returns:
        The page.

    Raises:
        ConfigError: as for `demo`.
    """
    output = clear_output(Path(output))
    first = show_motion_model(output, source)
    write_text(output / RESULT_FILE, to_json({"first": first.to_json()}, indent=1) + "\n")
    write_first_page(first.to_json(), folder=output, left_seconds=None)
    return output / HTML_FILE


def stills(
    output: str | Path = "runs/demo",
    *,
    recipes: str | Path = "recipes",
    stills_per_epoch: int = STILLS_PER_EPOCH,
    overrides: Sequence[str] = (),
) -> Path:
    """The demo's first step alone: the folder of a small ViT that has learnt from single pictures.

    Other small models can start from it, such as that of `recipes/made_events_cpu.toml`.

    Args:
        output: as for `demo`; the model is in OUTPUT/stills/checkpoints/last.
        recipes: folder with the demo's recipes.
        stills_per_epoch: pictures in an epoch.
        overrides: "dotted.key=value", such as another size of the pictures.

    Raises:
        ConfigError: as for `demo`.
    """
    config = load_recipe(Path(recipes) / "demo_stills.toml", overrides)
    return train_on_stills(config, clear_output(Path(output)) / "stills", stills_per_epoch)


def _make_data(folder: Path, train_per_class: int, test_per_class: int) -> dict[str, SyntheticReport]:
    """Both data sets; looks are learnt from half as many files as motions."""
    motion = MotionConfig(train_per_class=train_per_class, test_per_class=test_per_class, workers=2)
    half = -(-train_per_class // 2)
    appearance = AppearanceConfig(train_per_class=half, test_per_class=test_per_class, workers=2)
    return {
        "motion": make_motion(folder / "motion", motion),
        "appearance": make_appearance(folder / "appearance", appearance),
    }


def _scores(reports: dict[str, Report]) -> DemoScores:
    evaluation = reports["motion"].evaluation
    index_of = {label: index for index, label in enumerate(evaluation.labels)}

    def within(pairs: Sequence[tuple[str, ...]]) -> float:
        indices = [(index_of[first], index_of[second]) for first, second in pairs]
        return pair_accuracy(evaluation.scores, evaluation.targets, indices)

    return DemoScores(
        motion=evaluation.metrics.top1,
        within_pairs=within(PAIRS),
        appearance=reports["appearance"].evaluation.metrics.top1,
        pairs={" / ".join(pair): within([pair]) for pair in PAIRS},
    )


def clear_output(output: Path) -> Path:
    """Empties the folder of an earlier demo, or makes it; never removes anything else.

    Raises:
        ConfigError: the folder holds something else, or cannot be written.
    """
    require_local(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        marker = output / RESULT_FILE
        if any(output.iterdir()) and not marker.exists():
            raise ConfigError(f"{output} is not empty and holds no earlier demo. Name another folder with --output.")
        for path in output.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        write_text(marker, "{}\n")
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error.strerror or error}. Name another folder.") from error
    return output


class DemoClock:
    """Wall time of the parts, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.name, self.start = "", time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times what happens inside."""
        logger.info("demo: %s", name)
        self.name, self.start = name, time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - self.start


class DemoProgress(Callback):
    """Writes the page again as trainings advance and end, with the time that is left."""

    def __init__(self, output: Path, first: MotionScores, clock: DemoClock) -> None:
        self._output, self._first, self._clock = output, first.to_json(), clock
        self._done: dict[str, float] = {}
        self._epochs, self._ended = 1, 0

    def write(self) -> None:
        """The page as far as it is known."""
        write_first_page(self._first, folder=self._output, done=self._done, left_seconds=self._left())

    def end_run(self, name: str, report: Report) -> None:
        """Adds a run that has ended."""
        self._done[name] = report.evaluation.metrics.top1
        self._ended = 0
        self.write()

    def on_start(self, start: Start) -> None:
        """A training begins."""
        self._epochs, self._ended = max(1, start.num_epochs), 0

    def on_epoch(self, epoch: Epoch) -> None:
        """A part of a training is done."""
        self._ended = epoch.epoch + 1
        self.write()

    def _left(self) -> float:
        """Seconds: what is left takes as long as `RELATIVE_SECONDS` say, at the speed so far."""
        seconds = dict(self._clock.seconds)
        behind = sum(RELATIVE_SECONDS.get(part, 0.0) for part in seconds)
        taken = sum(seconds[part] for part in seconds if part in RELATIVE_SECONDS)
        if self._ended and self._clock.name in RELATIVE_SECONDS and self._clock.name not in seconds:
            behind += RELATIVE_SECONDS[self._clock.name] * self._ended / self._epochs
            taken += time.perf_counter() - self._clock.start
        return max(0.0, (sum(RELATIVE_SECONDS.values()) - behind) * taken / behind)
