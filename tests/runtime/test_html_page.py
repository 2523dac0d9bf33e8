from pathlib import Path

from PIL import Image

from kinescan.runtime.html_page import html_page, markdown_html, picture_url


def test_pictures_are_in_the_page_and_titles_one_step_smaller(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a b.png")
    shown = markdown_html("# title\n\n![words](a%20b.png)\n\n|x|\n|---|\n|1|\n", tmp_path)
    assert "<h2>title</h2>" in shown
    assert 'src="data:image/png;base64,' in shown
    assert 'alt="words"' in shown
    assert "<td>1</td>" in shown


def test_links_to_files_are_words(tmp_path: Path) -> None:
    shown = markdown_html("[a](b.md) [c](https://example.org/) ![gone](gone.png)", tmp_path)
    assert "<span>a</span>" in shown
    assert '<a href="https://example.org/">c</a>' in shown
    assert "[gone]" in shown
    assert "<img" not in shown


def test_only_pictures_in_the_folder_are_taken(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "a.png").write_bytes(b"x")
    (inner / "a.txt").write_bytes(b"x")
    for name in ("../a.png", str(tmp_path / "a.png"), "a.txt", "none.png", "a\0.png"):
        assert picture_url(inner, name) is None


def test_a_page_may_fetch_nothing() -> None:
    page = html_page("<a>", "body")
    assert "&lt;a&gt;" in page
    assert "default-src 'none'" in page


def test_only_a_page_in_the_making_is_read_again() -> None:
    assert 'http-equiv="refresh" content="5"' in html_page("a", "b", reload_seconds=5)
    assert "refresh" not in html_page("a", "b")
