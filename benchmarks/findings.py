"""What of a result file a reader wants to see: tables of candidates side by side, and curves over a size.

Nothing here knows a benchmark by name. It goes by shape alone, so that a new result shows up readably by itself:

    {"ours": {timing or numbers}, "peer": {the same keys}}                        a table, one row a candidate
    {"times": {"ours": ..., "peer": ...}, "peak_bytes": {"ours": 1, "peer": 2}}   the same, one column more
    {"8 frames": ..., "16 frames": ...} or {"ours, 8 frames": ...}                a column a size; from three, a curve
    {"frames_seen": [8, 16, 32], "milliseconds": {"ours": [...], "peer": [...]}}  a curve
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

OURS = ("ours", "kinescan", "pks4", "ssp", "statekv")
"""How names of our own candidates begin; the others' times are said as multiples of theirs."""
TIMES = {"wall_seconds", "cpu_seconds", "device_seconds"}
WRAPPERS = ("times", "candidates")
"""Keys that only hold the candidates of what is around them."""
HIDDEN = ("parity", "error", "commit", "aims", "repetitions", "stats")
"""What is not a finding: it stands in the full list."""
SIZED = re.compile(r"(?:(?P<name>.+), )?(?P<size>\d+)[ _]?(?P<unit>[a-z_ ]*)")
SPREAD = ("lowest", "highest")
"""Curves of these say how sure another one is: they stand in the full list."""
BYTES = re.compile(r"(^|[_ ])bytes($|_)")
MOST_SCALARS = 8


@dataclass(frozen=True)
class Table:
    """Candidates side by side.

    Attributes:
        heading: where in the results, in words.
        facts: what else is said there, as "name value".
        columns: names of the columns behind the candidate's.
        rows: candidate -> cell for each column; "" where there is none.
    """

    heading: str
    facts: tuple[str, ...]
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Curves:
    """Numbers of several candidates over a size.

    Attributes:
        heading: where in the results, in words.
        facts: what else is said there, as "name value".
        x_label: the size, such as "frames".
        quantity: the key of the numbers; tells their unit.
        sizes: ascending.
        lines: candidate -> a number for each size; None where it was not measured.
    """

    heading: str
    facts: tuple[str, ...]
    x_label: str
    quantity: str
    sizes: tuple[float, ...]
    lines: Mapping[str, tuple[float | None, ...]]


Finding = Table | Curves


def findings(values: Mapping[str, Any], heading: str = "") -> Iterator[Finding]:
    """Every table and curve in a mapping, outermost first."""
    sizes = _by_size(values)
    if sizes:
        yield from _curves_of_sizes(values, sizes, heading)
    elif _is_group(values):
        yield _table({}, values, {}, heading)
        return
    lists = {} if sizes else dict(_curves_of_lists(values, heading))
    yield from lists.values()
    beside = {
        key: value
        for key, value in values.items()
        if _shown(key) and isinstance(value, Mapping) and key not in lists and not (sizes and _sized(key))
    }
    wrapped = any(_is_group(value) and key in WRAPPERS for key, value in beside.items())
    if not (sizes or wrapped or any(not is_flat(value) for value in beside.values())):
        yield from _facts_alone(values, heading)
    for key, value in beside.items():
        if _is_group(value) and _shown(key):
            columns = {other: numbers for other, numbers in beside.items() if _belongs(other, numbers, value)}
            around = values if key in WRAPPERS else value
            yield _table(around, value, columns, heading if key in WRAPPERS else _join(heading, key))
        elif not is_flat(value) or _by_size(value):
            yield from findings(value, _join(heading, key))


def is_timing(value: Any) -> bool:
    """Whether this is how long something took, and not a row of results of which seconds are one."""
    return isinstance(value, Mapping) and bool(value.keys() & TIMES) and "accuracy" not in value


def is_flat(value: Any) -> bool:
    """Whether this is a mapping of numbers and texts."""
    return isinstance(value, Mapping) and bool(value) and all(not isinstance(v, Mapping | list) for v in value.values())


def words(key: str) -> str:
    """A key as a reader sees it."""
    return key.replace("_", " ")


