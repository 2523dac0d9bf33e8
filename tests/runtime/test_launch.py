import pytest

from kinescan.runtime.launch import is_main_process, rank, was_launched, world_size


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1, True)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, (2, 4, False)),
        ({"RANK": "", "WORLD_SIZE": "x"}, (0, 1, True)),
    ],
)
def test_what_the_launcher_says(
    variables: dict[str, str], expected: tuple[int, int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (rank(), world_size(), is_main_process()) == expected


def test_a_launcher_of_one_process_is_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert not was_launched()
    monkeypatch.setenv("RANK", "0")
    assert was_launched()
