"""The lock files hold the versions of constraints.txt, each with the hashes of its files."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENTRY = re.compile(
    r"(?P<name>[\w.-]+)==(?P<version>[\w.+!]+)(?: ; [^\n\\]+)?(?P<hashes>(?: \\\n    --hash=sha256:[0-9a-f]{64})+)"
)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pins(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {_plain(name): version for name, version in (line.split("==") for line in lines)}


def _locked(text: str) -> dict[str, str]:
    """Package -> version; every line of the file belongs to an entry that has hashes."""
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    entries = re.split(r"\n(?=\S)", body.strip())
    found = [ENTRY.fullmatch(entry) for entry in entries]
    assert all(found), next(entry for entry, match in zip(entries, found, strict=True) if not match)
    return {_plain(match["name"]): match["version"] for match in found if match}


def _differences(constraints: str, lock: str) -> list[str]:
    pins, locked = _pins(constraints), _locked(lock)
    return sorted(
        f"{name}: {version}, locked {locked.get(name)}" for name, version in pins.items() if locked.get(name) != version
    )


def test_lock_and_constraints_agree() -> None:
    constraints, lock = ((ROOT / name).read_text(encoding="utf-8") for name in ("constraints.txt", "requirements.lock"))
    assert _differences(constraints, lock) == [], "write the lock again: .ci/lock"
    # What torch asks for on every system, and what other systems need: nothing else is locked without a constraint.
    assert set(_locked(lock)) - set(_pins(constraints)) <= {"setuptools", "audioop-lts", "colorama", "httpx2-jsfetch"}


def test_cuda_lock_holds_libraries_of_cuda_alone() -> None:
    locked = _locked((ROOT / "requirements-cuda.lock").read_text(encoding="utf-8"))
    assert locked
    assert all(re.match("(nvidia|cuda)-", name) for name in locked)


def test_a_difference_would_be_found() -> None:
    digest = f" \\\n    --hash=sha256:{'a' * 64}\n"
    lock = f"one==1.0{digest}Two-x==2.0 ; sys_platform == 'linux'{digest}"
    assert _differences("one==1.0\ntwo_x==2.0\n", lock) == []
    assert _differences("one==1.1\ntwo_x==2.0\nthree==3\n", lock) == ["one: 1.1, locked 1.0", "three: 3, locked None"]
    with pytest.raises(AssertionError):
        _locked("one==1.0\n")
