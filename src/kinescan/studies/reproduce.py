"""A table of the PKS4 paper, run again: its rows as a study, and what they cost at the paper's size."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from kinescan.config import flat_settings, parse_overrides
from kinescan.errors import ConfigError
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.escaping import escape_markdown, to_json
from kinescan.settings import closest
from kinescan.studies.costs import RowCost, compare_costs, row_config, row_costs
from kinescan.studies.paper import PaperTable, Scale, data_of, paper_table, published, table_name, table_study
from kinescan.studies.result import StudyResult
from kinescan.studies.run import run_study, with_overrides
from kinescan.studies.study import DataEntry, Row, Study

RESULT_FILE, PAGE_FILE = "reproduction.json", "reproduction.md"
MAKE, STILLS = "make.", "stills."
"""What begins the overrides of synthetic data, and of the image weights that rows start from."""
OF_THE_ENCODER = (
    *("patch_size", "width", "depth", "heads", "mlp_dim", "embed_dim", "activation", "position_init", "pre_norm"),
)
"""Options of a model that its image weights have to share."""
SCALES = {
    "demo": "At demo scale: small models on synthetic motions. Scores of different scales cannot be "
    "compared, since the paper's are of CLIP on real videos; the order of the rows can. Rows keep the paper's names; "
    "--plan shows their sizes here.",
    "paper": "At the paper's size and settings.",
}


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """A table of the paper and what was run of it.

    Attributes:
        table: "table1" to "table9".
        scale: "demo" or "paper".
        paper: what the paper says.
        study: what runs, or ran.
        costs: of all rows of the table, at the paper's size.
        result: of the study; None where nothing was run.
    """

    table: str
    scale: Scale
    paper: PaperTable
    study: Study
    costs: tuple[RowCost, ...]
    result: StudyResult | None

    def order_kept(self) -> tuple[int, int]:
        """Pairs of rows that stand in the paper's order here, and pairs in all; equal scores there make no pair."""
        here = {row.name: self._mean(row.name) for row in self.study.rows}
        theirs = {name: published(self.paper, name).get("top1") for name in here}
        pairs = [
            (here[one], here[other], theirs[one], theirs[other])
            for one, other in combinations(here, 2)
            if here[one] is not None and here[other] is not None and theirs[one] != theirs[other]
        ]
        kept = [pair for pair in pairs if (pair[0] - pair[1]) * (pair[2] - pair[3]) > 0]  # type: ignore[operator]
        return len(kept), len(pairs)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        kept, pairs = self.order_kept()
        return {
            "table": self.table,
            "title": self.paper.title,
            "scale": self.scale,
            "rows": {
                row.name: {"paper": dict(published(self.paper, row.name)), "settings": flat_settings(row.settings)}
                for row in self.study.rows
            },
            "seeds": list(self.study.seeds),
            "pairs_in_the_order_of_the_paper": kept,
            "pairs": pairs,
            "costs": [cost.to_json() for cost in self.costs],
            "compared_costs": [vars(found) for found in compare_costs(self.costs, self.paper)],
            "study": None if self.result is None else self.result.to_json(),
        }

    def to_markdown(self) -> str:
        """The page: scores beside the paper's, then costs beside the paper's."""
        number = self.table.removeprefix("table")
        lines = [f"# Table {number} of PKS4: {self.paper.title}", "", SCALES[self.scale]]
        if self.result is not None:
            lines += ["", "## Scores", "", *self._scores(self.result)]
        lines += ["", "## Cost at the paper's size", "", *self._cost_table()]
        if self.result is not None:
            lines += ["", f"All of the study: {escape_markdown(str(self.result.output / 'study.md'))}"]
        return "\n".join(lines) + "\n"

    def _mean(self, row: str) -> float | None:
        if self.result is None:
            return None
        cell = self.result.cell(row, self.result.data[-1], "top1")
        return None if cell.spread is None else cell.spread.mean

    def _scores(self, result: StudyResult) -> Iterator[str]:
        base = self.study.base_row
        for data in result.data:
            if data:
                yield f"Top-1 (%) on {escape_markdown(data)}; differences are to {escape_markdown(base)}, in points."
                yield ""
            yield "| row | here | n | difference | paper | difference |"
            yield "|---|---:|---:|---:|---:|---:|"
            for row in self.study.rows:
                yield self._score_row(result, row, data)
            yield ""
        kept, pairs = self.order_kept()
        if pairs:
            yield f"Pairs of rows that stand in the paper's order: {kept} of {pairs}."
        if not result.is_finished:
            yield f"\n{len(result.runs)} of {result.num_planned} runs are done. The same command continues."
        for title, reason in result.failed.items():
            yield f"\n{escape_markdown(title)} is not done: {escape_markdown(reason)}"

    def _score_row(self, result: StudyResult, row: Row, data: str) -> str:
        cell = result.cell(row.name, data, "top1")
        theirs = {name: published(self.paper, name).get("top1") for name in (row.name, self.study.base_row)}
        own, base = theirs[row.name], theirs[self.study.base_row]
        here, n, difference = "-", "0", "-"
        if cell.spread is not None:
            n = str(cell.spread.n)
            deviation = "" if cell.spread.n == 1 else f" ± {100 * cell.spread.standard_deviation:.1f}"
            here = f"{100 * cell.spread.mean:.1f}{deviation}"
        if cell.difference is not None:
            difference = f"{100 * cell.difference.mean:+.1f}"
            if cell.difference.n > 1:
                difference += f" ({100 * cell.difference.low:+.1f} to {100 * cell.difference.high:+.1f})"
        is_base = row.name == self.study.base_row
        gap = "base" if is_base else "-" if own is None or base is None else f"{own - base:+.1f}"
        cells = (row.name, here, n, "base" if is_base else difference, "-" if own is None else f"{own:g}", gap)
        return f"| {' | '.join(map(escape_markdown, cells))} |"

    def _cost_table(self) -> Iterator[str]:
        yield "| row | cost | here | paper | difference |"
        yield "|---|---|---:|---:|---:|"
        last = ""
        for found in compare_costs(self.costs, self.paper):
            theirs = "" if found.paper is None else f"{found.paper:g}"
            difference = "" if found.difference is None else signed_percent(found.difference)
            name = escape_markdown(found.row) if found.row != last else ""
            yield f"| {name} | {found.what} | {found.here} | {theirs} | {difference} |"
            last = found.row
        yield ""
        yield (
            "GFLOPs and training EFLOPs are counted as in the paper: a multiply-accumulate is one FLOP (in training "
            "two, and three passes), attention's products are left out. In full: two FLOPs each, all products."
        )
        if self.paper.note:
            yield ""
            yield self.paper.note


