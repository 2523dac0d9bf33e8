from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from kinescan.errors import CheckpointError
from kinescan.models.weights.hub import download, is_hub_name, upload

RESPONSE = MagicMock(headers={})


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            LocalEntryNotFoundError("x"),
            "me/model@v9.*cannot.*reached.*hf download me/model --local",
        ),
        (
            RepositoryNotFoundError("x", response=RESPONSE),
            "'me/model'.*read.*hf",
        ),
        (GatedRepoError("x", response=RESPONSE), "//huggingface.co/me/model"),
        (RevisionNotFoundError("x", response=RESPONSE), "me/model.*'v9'"),
        (HfHubHTTPError("503 busy", response=RESPONSE), "503 busy"),
        (HFValidationError("too long"), "Hugging"),
    ],
)
def test_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=message):
        download("me/model@v9", patterns=("*",))


def test_download_without_a_connection_is_our_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real client, offline as all tests are, with an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="Hugging"):
        download("someone/something", patterns=("config.json",))


def test_names_of_files_are_no_hub_names() -> None:
    names = ("openai/clip-vit-base-patch16", "timm/vit_base_patch16_clip_224.openai", "a/b@main", "hf-hub:a/b")
    assert all(is_hub_name(name) for name in names)
    assert not any(
        is_hub_name(name) for name in ("vit", "a/b.pt", "./a/b", "/a/b", "a/b/c", "a/b.safetensors", "a b/c")
    )


def test_upload_makes_the_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[object, ...]] = []

    class Api:
        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
            calls.append((repo_id, private, exist_ok))

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> SimpleNamespace:
            calls.append((repo_id, folder_path))
            return SimpleNamespace(commit_url="https://huggingface.co/me/model/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert upload(tmp_path, "me/model", private=True) == "https://huggingface.co/me/model/commit/1"
    assert calls == [("me/model", True, True), ("me/model", tmp_path)]


def test_upload_without_a_connection_is_our_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"me/model.*hf"):
        upload(tmp_path, "me/model")
