"""XML of strangers: no entities, nothing from elsewhere, no endless nesting."""

import zipfile
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from kinescan.errors import ConfigError
from kinescan.runtime.files import MAX_BYTES, read_bytes, read_head

_DEEPEST = 100


def read_xml(file: Path, *, member: str = "annotations.xml") -> Element:
    """The root of an XML file, or of a member of a zip archive.

    Raises:
        ConfigError: it cannot be read, is not XML, declares a document type (where entities come from), or is
            nested too deep.
    """
    content = _unpacked(file, member) if is_zip(file) else read_bytes(file)
    builder, depth = TreeBuilder(), 0
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def refuse(*_: object) -> None:
        raise ConfigError(
            f"{file} declares a document type or entities, which no export of annotations needs. Remove it."
        )

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise ConfigError(f"{file} is nested more than {_DEEPEST} deep, which no export of annotations is.")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, ValueError, LookupError) as problem:
        raise ConfigError(f"{file} is not XML that can be read ({problem}). Export it again.") from None
    return builder.close()


def is_zip(file: Path) -> bool:
    """Whether a file begins as zip archives do."""
    return read_head(file, 4) == b"PK\x03\x04"


def text_of(element: Element | None, tag: str = "") -> str:
    """The text of an element, or of its first child of a name; empty where there is none."""
    found = element.find(tag) if element is not None and tag else element
    return (found.text or "").strip() if found is not None else ""


def _unpacked(file: Path, member: str) -> bytes:
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.rsplit("/", 1)[-1] == member]
            if not names:
                raise ConfigError(f"{file} is an archive without {member}. Unpack it and name the file of annotations.")
            with archive.open(names[0]) as opened:
                content = opened.read(MAX_BYTES + 1)
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError, ValueError) as problem:
        if isinstance(problem, ConfigError):
            raise
        raise ConfigError(f"{file} is an archive that cannot be read ({problem}). Fetch it again.") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{file}: {member} is longer than {MAX_BYTES:,} bytes. Check what it holds.")
    return content