def signed_percent(ratio: float) -> str:
    """A relative difference, with its sign and two digits after the point.

    Example:
        >>> signed_percent(0.00934), signed_percent(-0.0031)
        ('+0.93 %', '-0.31 %')
    """
    return f"{100 * ratio:+.2f} %"


def plan_reproduction(
    table: str,
    *,
    scale: Scale = "demo",
    source: str | Path | None = None,
    seeds: Sequence[int] = (),
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
    memory: bool = True,
) -> Reproduction:
    """What `reproduce` would run, and the costs at the paper's size; needs neither data nor weights.

    Args:
        table: "table1" to "table9", or the number.
        scale: "demo": small models on synthetic data; "paper": the paper's size on its data set.
        source: at demo scale, a folder of videos and pictures over which windows move, instead of drawn objects.
        seeds: of the runs; none: those of the study's file.
        only: rows to run; none: all.
        overrides: "dotted.key=value" for every run; "make.key=value" for synthetic data, "stills.key=value" for
            the training on single pictures.
        memory: count training memory where the paper has a number for it.

    Raises:
        ConfigError: a table, row or setting is unknown.
    """
    name = table_name(table)
    paper, at_full_size = paper_table(name), table_study(name, "paper")
    study = _with_source(table_study(name, scale), source, scale)
    study = _with_all_overrides(_with_rows(study, only), overrides, scale)
    if seeds:
        study = replace(study, seeds=tuple(seeds))
    for row in study.rows:
        row_config(study, row)
    return Reproduction(
        table=name,
        scale=scale,
        paper=paper,
        study=study,
        costs=row_costs(at_full_size, paper, memory=memory),
        result=None,
    )


