"""The tables of the PKS4 paper: its own numbers, and the study files that run their rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from kinescan.errors import ConfigError
from kinescan.fields import check_types
from kinescan.runtime.files import read_toml
from kinescan.runtime.recipe_files import RECIPES
from kinescan.settings import build_settings, closest
from kinescan.studies.study import Study, load_study

Scale = Literal["demo", "paper"]
STUDIES = RECIPES / "studies"
"""Study files that come with the package."""
TABLES = tuple(f"table{number}" for number in range(1, 10))
PUBLISHED_DATA = {"table4": "k400"}
"""Table -> the data set of its rows; of the others, `USUAL_DATA`."""
USUAL_DATA = "ssv2"
_PAPER_FILE = "pks4_paper.toml"


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """What the paper says of a row; None where it says nothing.

    Attributes:
        parameters: in millions.
        gflops: of all views of a video; a multiply-accumulate counts once.
        training_eflops: of the fine-tuning.
        memory_gb: of a training step.
        top1: in per cent.
        top5: in per cent.
    """

    parameters: float | None = None
    gflops: float | None = None
    training_eflops: float | None = None
    memory_gb: float | None = None
    top1: float | None = None
    top5: float | None = None

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        title: what it is about.
        num_classes: of its data set.
        num_clips: training videos of its data set.
        rows: those that are the paper's own, by name.
        note: what one has to know of the paper's numbers.
    """

    title: str
    num_classes: int
    num_clips: int
    rows: dict[str, PaperRow] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        check_types(self)


def paper_table(table: str) -> PaperTable:
    """A table of the paper by name, "table1" to "table9"; a number alone is taken, too.

    Raises:
        ConfigError: there is no such table.

    Example:
        >>> paper_table("table5").rows["Baseline"].parameters
        86.34
    """
    return build_settings(PaperTable, read_toml(STUDIES / _PAPER_FILE)[table_name(table)])


def table_name(table: str) -> str:
    """The name of a table that may be given as "5", "table5" or "Table 5".

    Raises:
        ConfigError: there is no such table.

    Example:
        >>> table_name("5"), table_name("Table 5")
        ('table5', 'table5')
    """
    plain = table.lower().replace(" ", "")
    name = f"table{plain}" if plain.isdecimal() else plain
    if name not in TABLES:
        raise ConfigError(f"unknown table {table!r}. {closest(name, TABLES)}")
    return name


def study_file(table: str, scale: Scale) -> Path:
    """The packaged study of a table's rows.

    Raises:
        ConfigError: there is no such table.
    """
    if scale not in get_args(Scale):
        raise ConfigError(f"unknown scale {scale!r}. {closest(scale, get_args(Scale))}")
    return STUDIES / f"pks4_{table_name(table)}{'_demo' if scale == 'demo' else ''}.toml"


def table_study(table: str, scale: Scale) -> Study:
    """The rows of a table as a study.

    Args:
        table: "table1" to "table9".
        scale: "paper": at the paper's size on its data set; "demo": small models on synthetic motions.

    Raises:
        ConfigError: there is no such table.

    Example:
        >>> [row.name for row in table_study("table7", "demo").rows]
        ['Unidirectional', 'Bidirectional']
    """
    return load_study(study_file(table, scale))


def data_of(table: str) -> str:
    """The data set of a table's rows in the paper."""
    return PUBLISHED_DATA.get(table_name(table), USUAL_DATA)


def published(paper: PaperTable, row: str) -> Mapping[str, float]:
    """What the paper says of a row, by the names of `PaperRow`."""
    found = paper.rows.get(row, PaperRow())
    return {name: value for name, value in vars(found).items() if value is not None}
