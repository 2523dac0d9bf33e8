"""Tables 5 to 9 of the PKS4 paper at demo scale: what each row scores, by seed, on drawn objects and over real pixels.

Run, again and again until it says "complete":
    OMP_NUM_THREADS=1 python benchmarks/pks4_tables.py --seconds 3000 --from FOLDER
Write what is there without running anything:   python benchmarks/pks4_tables.py --seconds 0

The runs are those of `kinescan reproduce table5` to `table9`, with and without --from, in runs/: seed by seed, so that
every row has its first seed before any has its second. Tables share runs: the whole model is a row of four of them.
Writes benchmarks/results/pks4_tables.json: means over seeds, differences to each table's base row in pairs of the same
seed, with Student's interval of 95 %, and how many pairs of rows stand in the paper's order; and raw/pks4_tables.json,
every run's score, which later runs of other seeds are added to, wherever they are made. A table of which fewer seeds
are there than were published stays as it is.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

import measure
from kinescan.studies import reproduce
from kinescan.studies.paper import paper_table, published, table_study
from kinescan.studies.statistics import paired_difference

NAME = "pks4_tables"
EARLIER = "tables as they were published before"
WORK = Path("runs")
TABLES = (5, 9, 7, 8, 6)
"""In order of value."""
KINDS = {"motion": "", "real pixels": "-real"}


def runs_of(table: int, kind: str) -> list[dict[str, Any]]:
    """The finished runs of a table's study, from its folder."""
    file = WORK / f"pks4-table{table}-demo{KINDS[kind]}" / "study.json"
    runs = json.loads(file.read_text())["runs"] if file.is_file() else []
    return [run for run in runs if "top1" in run["scores"]]