def reproduce(
    table: str,
    *,
    scale: Scale = "demo",
    source: str | Path | None = None,
    seeds: Sequence[int] = (),
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    memory: bool = True,
    processes: int = 1,
    any_code: bool = False,
) -> Reproduction:
    """Runs the rows of a table of the paper that are not done yet, and writes them beside the paper's numbers.

    Args:
        table: as for `plan_reproduction`.
        scale: as for `plan_reproduction`.
        source: as for `plan_reproduction`.
        seeds: as for `plan_reproduction`.
        only: as for `plan_reproduction`.
        overrides: as for `plan_reproduction`.
        output: folder of the study; by default runs/NAME of the study. reproduction.json and reproduction.md go there.
            By default, data, image weights and runs of tables at demo scale lie in the folder that they share; with an
            output of your own all lies in that.
        memory: as for `plan_reproduction`.
        processes: as for `run_study`.
        any_code: as for `run_study`.

    Raises:
        ConfigError: as there; or data or weights are missing.
        KinescanError: as `run_study` raises it.
    """
    planned = plan_reproduction(
        table, scale=scale, source=source, seeds=seeds, only=only, overrides=overrides, memory=memory
    )
    if scale == "paper":
        _require_data(planned)
    if output is not None:
        planned = replace(planned, study=replace(planned.study, shared=""))
    result = run_study(planned.study, output=output, processes=processes, any_code=any_code)
    done = replace(planned, result=result)
    write_text(result.output / RESULT_FILE, to_json(done.to_json(), indent=1) + "\n")
    write_text(result.output / PAGE_FILE, done.to_markdown())
    return done


def _with_rows(study: Study, only: Sequence[str]) -> Study:
    """The study with the rows that are named, in its order."""
    if not only:
        return study
    names = {row.name.lower(): row.name for row in study.rows}
    for wanted in only:
        if wanted.lower() not in names:
            raise ConfigError(
                f"unknown row {wanted!r}. {closest(wanted, names.values())} All rows: {', '.join(names.values())}."
            )
    chosen = {names[wanted.lower()] for wanted in only}
    base = study.base if study.base in chosen else ""
    return replace(study, rows=tuple(row for row in study.rows if row.name in chosen), base=base)


def _with_source(study: Study, source: str | Path | None, scale: Scale) -> Study:
    """The study with windows over somebody's videos and pictures instead of drawn objects."""
    if source is None:
        return study
    if scale != "demo":
        raise ConfigError("windows over videos and pictures (--from) are for demo scale. Leave one of them out.")
    data = tuple(
        DataEntry(name="real pixels", settings=entry.settings, make=entry.make | _over_pictures(entry.make, source))
        for entry in study.data
    )
    return replace(study, name=f"{study.name}-real", data=data)


def _over_pictures(make: Mapping[str, Any], source: str | Path) -> dict[str, Any]:
    """What differs in data of windows: two classes with as many clips in all; four are not learned in so few steps."""
    pairs = len(make["pairs"])
    counts = {key: pairs * make[key] for key in ("train_per_class", "test_per_class")}
    return {"source": str(source), "pairs": ["horizontal"], "level": 0, "travel": 1.0, **counts}


def _with_all_overrides(study: Study, overrides: Sequence[str], scale: Scale) -> Study:
    """The study with settings of its runs, of synthetic data, and of the image weights."""
    made = [text for text in overrides if text.startswith(MAKE)]
    stills = [text for text in overrides if text.startswith(STILLS)]
    if (made or stills) and scale != "demo":
        raise ConfigError(f"{(made or stills)[0]!r} is for demo scale, where data and image weights make themselves.")
    rest = [text for text in overrides if text not in (*made, *stills)]
    given = flat_settings(parse_overrides(rest))
    shared = {
        key: value
        for key, value in given.items()
        if key in (*(f"model.options.{option}" for option in OF_THE_ENCODER), "preprocessing.size")
    }
    changes = parse_overrides([text.removeprefix(MAKE) for text in made])
    data = tuple(replace(entry, make={**entry.make, **changes}) if entry.make else entry for entry in study.data)
    of_stills: Mapping[str, Any] = flat_settings(parse_overrides([text.removeprefix(STILLS) for text in stills]))
    count = {"stills_per_epoch": of_stills["stills_per_epoch"]} if "stills_per_epoch" in of_stills else {}
    settings = shared | {key: value for key, value in of_stills.items() if key not in count}
    preparations = tuple(
        replace(entry, settings=flat_settings(entry.settings) | settings, **count) for entry in study.preparations
    )
    return with_overrides(replace(study, data=data, preparations=preparations), rest)


def _require_data(planned: Reproduction) -> None:
    """Passes where the paper's data set is where the recipes say.

    Raises:
        ConfigError: it is not there.
    """
    train = row_config(planned.study, planned.study.rows[0]).data.train
    if not Path(train).exists():
        raise ConfigError(
            f"{train} is not there, and {planned.table} is trained on {data_of(planned.table)}. Give the folder of the "
            "published data set with --set data.train=FOLDER (docs/data.md), or leave --data out for the demo scale. "
            "--plan shows rows and costs without data."
        )
