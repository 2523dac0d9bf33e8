"""The words of the project: one name for one thing, plain sentences; tests pin names, not sentences."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
# What is said otherwise: docs/glossary.md has the words.
FORBIDDEN = {
    r"(?<![Tt]here )\b(is|was|are|were) no (?!longer|larger|more|better|other|less|smaller|such)\w": "is not a ...",
    r"\b(is|are|tells?) of no \w": "has none, is without",
    r"\b(that|which) makes? (itself|themselves)\b": "synthetic data",
    r"\bin the place of\b|\bin (its|their) place\b": "instead of",
    r"\b(is|are) no (fault|chance)\b": "is not an error of",
    r"\bone behind the other\b": "one after the other",
    r"\b(is|are) none of (the|these|them)\b": "is not one of",
    r"\b(files|records|messages) of before\b": "older, earlier",
    r"the wall's clock": "the system clock",
    r"\bgo(es)? on\b(?! (a|the) GPU)|\bwent on\b": "continue(s)",
    r"\bnobody kn(ows|ew)\b": "it is unknown",
    r"\b(errors?|models?|features?|modules?|checks?|operators?) of ours\b": "... of kinescan",
    r"\blet be\b|\bleaves word\b|\bsuch as are\b|\btaken up\b|\bput down\b": "plain English",
    r"\bbelieved\b": "calibrated, trusted",
    r"\bthere is no (such )?(reader|model|benchmark|kind|question)\b": "unknown ..., no ... was given",
    r"\bframes? to come\b": "future frames",
    r"\b([Tt]he|[Aa]|[Ee]ach|[Ee]very|[Aa]ny|[Oo]ne|other|same) sources?\b(?! (code|file))": "video source",
    r"\b([Tt]he|[Aa]|[Ee]ach|[Ee]very|[Aa]ny|other) readers?\b": "label reader, video reader",
    r"\bdetailed cache\b": "full KV cache",
    r"\b(a|the|its|about|same|mean) shares? of\b": "fraction of",
    r"\brecomputed (activations|gradients)\b|\brecomputation\b": "activation checkpointing",
    r"\battention mass\b": "attention score",
    r"\b(is|are|was|were|be) said\b": "reported, logged",
    r"\bhead[ -]only\b": "linear probe",
    r"\bvision towers?\b|\btext towers?\b": "vision encoder, text encoder",
}
PROSE = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("docs/decisions/*.md"))]
PROSE += sorted(ROOT.glob("src/kinescan/recipes/*.toml"))
# Plain words side by side; words in quotes, with digits, dots, underscores or dashes are names.
SENTENCE = re.compile(r"(?<![\w'`/.\\*-])[A-Za-z]?[a-z]+(?:,? [A-Za-z]?[a-z]+){3,}(?![\w'`=*])")


def _pinned(tree: ast.AST) -> Iterator[ast.expr]:
    """What a test looks for in a text: `match=...` and `"..." in text`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "match":
            yield node.value
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            yield node.left
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "mentions":
            yield from node.args[1:]


def _parametrized(function: ast.FunctionDef) -> Iterator[ast.expr]:
    """Values of those parameters that the test looks for in a text."""
    names = {name.id for pinned in _pinned(function) for name in ast.walk(pinned) if isinstance(name, ast.Name)}
    for call in function.decorator_list:
        if not (isinstance(call, ast.Call) and len(call.args) > 1 and isinstance(call.args[1], ast.List)):
            continue
        parameters = ast.literal_eval(call.args[0])
        parameters = parameters.split(",") if isinstance(parameters, str) else parameters
        for case in call.args[1].elts:
            values = case.args if isinstance(case, ast.Call) else getattr(case, "elts", [case])
            pairs = zip(parameters, [case] if len(parameters) == 1 else values, strict=False)
            yield from (value for parameter, value in pairs if parameter.strip() in names)


def _sentences(source: str) -> Iterator[str]:
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for pinned in (*_pinned(tree), *(value for function in functions for value in _parametrized(function))):
        for part in ast.walk(pinned):
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and SENTENCE.search(part.value):
                yield f"line {part.lineno}: {part.value}"


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.relative_to(TESTS).as_posix())
def test_tests_pin_names_and_no_sentences(path: Path) -> None:
    """Four plain words in a row are a sentence: pin the error's type and the names, keys and numbers in its message."""
    found = list(_sentences(path.read_text(encoding="utf-8")))
    assert not found, "pin the error's type and the names in the text (see tests/mentions.py):\n" + "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        'pytest.raises(ConfigError, match="window must be odd and positive")',
        'assert f"{name}: this is no video of ours" in text',
        'assert mentions(text, "a.mp4", "this is no video")',
        '@pytest.mark.parametrize("said", ["lr must be positive"])\ndef test(said):\n    raises(match=said)',
    ],
)
def test_sentences_are_found(source: str) -> None:
    assert len(list(_sentences(source))) == 1


@pytest.mark.parametrize(
    "source",
    ['pytest.raises(ConfigError, match=r"window.*odd.*got 4")', 'assert "optim.lr was 0.1, is 0.2" in text'],
)
def test_names_are_allowed(source: str) -> None:
    assert not list(_sentences(source))


def _forbidden(text: str) -> list[str]:
    return [
        f"{found[0]!r} (say: {better})"
        for phrase, better in FORBIDDEN.items()
        for found in re.finditer(phrase, text, re.IGNORECASE)
    ]