def with_published(runs: list[dict[str, Any]], published_runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs, and of those that were published the rows' seeds that are not among them."""
    here = {(run["row"], run["seed"]) for run in runs}
    return runs + [run for run in published_runs if (run["row"], run["seed"]) not in here]


def compact(run: Mapping[str, Any]) -> dict[str, Any]:
    """What is published of a run."""
    kept = ("row", "seed", "folder", "code", "cpu_seconds", "num_training", "steps", "epochs", "best_epoch")
    return {key: run[key] for key in kept} | {
        "scores": {"top1": run["scores"]["top1"]},
        "environment": {"cpu": run["environment"]["cpu"]},
    }


def scores_of(runs: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Row -> seed -> top-1."""
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        found.setdefault(run["row"], {})[run["seed"]] = run["scores"]["top1"]
    return found


def summary(row: str, base: str, scores: Mapping[str, Mapping[int, float]], minutes: list[float]) -> dict[str, Any]:
    """One row of one table."""
    values = list(scores[row].values())
    found: dict[str, Any] = {"seeds": len(values), "top1": round(statistics.mean(values), 4)}
    if len(values) > 1:
        found["standard_deviation"] = round(statistics.stdev(values), 4)
    both = [seed for seed in scores[row] if seed in scores.get(base, {})]
    if row != base and both:
        difference = paired_difference([scores[row][seed] for seed in both], [scores[base][seed] for seed in both])
        found["to_base"] = round(difference.mean, 4)
        if difference.n > 1:
            found |= {"to_base_low": round(difference.low, 4), "to_base_high": round(difference.high, 4)}
    found["minutes_of_one_core"] = round(statistics.median(minutes), 2)
    return found


def order(scores: Mapping[str, Mapping[int, float]], theirs: Mapping[str, float]) -> dict[str, int]:
    """Pairs of rows that stand in the paper's order, by the means over the seeds that both have."""
    pairs = [pair for pair in combinations(scores, 2) if theirs[pair[0]] != theirs[pair[1]]]
    kept = 0
    for one, other in pairs:
        both = [seed for seed in scores[one] if seed in scores[other]]
        gap = sum(scores[one][seed] - scores[other][seed] for seed in both)
        kept += gap * (theirs[one] - theirs[other]) > 0
    return {"pairs": len(pairs), "in_the_order_of_the_paper": kept}


def settings_of(tables: Sequence[str], published_before: dict[str, Any]) -> dict[str, Any]:
    """Under which settings these tables were published first, which need not be those of the other tables."""
    earlier = published_before.get(EARLIER)
    if earlier and set(tables) <= set(earlier["names"]):
        return settings_of(tables, earlier["settings"])
    return published_before


def publish() -> None:
    """Writes the result from the folders of the studies and from what was published before."""
    results: dict[str, Any] = {}
    orders: dict[str, Any] = {}
    all_runs: list[dict[str, Any]] = []
    raw: dict[str, list[dict[str, Any]]] = {}
    kept: list[str] = []
    before, raw_before = read_published(NAME), read_published(f"raw/{NAME}")
    for table in sorted(TABLES):
        study, paper = table_study(f"table{table}", "demo"), paper_table(f"table{table}")
        for kind in KINDS:
            name = f"table {table}, {kind}"
            runs = with_published([compact(run) for run in runs_of(table, kind)], raw_before.get(name, []))
            scores = scores_of(runs)
            earlier = before.get("results", {}).get(name, {})
            if runs:
                raw[name] = sorted(runs, key=lambda run: (run["row"], run["seed"]))
            if fewest_seeds(earlier, [row.name for row in study.rows]) > min(
                (len(scores.get(row.name, ())) for row in study.rows), default=0
            ):
                results[name], orders[name] = earlier, before["results"]["pairs of rows"][name]
                kept.append(name)
                continue
            if not scores:
                continue
            all_runs += runs
            theirs = {row.name: published(paper, row.name)["top1"] for row in study.rows}
            minutes = {row: [run["cpu_seconds"] / 60 for run in runs if run["row"] == row] for row in scores}
            results[name] = {
                row.name: summary(row.name, study.base_row, scores, minutes[row.name])
                | {"top1_of_the_paper": theirs[row.name] / 100}
                for row in study.rows
                if row.name in scores
            }
            orders[name] = order({row.name: scores[row.name] for row in study.rows if row.name in scores}, theirs)
    file = measure.RESULTS / "raw" / f"{NAME}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(raw, indent=1) + "\n")
    measure.write_result(
        NAME,
        seed=0,
        n=most_seeds(results),
        settings={
            EARLIER: {"names": kept, "settings": settings_of(kept, before["settings"])} if kept else None,
            "commits of the runs": sorted({run["code"] for run in all_runs}),
            "distinct runs": len({run["folder"] for run in all_runs}),
            "processors of the runs": sorted({run["environment"]["cpu"] for run in all_runs}),
            "training clips": sorted({run["num_training"] for run in all_runs}),
            "steps": sorted({run["steps"] for run in all_runs}),
            "scored checkpoint": scored(all_runs),
            "made by": "kinescan reproduce table5 (6, 7, 8, 9), with and without --from FOLDER",
        },
        results={**results, "pairs of rows": orders},
    )


def scored(runs: list[dict[str, Any]]) -> str:
    """Which checkpoint the scores are of: the last one where nothing was chosen on test clips."""
    last = all(run["best_epoch"] in (None, run["epochs"]) and run["epochs"] == 1 for run in runs)
    return "the last, after the only evaluation: test clips chose none" if last else "the best of several on test clips"


def read_published(name: str) -> dict[str, Any]:
    """A committed result; empty where there is none."""
    file = measure.PUBLISHED / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def fewest_seeds(table: Mapping[str, Mapping[str, Any]], rows: list[str]) -> int:
    """Of a row of a published table."""
    return min((table.get(row, {}).get("seeds", 0) for row in rows), default=0)


def most_seeds(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> int:
    """Of any row."""
    return max((row["seeds"] for table in results.values() for row in table.values()), default=0)


def calls(source: str | None, seeds: list[int], tables: list[int]) -> Iterator[tuple[int, str | None, tuple[int, ...]]]:
    """What is run, in order: every table with the first seed, then with the first two, and so on."""
    for last in range(1, len(seeds) + 1):
        for table in tables:
            yield table, None, tuple(seeds[:last])
            if source is not None:
                yield table, source, tuple(seeds[:last])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3000, help="Begin no table after this time.")
    parser.add_argument("--from", dest="source", help="Folder of videos and pictures for real pixels.")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--tables", type=int, nargs="*", default=list(TABLES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started, complete = time.monotonic(), True
    for table, source, seeds in calls(arguments.source, arguments.seeds, arguments.tables):
        if time.monotonic() - started >= arguments.seconds:
            complete = False
            break
        reproduce.reproduce(f"table{table}", source=source, seeds=seeds, memory=False, any_code=True)
    publish()
    print("complete" if complete else "not complete: run it again")


if __name__ == "__main__":
    main()
