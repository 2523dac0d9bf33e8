"""What a study is: rows of settings, times seeds, times data."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import tomli_w

from kinescan.config import flat_settings
from kinescan.errors import ConfigError
from kinescan.fields import MAX_SEED, check_types
from kinescan.runs.stills import STILLS_PER_EPOCH
from kinescan.runtime.files import read_toml
from kinescan.runtime.recipe_files import packaged_studies
from kinescan.runtime.urls import refuse_url
from kinescan.settings import build_settings, closest, to_plain

MadeKind = Literal["motion", "appearance", "events"]
PreparationKind = Literal["stills", "train"]
_OF_THE_STUDY = ("seed", "output")
"""Settings that the study itself gives to each run."""
RUNS_SEED = -1
"""As the seed of a preparation: that of the run which starts from it."""
_MOST_RUNS = 10_000
_MOST_LETTERS = 100
_MOST_FOLDS = 1000


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the study's table: settings that are tried.

    Attributes:
        name: as the table shows it.
        settings: dotted key -> value, as with --set; they replace those of recipe, study and data.
        recipe: another recipe than the study's: a file, the name of one that comes with kinescan, or a table; empty for
            the study's.
        prepare: the preparation whose weights the row starts from; empty for the study's, "none" for none.
        columns: further columns of the table, name -> text or number, such as what was published.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    recipe: str | dict[str, Any] = ""
    prepare: str = ""
    columns: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        _check_name("row", self.name)
        _refuse_settings(f"row {self.name!r}", self.settings)
        for name, value in self.columns.items():
            if isinstance(value, Mapping | list | tuple):
                raise ConfigError(f"row {self.name!r}: the column {name!r} must be a text or a number, got {value!r}.")


@dataclass(frozen=True, kw_only=True)
class DataEntry:
    """Data that every row is trained on.

    Attributes:
        name: as the table shows it.
        settings: dotted key -> value, such as data.train; those of a row go before them.
        make: synthetic data: `kind` ("motion", "appearance" or "events") and what `kinescan data make` takes;
            data.train and data.test are set to it. Empty: the data is there.
        folds: divides the videos into so many parts (by data.group, where that is set), each held out in turn: a run of
            each row for each. 0: no folds.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    make: dict[str, Any] = field(default_factory=dict)
    folds: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        _check_name("data", self.name)
        _refuse_settings(f"data {self.name!r}", self.settings)
        _check_make(f"data {self.name!r}", self.make)
        if self.folds < 0 or self.folds == 1 or self.folds > _MOST_FOLDS:
            raise ConfigError(f"data {self.name!r}: folds must be 0 (none) or 2 to {_MOST_FOLDS}, got {self.folds}.")
        if self.folds and self.make:
            raise ConfigError(f"data {self.name!r}: synthetic data has test videos. Leave folds out, or make.")

    def parts(self) -> "tuple[DataEntry, ...]":
        """An entry for each fold; without folds, this one."""
        if not self.folds:
            return (self,)
        return tuple(
            DataEntry(
                name=f"{self.name[: _MOST_LETTERS - len(said)]}{said}",
                settings={**flat_settings(self.settings), "data.folds": self.folds, "data.fold": fold},
            )
            for fold in range(1, self.folds + 1)
            if (said := f", fold {fold}")
        )


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Weights that are trained once for each seed, and shared by rows.

    Attributes:
        name: that rows name it by.
        kind: "stills" trains on synthetic single pictures, as `kinescan demo` does; "train" trains as
            `kinescan train`, and its best checkpoint is taken.
        recipe: as for a row.
        settings: dotted key -> value.
        make: as for data, of "train": it is trained on synthetic data.
        prepare: of "train": the preparation, further up in the list, whose weights it starts from; empty for none.
        stills_per_epoch: pictures in an epoch, of stills.
        seed: of the weights, for runs of every seed, as published weights would be; -1: that of each run.
    """

    name: str
    kind: PreparationKind = "stills"
    recipe: str | dict[str, Any] = "demo_stills"
    settings: dict[str, Any] = field(default_factory=dict)
    make: dict[str, Any] = field(default_factory=dict)
    prepare: str = ""
    stills_per_epoch: int = STILLS_PER_EPOCH
    seed: int = RUNS_SEED

    def __post_init__(self) -> None:
        check_types(self)
        _check_name("preparation", self.name)
        _refuse_settings(f"preparation {self.name!r}", self.settings)
        if self.name == "none":
            raise ConfigError('a preparation cannot be called "none", which stands for no preparation. Rename it.')
        _check_make(f"preparation {self.name!r}", self.make)
        if self.kind == "stills" and (self.make or self.prepare):
            raise ConfigError(
                f'preparation {self.name!r}: make and prepare are for kind = "train". Stills make themselves '
                "and begin with new weights: leave both out."
            )
        if self.stills_per_epoch < 1:
            raise ConfigError(f"stills_per_epoch must be at least 1, got {self.stills_per_epoch}.")
        if not RUNS_SEED <= self.seed <= MAX_SEED:
            raise ConfigError(
                f"preparation {self.name!r}: seed must be 0 to {MAX_SEED}, or {RUNS_SEED} for that of each run, got "
                f"{self.seed}."
            )


@dataclass(frozen=True, kw_only=True)
class Study:
    """Rows times seeds times data: every row is trained on all data with all seeds.

    Attributes:
        name: of the study; names its folder below runs/.
        recipe: that all rows begin with: a file, the name of one that comes with kinescan, or a table as in a recipe.
        rows: what is compared.
        seeds: of the runs.
        data: what is trained on; empty: what the recipe says.
        settings: dotted key -> value, of every run; those of data and row go before them.
        preparations: weights that are trained first.
        prepare: the preparation of rows that name none; empty for none.
        base: the row that the others are compared with; empty for the first one.
        metrics: scores of the final report that the table shows, such as "top1"; the first one is that of the
            differences and the curves. Empty: "top1", or "frame_map" of labels with a start and an end.
        title: of the page; empty for the name.
        shared: folder of what several studies share: synthetic data, preparations, and runs; a run whose
            settings, videos, seed and commit are the same is done once for all. Empty: all lies in the study's folder.
    """

    name: str
    recipe: str | dict[str, Any]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...] = (0,)
    data: tuple[DataEntry, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    preparations: tuple[Preparation, ...] = ()
    prepare: str = ""
    base: str = ""
    metrics: tuple[str, ...] = ()
    title: str = ""
    shared: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        _check_name("study", self.name)
        _refuse_settings("settings", self.settings)
        if not self.rows:
            raise ConfigError("a study needs at least one row. Write [[rows]] with a name and settings.")
        if not self.seeds:
            raise ConfigError("a study needs at least one seed, such as seeds = [0, 1, 2].")
        for seed in self.seeds:
            if not 0 <= seed <= MAX_SEED:
                raise ConfigError(f"seeds must be 0 to {MAX_SEED}, got {seed}.")
        twice = sorted(seed for seed, count in Counter(self.seeds).items() if count > 1)
        if twice:
            raise ConfigError(
                f"seeds lists {', '.join(map(str, twice))} twice. A run is done once for each seed: name each once."
            )
        _refuse_twice("rows", [row.name for row in self.rows])
        _refuse_twice("data", [entry.name for entry in self.data_parts])
        _refuse_twice("preparations", [preparation.name for preparation in self.preparations])
        _refuse_twice("metrics", self.metrics)
        names = [row.name for row in self.rows]
        if self.base and self.base not in names:
            raise ConfigError(f"base names the row {self.base!r}, which there is not. {closest(self.base, names)}")
        known = [preparation.name for preparation in self.preparations]
        for name in (self.prepare, *(row.prepare for row in self.rows)):
            _check_preparation(name, known)
        for index, preparation in enumerate(self.preparations):
            _check_preparation(preparation.prepare, known[:index])
        runs = len(self.rows) * len(self.seeds) * max(1, len(self.data_parts))
        if runs > _MOST_RUNS:
            raise ConfigError(f"{runs} runs are more than a study may have ({_MOST_RUNS}). Divide it into several.")

    @property
    def data_parts(self) -> tuple[DataEntry, ...]:
        """What the rows are trained on, each fold by itself."""
        return tuple(part for entry in self.data for part in entry.parts())

    @property
    def base_row(self) -> str:
        """The row that the others are compared with."""
        return self.base or self.rows[0].name

    def preparation_of(self, row: Row) -> Preparation | None:
        """What a row starts from."""
        return self.preparation(row.prepare or self.prepare)

    def chain_of(self, row: Row) -> tuple[Preparation, ...]:
        """All that has to be prepared for a row, the last first."""
        chain: list[Preparation] = []
        found = self.preparation_of(row)
        while found is not None:
            chain.append(found)
            found = self.preparation(found.prepare)
        return tuple(chain)

    def preparation(self, name: str) -> Preparation | None:
        """The one of that name; None where there is none."""
        return next((found for found in self.preparations if found.name == name), None)


def build_study(values: Mapping[str, Any], *, name: str = "", beside: Path | None = None) -> Study:
    """The study that a mapping like a study's file describes.

    Settings may be written with points or as tables; a recipe's file is looked for as by `kinescan train`, or else
    beside the study's file.

    Args:
        values: as the TOML of docs/studies.md gives them.
        name: of the study where it does not say one.
        beside: folder of the study's file.

    Raises:
        ConfigError: a key is unknown (the closest is named) or missing, or a value is wrong.
    """
    known = [field.name for field in fields(Study)]
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown key {key!r} of a study. {closest(key, known)}")
    plain: dict[str, Any] = {"name": name, **values}
    for key in ("name", "recipe", "rows"):
        if not plain.get(key):
            raise ConfigError(f"a study needs {key!r}. docs/studies.md shows one.")
    for key, cls in _TABLES.items():
        plain[key] = tuple(_part(cls, entry, f"{key}[{index}]") for index, entry in enumerate(_list(plain, key)))
    for key in ("seeds", "metrics"):
        if isinstance(plain.get(key), list):
            plain[key] = tuple(plain[key])
    return _beside(Study(**plain), beside)


def load_study(path: str | Path) -> Study:
    """The study that a TOML file describes, the one whose folder is named, or one that comes with kinescan.

    Args:
        path: a file or folder; or the name of a packaged study ("own_motion_cpu"), where there is neither.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown, or a value is wrong.
    """
    path = Path(path)
    refuse_url(path, "Copy the study's file to this machine; its recipes and videos may stay where they are.")
    if path.is_dir() and (path / STUDY_FILE).is_file():
        path = path / STUDY_FILE
    elif not path.exists() and path.parent == Path("."):
        packaged = packaged_studies()
        if path.stem not in packaged:
            raise ConfigError(
                f"{str(path)!r}: no such file or folder, and no study of that name comes with kinescan. "
                f"{closest(path.stem, packaged)} docs/studies.md shows how to write one."
            )
        path = packaged[path.stem]
    return build_study(read_toml(path), name=path.stem, beside=path.parent)


def dump_study(study: Study) -> str:
    """The study as TOML; `load_study` reads it back to the same.

    Raises:
        ConfigError: a setting has a value that TOML cannot hold.
    """
    try:
        return tomli_w.dumps(to_plain(study))
    except TypeError as error:
        raise ConfigError(f"the study cannot be written as TOML ({error}). Leave settings out that are None.") from None


STUDY_FILE = "study.toml"
"""In a study's folder: what it was started with."""
_TABLES: dict[str, Any] = {"rows": Row, "data": DataEntry, "preparations": Preparation}


