import pytest

from kinescan.runtime.urls import is_url, mask_url, mask_urls


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://me:secret@cam/1",
        "rtsp://me:p@secret@cam/1",
        "rtsp://me:secret/x@cam/1",
        "rtsp://me:x?secret@cam/1",
        "http://cam/1?pwd=secret",
        "http://cam/1?a=1&access_token=secret",
        "srt://cam:9?passphrase=secret",
        "http://cam/1?secret",
        "http://cam/1#secret",
    ],
)
def test_secrets_are_masked_and_the_host_is_not(url):
    assert "secret" not in mask_url(url)
    assert "cam" in mask_url(url)
    assert "secret" not in mask_urls(f"cannot open {url} (refused)")


@pytest.mark.parametrize("url", ["rtsp://cam:554/a/b@2", "https://site/@handle/live", "a:b.mp4", "-"])
def test_what_holds_no_secret_stays(url):
    assert mask_url(url) == url


@pytest.mark.parametrize(("source", "expected"), [("rtsp://a", True), ("a:b.mp4", False), ("concat:a.mp4", False)])
def test_is_url(source, expected):
    assert is_url(source) is expected
