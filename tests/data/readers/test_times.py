import pytest

from kinescan.data.readers.times import is_time, parse_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("1.5", 1.5),
        ("1,5", 1.5),
        (".5", 0.5),
        ("12.", 12.0),
        ("1e2", 100.0),
        (" 2.25 s ", 2.25),
        ("3sec", 3.0),
        ("1:15", 75.0),
        ("01:15.25", 75.25),
        ("1:01:15", 3675.0),
        ("00:01:15,500", 75.5),
        ("90:00", 5400.0),
        ("-1.5", -1.5),
        ("\u22121.5", -1.5),
        ("-0:01.5", -1.5),
    ],
)
def test_times_of_every_form_are_seconds(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds, abs=1e-12)
    assert is_time(text)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "''"),
        ("nan", "finite"),
        ("inf", "finite"),
        ("-Infinity", "finite"),
        ("1:75", "59"),
        ("1:75:00", "59"),
        ("00:00:01:12", "frame number"),
        ("1.234,5", "thousands"),
        ("1,234.5", "thousands"),
        ("1m30s", "1m30s"),
        ("fall", "fall"),
        ("1;5", "1;5"),
        ("9" * 90 + "x", "9{40}\\.\\.\\."),
        ("0x10", "0x10"),
        ("9" * 400, "9{40}"),
        ("\u0661", "\u0661"),
    ],
)
def test_what_is_no_time_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse_seconds(text)
    assert not is_time(text)