def _strings(source: str) -> Iterator[tuple[int, str]]:
    """Docstrings, messages and comments of a module, with their lines; comments one below the other are one text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, re.sub(r"\s+", " ", node.value)
    block: list[str] = []
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            if line != last + 1 and block:
                yield first, " ".join(block)
                block = []
            first, last = (first if block else line), line
            block.append(token.string.lstrip("# "))
    if block:
        yield first, " ".join(block)


@pytest.mark.parametrize("path", sorted(ROOT.glob("src/kinescan/**/*.py")), ids=lambda path: path.stem)
def test_strings_use_the_words_of_the_glossary(path: Path) -> None:
    found = {line: bad for line, text in _strings(path.read_text(encoding="utf-8")) if (bad := _forbidden(text))}
    assert not found, f"{path}: {found}"


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.name)
def test_pages_use_the_words_of_the_glossary(path: Path) -> None:
    found = _forbidden(re.sub(r"\s+", " ", path.read_text(encoding="utf-8")))
    assert not found


def test_comments_are_read_as_texts() -> None:
    found = dict(_strings("x = 1  # one\n\n# this is\n# no clip\ny = 2\n"))
    assert found == {1: "one", 3: "this is no clip"}
    assert _forbidden(found[3])


def test_forbidden_words_are_found() -> None:
    assert len(_forbidden("'x' is no reader, nobody knows why, and it goes on; the source has no reader")) == 4
    assert not _forbidden("'x' is not a label reader; it is no longer there and continues")


# What is said of an argument or an attribute without a word for it: the reader has to look elsewhere, or to guess.
EMPTY = re.compile(
    r"^    +\w+: (likewise|(see|as) there|why|which|how many|whose \w+|which side|(the|an)other|the several|of it|odd"
    r"|seconds|outline|to \w+|that \w+)\.$"
)


def _empty(source: str) -> list[str]:
    return [line.strip() for line in source.splitlines() if EMPTY.match(line)]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_docstrings_describe_each_argument(path: Path) -> None:
    assert _empty(path.read_text(encoding="utf-8")) == []


def test_empty_descriptions_are_found() -> None:
    text = "    Args:\n        width: of the frame, in pixels.\n        height: likewise.\n        files: to write.\n"
    assert _empty(text) == ["height: likewise.", "files: to write."]


# Names of variables, functions, classes, fields and keys; what stays of old files and public names is listed below.
REPLACED = {
    "place": "index, position or device",
    "places": "indices, positions or devices",
    "share": "fraction, ratio",
    "shares": "fractions, ratios",
    "taps": "kernel size",
    "tower": "encoder",
    "towers": "encoders",
    "piece": "chunk",
    "pieces": "chunks",
    "drawn": "sampled; shown, of pictures",
    "mass": "scores",
    "masses": "scores",
    "detailed": "full, of the KV cache",
    "recompute": "activation checkpointing",
    "recomputed": "activation checkpointing",
}
ALLOWED = {
    "attention_mass": "the op's public name",
    "in_place": "the field's term",
    "place_window": "a verb",
    "share_weights": "a verb",
    "share_memory_": "torch's",
    "share_threads": "a verb",
}
OLD_NAMES = {
    "src/kinescan/settings.py": {"taps", "recompute"},
    "src/kinescan/data/loader.py": {"places"},
    "src/kinescan/data/transforms.py": {"places"},
    "src/kinescan/evaluation/temporal/scores.py": {"frame_shares", "largest_share"},
    "src/kinescan/models/weights/vit_weights.py": {"read_vision_tower"},
    "src/kinescan/vlm/answer.py": {"detailed_bytes"},
    "src/kinescan/vlm/config.py": {"budget_shares"},
    "src/kinescan/vlm/policy.py": {"mass", "places", "needs_places"},
    "src/kinescan/vlm/saved_stream.py": {"place", "budget_shares"},
    "src/kinescan/vlm/snapshot.py": {"places"},
    "src/kinescan/vlm/stream.py": {"place", "budget_shares"},
    "benchmarks/render.py": {
        "_link_pieces",
        "_run_pieces",
        "_run_pieces_back",
        "packed_share",
        "peak_share_of",
        "pieces",
        "shares",
    },
    "benchmarks/statekv_limits.py": {"shares"},
}
"""Where an old name is still understood: in old files, as a deprecated alias, in older results."""


def _names(source: str) -> Iterator[str]:
    """All names of a module, and the strings in it that are one name."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.alias(asname=str(name)):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.keyword(arg=str(name)):
                yield name
            case ast.Constant(value=str(name)) if name.isidentifier():
                yield name


def _replaced(source: str) -> set[str]:
    found = set()
    for name in set(_names(source)) - ALLOWED.keys():
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_")
        if any(word in REPLACED for word in words) or re.search(r"(?<![a-z])head_only(?![a-z])", name):
            found.add(name)
    return found


@pytest.mark.parametrize(
    "path",
    sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]),
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_names_use_the_words_of_the_glossary(path: Path) -> None:
    found = _replaced(path.read_text(encoding="utf-8")) - {"head_only_"}
    assert found == OLD_NAMES.get(path.relative_to(ROOT).as_posix(), set())


@pytest.mark.parametrize(
    "source",
    ["place = 1", "def f(num_pieces): ...", "class DrawnWindows: ...", "x.vision_tower", 'f(mass=1, k={"a_share": 2})'],
)
def test_replaced_names_are_found(source: str) -> None:
    assert _replaced(source)


def test_other_names_are_not() -> None:
    assert not _replaced("displaced = placed.shared.replace(massive, attention_mass, in_place=True)")
