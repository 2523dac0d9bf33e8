import av
import pytest

from kinescan.data.video import probe_decoders


def test_probe_names_versions_and_codecs() -> None:
    found = probe_decoders()
    assert found["PyAV"] == av.__version__
    assert {found[codec] for codec in ("h264", "hevc", "vp9", "av1")} == {"yes"}


def test_probe_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinescan.data.video.probe._CODECS", ("no_such_codec",))
    assert probe_decoders()["no_such_codec"].startswith("no: ")