def said(key: str, value: Any) -> str:
    """A value with the unit that its key names, short."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if key.endswith(("_seconds", "seconds_per_view", "seconds_per_clip", "_seconds_min", "_seconds_max")):
        return (
            f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms" if value >= 1e-3 else f"{1e6 * value:.3g} µs"
        )
    if BYTES.search(key):
        if value < 2**20:
            return f"{value / 2**10:.1f} KiB" if value >= 2**10 else f"{value:,} B"
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _table(around: Mapping[str, Any], group: Mapping[str, Any], columns: Mapping[str, Any], heading: str) -> Table:
    group = {key: _scalar_part(value) for key, value in group.items() if _shown(key) and isinstance(value, Mapping)}
    if all(is_timing(value) for value in group.values()):
        headers, cells = _timing_cells(group)
    else:
        keys = list(dict.fromkeys(key for value in group.values() for key in value if _shown(key)))
        # What only few have is said in the full list.
        keys = [key for key in keys if 2 * sum(key in value for value in group.values()) >= len(group)]
        headers = [words(key.removesuffix("_seconds").removesuffix("_bytes")) for key in keys]
        cells = {
            name: [said("ratio" if name == "ratios" else key, value[key]) if key in value else "" for key in keys]
            for name, value in group.items()
        }
    for key, numbers in columns.items():
        headers.append(words(key.removesuffix("_bytes")))
        for name, row in cells.items():
            row.append(said(key, numbers[name]) if name in numbers else "")
    rows = {words(name): tuple(row) for name, row in cells.items() if any(row)}
    return Table(heading, tuple(_facts(around)), tuple(headers), rows)


def _timing_cells(group: Mapping[str, Mapping[str, float]]) -> tuple[list[str], dict[str, list[str]]]:
    kinds = [kind for kind in ("device", "cpu", "wall") if all(f"{kind}_seconds" in value for value in group.values())]
    cells = {name: [said("_seconds", value[f"{kind}_seconds"]) for kind in kinds] for name, value in group.items()}
    headers = [{"cpu": "CPU time", "wall": "wall time", "device": "device time"}[kind] for kind in kinds]
    ours = next((name for name in group if name.startswith(OURS)), None)
    if ours is not None and len(group) > 1 and kinds:
        key = f"{kinds[0]}_seconds"
        headers.append("over ours")
        for name, value in group.items():
            cells[name].append(f"{value[key] / group[ours][key]:.2f}x")
    return headers, cells


def _facts(values: Mapping[str, Any]) -> Iterator[str]:
    scalars = {key: value for key, value in values.items() if _shown(key) and not isinstance(value, Mapping | list)}
    for key, value in list(scalars.items())[:MOST_SCALARS]:
        yield f"{words(key.removesuffix('_bytes'))} {said(key, value)}"


def _facts_alone(values: Mapping[str, Any], heading: str) -> Iterator[Table]:
    facts = tuple(_facts(values))
    if facts and heading:
        yield Table(heading, facts, (), {})


def _by_size(values: Mapping[str, Any]) -> dict[float, dict[str, Any]]:
    """Size -> what was found at it, by candidate; empty where keys do not name at least two sizes of one unit."""
    found: dict[float, dict[str, Any]] = {}
    units = set()
    for key, value in values.items():
        match = _sized(key)
        if match is None:
            if isinstance(value, Mapping) and _shown(key):
                return {}
            continue
        if isinstance(value, list):
            continue
        units.add(match["unit"])
        heading = found.setdefault(float(match["size"]), {})
        if match["name"] or not isinstance(value, Mapping) or (is_flat(value) and any(map(_has_unit, value))):
            heading[match["name"] or ""] = value
        else:
            heading |= value
    names = [name for heading in found.values() for name in heading]
    # Candidates that each stand at a size of their own are no curve.
    if len(found) < 2 or len(units) != 1 or "" in units or len(set(names)) == len(names):
        return {}
    return dict(sorted(found.items()))


def _curves_of_sizes(
    values: Mapping[str, Any], sizes: Mapping[float, Mapping[str, Any]], heading: str
) -> Iterator[Curves]:
    unit = next(match["unit"] for key in values if (match := _sized(key))) or "size"
    flat: dict[str, dict[str, list[float | None]]] = {}
    for column, found in enumerate(sizes.values()):
        for name, value in found.items():
            for quantity, number in _quantities(name, value):
                line = flat.setdefault(quantity, {}).setdefault(name, [None] * len(sizes))
                line[column] = number
    facts = tuple(_facts(values))
    for quantity, lines in flat.items():
        frozen = {
            words(name) or ("time" if quantity.endswith("_seconds") else words(quantity)): tuple(line)
            for name, line in lines.items()
        }
        several = ": ".join(filter(None, (heading, words(quantity)))) if len(flat) > 1 else heading
        yield Curves(several, facts, words(unit), quantity, tuple(sizes), frozen)
        facts = ()


def _quantities(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers of a candidate at one size; of a timing, the time that counts."""
    if is_timing(value):
        kind = next(kind for kind in ("device_seconds", "cpu_seconds", "wall_seconds") if kind in value)
        yield kind, value[kind]
    elif is_flat(value):
        numbers = ((key, number) for key, number in value.items() if _shown(key))
        yield from ((key, number) for key, number in numbers if isinstance(number, int | float))
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if _shown(key) and is_timing(inner):
                kind, seconds = next(_quantities(key, inner))
                yield f"{key}_{kind}", seconds
            elif _shown(key) and isinstance(inner, int | float):
                yield key, inner
    elif isinstance(value, int | float) and _shown(name):
        yield "value", value


