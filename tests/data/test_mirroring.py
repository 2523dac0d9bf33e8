import pytest

from kinescan.data.mirroring import mirrored_labels


def test_left_right_classes_of_something_something_are_swapped() -> None:
    classes = (
        "Pulling something from left to right",
        "Pulling something from right to left",
        "Pushing something from right to left",
        "Holding something",
        "Pushing something from left to right",
        "Turning the camera left while filming something",
        "Turning the camera right while filming something",
        "Letting something roll down a slanted surface",
        "Pulling two ends of something so that it separates into two pieces",
    )
    assert mirrored_labels(classes) == (1, 0, 4, 3, 2, 6, 5, 7, 8)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("left", "right"),
        ("Swiping Left", "Swiping Right"),
        ("turn_left", "turn_right"),
        ("TurnLeft", "TurnRight"),
        ("LEFT", "RIGHT"),
        ("moving leftwards", "moving rightwards"),
        ("clockwise", "counterclockwise"),
        ("turning hand clockwise", "turning hand counter-clockwise"),
        ("clockwise", "anticlockwise"),
    ],
)
def test_words_of_directions_are_known_in_many_forms(one: str, other: str) -> None:
    assert mirrored_labels([one, "else", other]) == (2, 1, 0)


def test_direction_without_an_opposite_has_no_mirror_image() -> None:
    assert mirrored_labels(["turn left", "go on", "turn it right or left"]) == (None, 1, None)


@pytest.mark.parametrize("text", ["brightening", "leftover", "upright row", "cleft", "Brightly", "up"])
def test_words_that_only_hold_a_direction_stay(text: str) -> None:
    assert mirrored_labels([text]) == (0,)
