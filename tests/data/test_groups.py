import pytest

from kinescan.data.groups import check_group, column_of, make_grouping
from kinescan.errors import ConfigError


def test_a_pattern_names_the_group_within_a_path() -> None:
    find = make_grouping(r"P(\d+)_")
    assert [find(name) for name in ("cam1/P03_tea.avi", "P12_x.mp4")] == ["03", "12"]
    with pytest.raises(ConfigError, match=r"'Q1.mp4'"):
        find("Q1.mp4")
    with pytest.raises(ConfigError, match=r"'P_.mp4'"):
        make_grouping(r"P(\d*)_")("P_.mp4")


def test_a_column_is_read_by_the_reader_of_the_list() -> None:
    assert column_of("column the person ") == "the person"
    assert make_grouping("column person")("a.mp4") == ""
    assert make_grouping("")("a.mp4") == ""


@pytest.mark.parametrize(
    ("group", "message"),
    [("(", "expression"), ("P", "0 groups"), ("(a)(b)", "2 groups"), ("column ", "column")],
)
def test_what_is_no_group_is_refused(group: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_group(group)
    check_group("")
    check_group("column a")
    check_group("(?:x|y)(z)")