def _curves_of_lists(values: Mapping[str, Any], heading: str) -> Iterator[tuple[str, Curves]]:
    """Curves over the first ascending list of numbers, of mappings of lists as long as it."""
    axis = next((key for key, value in values.items() if _ascending(value)), None)
    if axis is None:
        return
    sizes = values[axis]
    for key, lines in values.items():
        if (
            isinstance(lines, Mapping)
            and lines
            and not any(word in key for word in SPREAD)
            and all(isinstance(line, list) and len(line) == len(sizes) for line in lines.values())
        ):
            frozen = {words(name): tuple(line) for name, line in lines.items()}
            yield key, Curves(_join(heading, key), (), words(axis), key, tuple(sizes), frozen)


def _ascending(value: Any) -> bool:
    if not isinstance(value, list) or len(value) < 3 or not all(isinstance(v, int | float) for v in value):
        return False
    return all(left < right for left, right in itertools.pairwise(value))


def _is_group(value: Any) -> bool:
    """Whether this holds candidates, each with the same kind of numbers."""
    if not isinstance(value, Mapping) or _by_size(value):
        return False
    candidates = {key: inner for key, inner in value.items() if _shown(key) and isinstance(inner, Mapping)}
    if len(candidates) < 2 or not all(map(_is_candidate, candidates.values())):
        return False
    keys = [key for inner in candidates.values() for key in _scalar_part(inner)]
    shared = any(3 * keys.count(key) >= 2 * len(candidates) for key in set(keys))
    return shared and not any(set(inner) == set(candidates) - {name} for name, inner in candidates.items())


def _is_candidate(value: Mapping[str, Any]) -> bool:
    """Whether this is numbers, with at most plain lists and mappings of numbers beside them."""
    beside = [inner for inner in value.values() if isinstance(inner, Mapping)]
    return bool(_scalar_part(value)) and all(is_flat(inner) and not is_timing(inner) for inner in beside)


def _scalar_part(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: inner for key, inner in value.items() if not isinstance(inner, Mapping | list)}


def _belongs(key: str, value: Any, group: Mapping[str, Any]) -> bool:
    """Whether a mapping has one number each for candidates of a group, and says more than their times do."""
    if not isinstance(value, Mapping) or not all(map(is_timing, group.values())):
        return False
    said_already = "faster" in key and any(name.startswith(OURS) for name in group)
    return not said_already and _scalars(value) and set(value) <= set(group)


def _scalars(value: Mapping[str, Any]) -> bool:
    return bool(value) and all(isinstance(v, int | float) for v in value.values())


def _has_unit(key: str) -> bool:
    """Whether a key names a quantity, and not a candidate."""
    return key.endswith(("seconds", "bytes", "ratio"))


def _sized(key: str) -> re.Match[str] | None:
    return SIZED.fullmatch(key)


def _shown(key: str) -> bool:
    return not any(word in key for word in HIDDEN)


def _join(heading: str, key: str) -> str:
    return f"{heading}, {words(key)}" if heading else words(key)
