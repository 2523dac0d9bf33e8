import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from kinescan.errors import CheckpointError

_NAME = re.compile(r"(hf-hub:)?(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_FILE_ENDINGS = (".pt", ".pth", ".bin", ".safetensors", ".json", ".ckpt", ".tar", ".zip")


def is_hub_name(source: str) -> bool:
    """Whether `source` reads as a name on the Hugging Face hub: user/name or user/name@revision.

    Example:
        >>> is_hub_name("openai/clip-vit-base-patch16"), is_hub_name("weights/vit.pt"), is_hub_name("a/b/c")
        (True, False, False)
    """
    return _NAME.fullmatch(source) is not None and not source.endswith(_FILE_ENDINGS)


def download(name: str, *, patterns: Sequence[str], revision: str | None = None) -> Path:
    """The local folder that holds those files of a hub repository whose names match `patterns`.

    Files already in the cache are not fetched again; without a connection the cache alone is used.

    Args:
        name: "user/name", or "user/name@revision".
        patterns: file names, `*` allowed; a file that matches none is not fetched.
        revision: branch, tag or commit.

    Returns:
        The folder of that snapshot in the cache.

    Raises:
        CheckpointError: no such repository or revision, no access to it, or no connection and nothing in the cache.
    """
    match = _NAME.fullmatch(name)
    repository, revision = (match["name"], revision or match["revision"]) if match else (name, revision)
    here = f"{name}: no such file or folder here"
    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=list(patterns), library_name="kinescan"
        )
    except GatedRepoError as error:
        raise CheckpointError(
            f"{here}, and the repository on the Hugging Face hub is gated. "
            f"Accept its terms on https://huggingface.co/{repository}, then run `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{here}, and the Hugging Face hub has no repository {repository!r} that you may read. "
            "Check the name; for a private one run `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{repository}: the Hugging Face hub has no revision {revision!r} of it.") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{here}, the Hugging Face hub cannot be reached, and the cache does not hold it. Check the connection "
            "(and that HF_HUB_OFFLINE is not set), or fetch the files elsewhere "
            f"(`hf download {repository} --local-dir FOLDER`) and give FOLDER."
        ) from error
    except HFValidationError as error:
        raise CheckpointError(f"{here}, and it is not a name on the Hugging Face hub: {error}") from error
    except HfHubHTTPError as error:
        raise CheckpointError(f"{here}, and the Hugging Face hub answered with an error: {error}") from error
    return Path(str(folder))


def upload(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Puts the files of a folder into a repository on the Hugging Face hub, made if need be.

    Args:
        folder: what to upload.
        repo_id: "user/name".
        private: whether a new repository is private.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: not logged in, no right to write there, or no connection.
    """
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload a kinescan model")
    # The hub's client lets errors of its HTTP library through, which has changed with its versions.
    except Exception as error:
        raise CheckpointError(
            f"{repo_id}: cannot upload to the Hugging Face hub: {error} "
            "Log in with `hf auth login` (a token that may write), or keep the folder that save_pretrained wrote."
        ) from error
    return str(commit.commit_url)
