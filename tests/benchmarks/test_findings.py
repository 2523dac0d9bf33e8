from typing import Any

import pytest


def timing(cpu: float, wall: float) -> dict[str, float]:
    return {"wall_seconds": wall, "cpu_seconds": cpu, "cpu_seconds_min": cpu, "repetitions": 3}


@pytest.fixture
def findings(script: Any) -> Any:
    return script("findings")


def test_findings_of_timings_are_a_table_with_what_is_known_beside_them(findings: Any) -> None:
    values = {
        "forward": {
            "tracks": 1568,
            "times": {"ours": timing(0.4, 0.5), "eager_loop": timing(9.0, 13.0)},
            "times_faster_than": {"eager_loop": 22.5},
            "peak_extra_bytes": {"ours": 2**20, "eager_loop": 3 * 2**30},
            "parity_max_difference": 1e-7,
        },
    }
    (table,) = findings.findings(values)
    assert (table.heading, table.facts) == ("forward", ("tracks 1,568",))
    assert table.columns == ("CPU time", "wall time", "over ours", "peak extra")
    assert table.rows == {
        "ours": ("400 ms", "500 ms", "1.00x", "1.0 MiB"),
        "eager loop": ("9 s", "13 s", "22.50x", "3.00 GiB"),
    }


def test_findings_of_numbers_take_the_keys_that_most_have(findings: Any) -> None:
    values = {
        "memory": {
            "vit": {"weight_bytes": 2**20, "rate": 0.5, "odd": 1},
            "peer": {"weight_bytes": 2**21, "rate": 0.25},
            "other": {"weight_bytes": 2**22},
        }
    }
    (table,) = findings.findings(values)
    assert (table.heading, table.columns) == ("memory", ("weight", "rate"))
    assert table.rows == {"vit": ("1.0 MiB", "0.5"), "peer": ("2.0 MiB", "0.25"), "other": ("4.0 MiB", "")}


def test_findings_of_candidates_with_more_inside_show_their_numbers(findings: Any) -> None:
    values = {
        "base": {"looks": 0.5},
        "full": {"accuracy": 0.65, "saved_megabytes": 0.86, "by_rate": {"0.1": 0.6}},
        "prompts": {"accuracy": 0.56, "saved_megabytes": 0.02, "by_rate": {"0.1": 0.5}},
    }
    (table,) = findings.findings(values)
    assert table.columns == ("accuracy", "saved megabytes")
    assert table.rows == {"full": ("0.65", "0.86"), "prompts": ("0.56", "0.02")}


def test_findings_of_sizes_with_several_timings_name_each(findings: Any) -> None:
    values = {f"{n} frames": {"ours": {"forward": timing(n, n), "peak_bytes": n}} for n in (8, 16, 32)}
    assert [(found.quantity, found.lines) for found in findings.findings(values)] == [
        ("forward_cpu_seconds", {"ours": (8, 16, 32)}),
        ("peak_bytes", {"ours": (8, 16, 32)}),
    ]


def test_findings_without_a_candidate_of_ours_say_how_much_faster(findings: Any) -> None:
    values = {"latency": {"eager": timing(2, 2), "openvino": timing(1, 1)}, "times_faster": {"openvino": 2.0}}
    (table,) = findings.findings(values)
    assert table.columns == ("CPU time", "wall time", "times faster")
    assert table.rows["openvino"] == ("1 s", "1 s", "2")


@pytest.mark.parametrize(
    "values",
    [
        {f"{name}, {n} frames": timing(n * t, 0) for name, t in (("ours", 0.1), ("peer", 0.2)) for n in (8, 64, 16)},
        {f"{n} frames": {"ours": timing(n * 0.1, 0), "peer": timing(n * 0.2, 0)} for n in (8, 64, 16)},
        {f"{n}_frames": {"ours": {"cpu_seconds": n * 0.1}, "peer": {"cpu_seconds": n * 0.2}} for n in (64, 8, 16)},
    ],
)
def test_findings_of_sizes_are_curves_in_ascending_order(findings: Any, values: dict[str, Any]) -> None:
    (curves,) = findings.findings({"growth": {**values, "ratio": 8.1}})
    assert (curves.heading, curves.facts, curves.x_label) == ("growth", ("ratio 8.1",), "frames")
    assert curves.sizes == (8, 16, 64)
    assert curves.lines == {
        "ours": pytest.approx((0.8, 1.6, 6.4)),
        "peer": pytest.approx((1.6, 3.2, 12.8)),
    }


def test_findings_of_sizes_leave_out_what_was_not_measured(findings: Any) -> None:
    values = {"8 frames": {"ours": timing(1, 1), "peer": timing(2, 1)}, "64 frames": {"ours": timing(8, 1)}}
    (curves,) = findings.findings(values)
    assert curves.lines == {"ours": (1, 8), "peer": (2, None)}


def test_findings_of_sizes_give_a_curve_for_each_number(findings: Any) -> None:
    values = {f"{n} frames": {"ours": {"peak_bytes": n, "ratio": 1.0}} for n in (1, 2, 3)}
    assert [curves.quantity for curves in findings.findings({"x": values})] == ["peak_bytes", "ratio"]


def test_findings_of_one_number_for_each_candidate_and_size_are_a_line_for_each(findings: Any) -> None:
    values = {"time_over": {"forward": {f"{n} frames": {"vit": n / 8, "timesformer": 0.5} for n in (8, 16, 32)}}}
    (curves,) = findings.findings(values)
    assert (curves.heading, curves.quantity) == ("time over, forward", "value")
    assert curves.lines == {"vit": (1, 2, 4), "timesformer": (0.5, 0.5, 0.5)}
    (single,) = findings.findings({"ratios": {"8 frames": 1.5, "16 frames": 2.5}})
    assert single.lines == {"value": (1.5, 2.5)}


def test_findings_of_candidates_that_have_a_size_in_their_name_are_a_table(findings: Any) -> None:
    values = {
        "op": {"4 heads, 64 queries, 576 keys": {"ratio": 1.3}, "16 heads, 196 queries, 4292 keys": {"ratio": 1.1}}
    }
    (table,) = findings.findings(values)
    assert table.rows == {"4 heads, 64 queries, 576 keys": ("1.3",), "16 heads, 196 queries, 4292 keys": ("1.1",)}


def test_findings_of_lists_are_curves_over_the_ascending_one(findings: Any) -> None:
    values = {"frames_seen": [8, 16, 32], "milliseconds": {"full": [1.0, 2.0, 3.0]}, "stats": {"full": {"a": 1}}}
    (curves,) = findings.findings(values)
    assert (curves.x_label, curves.quantity, curves.lines) == ("frames seen", "milliseconds", {"full": (1.0, 2.0, 3.0)})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("cpu_seconds", 12.34, "12.3 s"),
        ("cpu_seconds", 0.01058, "10.6 ms"),
        ("cpu_seconds", 4.2e-5, "42 µs"),
        ("peak_bytes", 3 * 2**29, "1.50 GiB"),
        ("spill_bytes", 0, "0 B"),
        ("shared_bytes", 1536, "1.5 KiB"),
        ("tracks", 1568, "1,568"),
        ("ratio", 12345.6, "12,346"),
        ("ratio", 0.123456, "0.123"),
        ("best", "peer", "peer"),
        ("milliseconds", None, "-"),
    ],
)
def test_said_gives_a_value_with_its_unit(findings: Any, key: str, value: Any, expected: str) -> None:
    assert findings.said(key, value) == expected