def _list(values: Mapping[str, Any], key: str) -> Sequence[Any]:
    entries = values.get(key, [])
    if not isinstance(entries, list | tuple):
        raise ConfigError(f"{key} must be a list of tables. Write [[{key}]] for each.")
    return entries


def _part(cls: Any, entry: Any, where: str) -> Any:
    """A row, data or preparation; errors name the table and its index in the file."""
    return build_settings(cls, entry, where=where)


def _beside(study: Study, folder: Path | None) -> Study:
    """The study with the recipes that lie beside its file."""

    def found(recipe: str | dict[str, Any]) -> str | dict[str, Any]:
        if not isinstance(recipe, str) or not recipe or folder is None or Path(recipe).is_file():
            return recipe
        return str(folder / recipe) if (folder / recipe).is_file() else recipe

    return replace(
        study,
        recipe=found(study.recipe),
        rows=tuple(replace(row, recipe=found(row.recipe)) for row in study.rows),
        preparations=tuple(replace(entry, recipe=found(entry.recipe)) for entry in study.preparations),
    )


def _check_preparation(name: str, known: Sequence[str]) -> None:
    """Passes a preparation that is known, or none.

    Raises:
        ConfigError: there is no such preparation.
    """
    if name and name != "none" and name not in known:
        there = closest(name, known) if known else "Write [[preparations]] with a name, before what starts from it."
        raise ConfigError(f"prepare names the preparation {name!r}, which there is not. {there}")


