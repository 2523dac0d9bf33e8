from pathlib import Path

import pytest
from tests.mentions import mentions

from kinescan.data import read_items
from kinescan.data.listing import choose_layout, list_videos
from kinescan.errors import ConfigError

BOTH = [("a.mp4", "jump"), ("b.mp4", "run")]


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A list beside six empty files."""
    (tmp_path / "sub").mkdir()
    for name in ("a.mp4", "b.mp4", "x, y.mp4", "sub/d.mp4", "#1.mp4", "\u00fc.mp4"):
        (tmp_path / name).touch()
    return tmp_path / "list.csv"


def read(file: Path, text: str) -> list[tuple[str, str]]:
    file.write_text(text, encoding="utf-8", newline="")
    items, classes = read_items(file)
    return [(item.video_id, classes[item.label]) for item in items]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Video-Path;Class Name\na.mp4;jump\nb.mp4;run\n", BOTH),
        ("label,path\njump,a.mp4\nrun,b.mp4\n", BOTH),
        (",path,label\n0,a.mp4,jump\n1,b.mp4,run\n", BOTH),
        ('# my list, with a comma and a "\na.mp4;jump\n  # b\nb.mp4;run\n', BOTH),
        ("# label,path\njump,a.mp4\nrun,b.mp4\n", BOTH),
        ("sep=;\na.mp4;jump\nb.mp4;run\n", BOTH),
        ("a.mp4,jump\rb.mp4,run\r", BOTH),
        ("\n\na.mp4,jump,\n\nb.mp4,run,\n", BOTH),
        ("a.mp4,jump\u00a0\n ./b.mp4 , run\n", BOTH),
        ('"a.mp4" jump\nb.mp4 run\n', BOTH),
        ("a.mp4 long jump\nb.mp4 run\n", [("a.mp4", "long jump"), ("b.mp4", "run")]),
        ("x, y.mp4\tjump\nb.mp4\trun\n", [("x, y.mp4", "jump"), ("b.mp4", "run")]),
        ("x, y.mp4,jump\nb.mp4,run\n", [("x, y.mp4", "jump"), ("b.mp4", "run")]),
        ("sub\\d.mp4,jump\nb.mp4,run\n", [("sub/d.mp4", "jump"), ("b.mp4", "run")]),
        ("#1.mp4,jump\nb.mp4,run\n", [("#1.mp4", "jump"), ("b.mp4", "run")]),
        ("a.mp4,01\nb.mp4,1.0\nsub/d.mp4,00\n", [("a.mp4", "1"), ("b.mp4", "1"), ("sub/d.mp4", "0")]),
        ("a.mp4;1,0\nb.mp4;1\nsub/d.mp4;0,00\n", [("a.mp4", "1"), ("b.mp4", "1"), ("sub/d.mp4", "0")]),
        ("path,label,class_id\na.mp4,jump,4\nb.mp4,run,2\n", BOTH),
        ("\ufeffa.mp4,jump\n\ufeffb.mp4,run\n", BOTH),
        ("u\u0308.mp4,jump\nb.mp4,run\n", [("\u00fc.mp4", "jump"), ("b.mp4", "run")]),
        ("a.mp4,nan\nb.mp4,pita\n", [("a.mp4", "nan"), ("b.mp4", "pita")]),
    ],
)
def test_lists_of_many_programs_are_read(listed: Path, text: str, expected: list[tuple[str, str]]) -> None:
    assert read(listed, text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("archivo,clase\na.mp4,jump\nb.mp4,run\n", "line 1: 'archivo,clase' .*header.* path, .* label, "),
        ("nr,klasse\n17,3\n18,4\n", "line 1: 'nr,klasse' .*header"),
        ("id,label\n17,jump\n18,run\n", "line 1: 'id,label' .*header"),
        ("path,file,label,label\na.mp4,1,jump,x\n", "line 1.*'label'"),
        ("path,label,category\na.mp4,jump,up\nb.mp4,run,up\n", "line 1: the columns 'label' and 'category'"),
        ("a.mp4,jump\nb.mp4;run\n", "line 1.*separated"),
        ('{"path": "a.mp4", "label": "jump"}\n', "JSON"),
        ('[\n ["a.mp4", "jump"]\n]', "JSON"),
        ("http://me:hidden@host/a.mp4,jump\nb.mp4,run\n", r"line 1: http://\*\*\*@host/a.mp4"),
        ("a.mp4;1,5\nb.mp4;2\n", "line 1: label '1,5'"),
        ("path,label,split\na.mp4,jump,test\nb.mp4,run,val\n", "parts"),
        ("jump,a.mp4\nrun,b.mp4\n", "line 1.*second.*label,path"),
        ("a.mp4,Up, then down\nb.mp4,run\n", "line 1: 3"),
        ("a.mp4,120,0\nb.mp4,100,1\n", "line 1: 3"),
        ("a.mp4 120 0\nb.mp4 100 1\n", "line 1: 2"),
        ("a.mp4,jump\nsum,2\nb.mp4,run\n", "line 2: 'sum'"),
        ('a.mp4,"jump\nb.mp4,run\n', "line 1.*opened"),
        ("a.mp4,jump\nsub/../a.mp4,run\nb.mp4,run\n", "labels.*lines 1.*2"),
        ("a.mp4,1\nb.mp4,run\n", "'1'.*1, 'run'.*2"),
        ("a.mp4,0\nb.mp4,-1\n", "line 2: label '-1'"),
        ("a.mp4,0\nb.mp4,nan\n", "line 2: label 'nan'"),
        ("a.mp4,0.5\nb.mp4,1\n", "line 1: label '0.5'"),
        ("a.mp4,0\nb.mp4,1000000000\n", "line 2: label 1000000000 .* at most 100,000 classes"),
        ("a.mp4,20240101\nb.mp4,20240102\n", "line 2: label 20240102 .* at most 100,000 classes"),
        ("a.mp4,0\nb.mp4," + "9" * 900, "line 2: label 9{40}"),
        ("a.mp4,0\nb.mp4,5000\n", "line 2: label 5000 .* 2"),
        ("a.mp4," + "x" * 140_000, "line 1: .*131072"),
        ("a.mp4," + "x" * 5000, "line 1.*5,000 letters"),
        ("y" * 5000 + ".mp4,jump", "line 1.*5,004 letters"),
        ("a.mp4,ju\0mp\n", "NUL"),
        ("a.mp4,x\nb.mp4,ju\0mp\nc.mp4,x\n", r"line 2: .*NUL[^:]*$"),
        ("a.mp4,x\n" * 40 + "b.mp4,\0\n" * 12, r"line 41: .*NUL.* 11 .* 42, 43, 44, .* 50, \.\.\."),
        ("# nothing\n", "lists"),
    ],
)
def test_lists_that_cannot_be_understood_are_refused_with_the_line(listed: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"list.csv.*{message}"):
        read(listed, text)


def test_a_number_of_classes_has_a_limit(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinescan.data.class_numbers.MAX_CLASSES", 1)
    with pytest.raises(ConfigError, match=r"2.*classes.*1"):
        read(listed, "a.mp4,jump\nb.mp4,run\n")


def test_gaps_in_numbers_lookalikes_and_missing_files_are_said(listed: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(listed, "a.mp4,1\nlost.mp4,3\n") == [("a.mp4", "1"), ("lost.mp4", "3")]
    assert mentions(caplog.text, "2", "4", "'0', '2'")
    assert "start from 0" in caplog.text
    assert mentions(caplog.text, "videos", "2")
    assert list_videos(listed).missing == ("lost.mp4",)
    caplog.clear()
    read(listed, "a.mp4,Run\nb.mp4,run\n")
    assert mentions(caplog.text, "'Run'", "'run'")
    read(listed, "a.mp4,run\u200b\nb.mp4,run\n")
    assert mentions(caplog.text, "'run'", "'run\\u200b'")


def test_numbers_of_every_form_fit_given_classes(listed: Path) -> None:
    listed.write_text("a.mp4,01\nb.mp4,1.0\n")
    assert [item.label for item in read_items(listed, classes=["x", "y"])[0]] == [1, 1]
    assert [item.label for item in read_items(listed, classes=["1", "0"])[0]] == [0, 0]
    with pytest.raises(ConfigError, match=r"line 1: label '01' .*Allowed: 0 to 0"):
        read_items(listed, classes=["x"])


def test_a_column_of_parts_divides_a_list(listed: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "path,label,split\na.mp4,jump,train\nb.mp4,run,Train\nsub/d.mp4,jump,val\n#1.mp4,run,test\n"
    assert read(listed, text) == BOTH
    assert mentions(caplog.text, "1", "videos")
    layout = choose_layout(listed)
    assert (layout.has_parts, layout.test_name) == (True, "val")
    assert [item.video_id for item in read_items(listed, part="test")[0]] == ["sub/d.mp4"]
    with pytest.raises(ConfigError, match="line 4: 'left'"):
        read(listed, text.replace(",val", ",left"))
    # of one side alone, the column divides nothing
    assert len(read(listed, text.replace("val", "train").replace("test", "train"))) == 4
    assert not choose_layout(listed).has_parts
    listed.write_text("path,label,split\na.mp4,jump,test\nb.mp4,run,test\n")
    assert len(read_items(listed, part="test")[0]) == 2
    # numbers of folds are no parts
    assert len(read(listed, "path,label,split\na.mp4,jump,1\nb.mp4,run,2\n")) == 2
    assert "'1', '2'" in caplog.text
