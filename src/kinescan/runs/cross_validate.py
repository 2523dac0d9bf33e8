import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from kinescan.config import RunConfig, dump_recipe, load_recipe
from kinescan.errors import ConfigError
from kinescan.evaluation.report import CHOSEN_ON_THESE
from kinescan.runs.datasets import Division, read_folds
from kinescan.runs.folder import RUNS
from kinescan.runs.train import train
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.escaping import escape_markdown, to_json
from kinescan.runtime.files import read_json_object
from kinescan.runtime.launch import is_main_process
from kinescan.runtime.output_folder import prepare_output
from kinescan.runtime.own_modules import import_own_module
from kinescan.runtime.quantities import percent
from kinescan.runtime.run_folder import RECIPE_FILE, RunFolder
from kinescan.settings import to_plain
from kinescan.training.resume_check import refuse_changes

logger = logging.getLogger(__name__)

RESULT_FILE, TABLE_FILE = "cross_validation.json", "cross_validation.md"
_MOST_GROUPS = 6


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One fold, held out.

    Attributes:
        number: from 1.
        output: folder of its run.
        num_training: videos that are trained on.
        num_validation: videos on which the best checkpoint is chosen; 0: the held-out ones.
        num_held_out: videos that are held out.
        groups: of the held-out videos, where `data.group` makes some.
        scores: on the held-out videos, by name; empty before the run is done.
    """

    number: int
    output: Path
    num_training: int
    num_validation: int
    num_held_out: int
    groups: tuple[str, ...] = ()
    scores: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {**vars(self), "output": str(self.output), "groups": list(self.groups), "scores": dict(self.scores)}


@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """Scores of a recipe on each fold of its videos, held out in turn.

    Attributes:
        output: folder of all runs.
        recipe: the settings that all folds share.
        folds: in the order of their numbers.
        finished: every fold was trained and scored.
    """

    output: Path
    recipe: RunConfig
    folds: tuple[Fold, ...]

    @property
    def finished(self) -> bool:
        """Every fold was trained and scored."""
        return all(fold.scores for fold in self.folds)

    def summary(self) -> dict[str, dict[str, float]]:
        """Score -> mean and standard deviation (of a sample: n - 1) over the folds that have it, and how many do.

        A fold may lack a score, as the delay where no event was found.
        """
        done = [fold.scores for fold in self.folds]
        names = dict.fromkeys(name for scores in done for name in scores)
        values = {name: [scores[name] for scores in done if name in scores] for name in names}
        return {
            name: {
                "mean": mean(found),
                "standard_deviation": stdev(found) if len(found) > 1 else math.nan,
                "folds": len(found),
            }
            for name, found in values.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "output": str(self.output),
            "finished": self.finished,
            "scores": self.summary(),
            "folds": [fold.to_json() for fold in self.folds],
            "recipe": to_plain(self.recipe),
        }

    def to_markdown(self) -> str:
        """A table: a row a fold, then mean and standard deviation."""
        scores = list(self.summary())
        header = ["fold", "videos", *(["held-out groups"] if self._has_groups else []), *scores]
        rows = [header, ["---:"] * len(header), *map(list, self._rows(scores))]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        notes = [] if self.recipe.data.validation_ratio else ["", CHOSEN_ON_THESE]
        title = f"# {len(self.folds)} folds of {escape_markdown(self.recipe.data.train)}"
        return "\n".join([title, "", *lines, *notes]) + "\n"

    @property
    def _has_groups(self) -> bool:
        return any(fold.groups for fold in self.folds)

    def _rows(self, scores: Sequence[str]) -> Iterator[Sequence[str]]:
        filler = [""] * self._has_groups
        for fold in self.folds:
            shown = ", ".join(map(escape_markdown, fold.groups[:_MOST_GROUPS]))
            more = f", ... ({len(fold.groups)})" if len(fold.groups) > _MOST_GROUPS else ""
            groups = [f"{shown}{more}"] if self._has_groups else []
            values = (_shown(name, fold.scores[name]) if name in fold.scores else "" for name in scores)
            yield [str(fold.number), str(fold.num_held_out), *groups, *values]
        for title, key in (("mean", "mean"), ("standard deviation", "standard_deviation")):
            found = (self.summary()[name][key] for name in scores)
            yield [title, "", *filler, *map(_shown, scores, found)]


def _is_score(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _shown(name: str, value: float) -> str:
    """A score as people read it; a time or a rate is not a percentage."""
    return f"{value:.3g}" if name.endswith(("_seconds", "_per_hour")) else percent(value)


def cross_validate(
    recipe: str | Path | RunConfig,
    *,
    folds: int | None = None,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    resume: bool = False,
) -> CrossValidation:
    """Trains a recipe once for each fold of its videos, which is held out, and sums the scores up.

    Folds are of about equal size, have about the same fraction of each class, and keep the groups of `data.group`
    together. They depend on `data.split_seed` alone. The folder holds a run a fold (fold-1, fold-2, ...),
    cross_validation.json and cross_validation.md.

    Args:
        recipe: as for `train`; to resume, also the folder of an earlier cross-validation.
        folds: how many; by default the recipe's `data.folds`, or 5.
        overrides: "dotted.key=value" each, for a file.
        output: folder of everything; by default the next free runs/NAME-folds.
        resume: continues: folds that are done are not trained again.

    Raises:
        ConfigError: a setting is wrong, there are fewer groups than folds, or the folder holds a cross-validation
            already, or another one.
        KinescanError: as `train` raises them; what is done is kept.
    """
    planned, output = _plan(recipe, folds, overrides, output, resume=resume)
    done = _done(planned) if resume else {}
    if not resume and (planned.output / RESULT_FILE).exists():
        raise ConfigError(
            f"{output} holds a cross-validation. Continue it (--resume), or choose another output folder."
        )
    result = replace(planned, folds=tuple(replace(fold, scores=done.get(fold.number, {})) for fold in planned.folds))
    if is_main_process():
        prepare_output(output)
        write_text(output / RECIPE_FILE, dump_recipe(planned.recipe))
    _save(result)
    for fold in result.folds:
        if fold.scores:
            logger.info("fold %d of %d is done: %s", fold.number, len(result.folds), fold.output)
            continue
        config = _of_fold(result.recipe, fold.number)
        begun = resume and RunFolder(fold.output).checkpoints.is_dir()
        trained = train(config, output=fold.output, resume=begun).to_json()
        scores = {name: float(value) for name, value in trained.items() if _is_score(value)}
        filled = tuple(
            replace(other, scores=scores) if other.number == fold.number else other for other in result.folds
        )
        result = replace(result, folds=filled)
        _save(result)
    return result


def plan_folds(
    recipe: str | Path | RunConfig, *, folds: int | None = None, overrides: Sequence[str] = ()
) -> CrossValidation:
    """Which videos `cross_validate` would hold out in which fold; nothing is written.

    Raises:
        ConfigError: as for `cross_validate`.
    """
    return _plan(recipe, folds, overrides, None, resume=False)[0]


def _plan(
    recipe: str | Path | RunConfig,
    folds: int | None,
    overrides: Sequence[str],
    output: str | Path | None,
    *,
    resume: bool,
) -> tuple[CrossValidation, Path]:
    name, of_folder = "folds", False
    if isinstance(recipe, RunConfig):
        config = recipe
    else:
        if resume and (Path(recipe) / RESULT_FILE).is_file():
            recipe, output, of_folder = Path(recipe) / RECIPE_FILE, output or recipe, True
        config, name = load_recipe(recipe, overrides), f"{Path(recipe).stem}-folds"
    if config.model.module and not of_folder:
        # as `train` does for a recipe that is named, and not for one that lies in a folder of runs
        import_own_module(config.model.module)
    count = folds if folds is not None else config.data.folds or 5
    if count < 2:
        raise ConfigError(f"folds must be at least 2, got {count}.")
    config = replace(config, data=replace(config.data, folds=count, fold=1), output="")
    if not config.data.train:
        raise ConfigError("data.train is not set. Name a folder with one folder of videos per class, or a csv.")
    chosen = Path(output) if output else _choose(name, resume=resume)
    found = tuple(_fold(number, chosen, division) for number, division in enumerate(read_folds(config), 1))
    return CrossValidation(output=chosen, recipe=config, folds=found), chosen


def _of_fold(config: RunConfig, number: int) -> RunConfig:
    return replace(config, data=replace(config.data, fold=number))


def _fold(number: int, output: Path, division: Division[Any]) -> Fold:
    return Fold(
        number=number,
        output=output / f"fold-{number}",
        num_training=len(division.training),
        num_validation=len(division.validation),
        num_held_out=len(division.held_out),
        groups=tuple(sorted({video.group for video in division.held_out} - {""})),
        scores={},
    )


def _choose(name: str, *, resume: bool) -> Path:
    """The next free runs/NAME, runs/NAME-2, ...; to resume, the one before it."""
    taken: list[Path] = []
    while True:
        folder = RUNS / (name if not taken else f"{name}-{len(taken) + 1}")
        if not (folder / RESULT_FILE).exists():
            return taken[-1] if resume and taken else folder
        taken.append(folder)


def _done(planned: CrossValidation) -> dict[int, dict[str, float]]:
    """Number -> scores of the folds that were done before.

    Raises:
        ConfigError: the record is damaged, or was made with other settings or videos.
    """
    file = planned.output / RESULT_FILE
    if not file.exists():
        logger.warning("%s holds no cross-validation: starting anew", planned.output)
        return {}
    content = read_json_object(file)
    try:
        refuse_changes(content["recipe"], to_plain(planned.recipe), planned.output)
        folds = {int(fold["number"]): fold for fold in content["folds"]}
        scores = {
            number: {str(name): float(value) for name, value in fold["scores"].items()}
            for number, fold in folds.items()
        }
        sizes = {number: (fold["num_training"], fold["num_held_out"]) for number, fold in folds.items()}
    except (KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"{file} is not a record of a cross-validation. Start anew in another output folder."
        ) from None
    now = {fold.number: (fold.num_training, fold.num_held_out) for fold in planned.folds}
    if sizes != now:
        raise ConfigError(
            f"{planned.recipe.data.train} holds other videos than when the cross-validation in {planned.output} began. "
            "Put them back, or start anew in another output folder."
        )
    return scores


def _save(result: CrossValidation) -> None:
    if is_main_process():
        write_text(result.output / RESULT_FILE, to_json(result.to_json(), indent=1) + "\n")
        write_text(result.output / TABLE_FILE, result.to_markdown())
