import pytest

from kinescan.runtime.error_text import first_line, typed_line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cut at byte 3", "cut at byte 3"),
        ("\n\n  cut at byte 3 \nlog\nlog", "cut at byte 3"),
        ("Exception from src/core.cpp:42:\nCheck 'size' failed at src/xml.cpp:7:\nno such layer", "no such layer"),
        ("Exception from src/core.cpp:42:", "Exception from src/core.cpp:42:"),
        ("", "ValueError"),
    ],
)
def test_an_error_is_said_in_one_line(text: str, said: str) -> None:
    assert first_line(ValueError(text)) == said


@pytest.mark.parametrize(("text", "said"), [("\ncut\nlog", "ValueError: cut"), ("", "ValueError")])
def test_the_class_stands_before_what_the_error_says(text: str, said: str) -> None:
    assert typed_line(ValueError(text)) == said
