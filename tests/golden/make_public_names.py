"""Adds what is public now to public_names.json: run it after a public name was added. Nothing is ever taken out.

python tests/golden/make_public_names.py
"""

import inspect
import json
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import kinescan

FILE = Path(__file__).with_name("public_names.json")


def public_names() -> dict[str, list[str]]:
    """Each public name, such as `models.PKS4.stream_frames`, with the parameters that it takes."""
    found: dict[str, list[str]] = {}
    for name in kinescan.__all__:
        value = getattr(kinescan, name)
        if not inspect.ismodule(value):
            found |= _described(name, value)
        for inner in getattr(value, "__all__", ()) if inspect.ismodule(value) else ():
            found |= _described(f"{name}.{inner}", getattr(value, inner))
    return found


def _described(name: str, value: Any) -> dict[str, list[str]]:
    if not inspect.isclass(value):
        return {name: _parameters(value) if callable(value) else []}
    return {name: _parameters(value), **{f"{name}.{member}": found for member, found in _members(value).items()}}


def _members(cls: type[Any]) -> dict[str, list[str]]:
    """Methods, properties and fields that kinescan gives to a class."""
    found = {}
    for member in dir(cls):
        owner = next((base for base in cls.__mro__ if member in vars(base)), object)
        if not member.startswith("_") and owner.__module__.startswith("kinescan"):
            value = inspect.getattr_static(cls, member)
            function = getattr(value, "__func__", value)
            found[member] = _parameters(function) if inspect.isfunction(function) else []
    return found | ({field: [] for field in cls.__dataclass_fields__} if is_dataclass(cls) else {})


def _parameters(value: Any) -> list[str]:
    try:
        return [name for name in inspect.signature(value).parameters if name not in ("self", "cls")]
    except (TypeError, ValueError):
        return []


if __name__ == "__main__":
    stored = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    for name, parameters in public_names().items():
        stored[name] = sorted({*stored.get(name, ()), *parameters})
    FILE.write_text(json.dumps(dict(sorted(stored.items())), indent=0) + "\n", encoding="utf-8")