def _check_make(whose: str, make: Mapping[str, Any]) -> None:
    """Passes what `kinescan data make` knows a kind for.

    Raises:
        ConfigError: the kind is unknown, or something is set that the study sets itself.
    """
    if make and make.get("kind") not in get_args(MadeKind):
        said = str(make.get("kind", ""))
        raise ConfigError(f"{whose}: unknown make.kind {said!r}. {closest(said, get_args(MadeKind))}")
    if "overwrite" in make:
        raise ConfigError(f"{whose}: leave make.overwrite out. Data of other settings is kept beside.")


def _check_name(what: str, name: str) -> None:
    if not name.strip() or len(name) > _MOST_LETTERS or "\n" in name:
        raise ConfigError(
            f"the name of a {what} must be a line of 1 to {_MOST_LETTERS} characters, got {name[:_MOST_LETTERS]!r}."
        )


def _refuse_twice(what: str, names: Sequence[str]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ConfigError(f"{what} has the name {twice[0]!r} twice. Give each a name of its own.")


def _refuse_settings(where: str, settings: Mapping[str, Any]) -> None:
    for key in flat_settings(settings):
        if key in _OF_THE_STUDY:
            raise ConfigError(f"{where}: leave {key} out. A study sets it for each run: write seeds = [...].")
