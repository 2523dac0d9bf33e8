"""The table of families in docs/statekv.md is made from the code: this file, run as a script, writes it."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest
from tests.vlm.conftest import BUILDERS

from kinescan.vlm.families import FAMILIES, Generic
from kinescan.vlm.families.refused import OWN_CODE, REFUSED

PAGE = Path(__file__).parents[3] / "docs" / "statekv.md"
START, END = "<!-- families: made by tests/vlm/families/test_table.py -->\n", "<!-- end of families -->"


def said(kind: type) -> str:
    first = (inspect.getdoc(kind) or "").partition("\n")[0]
    return first.partition(": ")[2].rstrip(".").replace("|", "\\|") or first


def table() -> str:
    rows = ["| model type | | |", "|---|---|---|"]
    rows += [f"| `{name}` | runs | {said(FAMILIES[name])} |" for name in sorted(FAMILIES)]
    rows += [f"| others of transformers | checked at opening | {said(Generic)} |"]
    rows += [f"| `{name}` | refused | {REFUSED[name]} |" for name in sorted(REFUSED)]
    rows += [f"| `{name}` | refused | only its own code runs it; use {OWN_CODE[name]} |" for name in sorted(OWN_CODE)]
    return "\n".join(rows) + "\n"


def test_the_page_has_the_table_of_the_code():
    page = PAGE.read_text()
    assert page.partition(START)[2].partition(END)[0] == table()


def test_every_family_says_what_is_particular():
    assert all(re.match(r"\w", said(kind)) for kind in FAMILIES.values())
    assert not set(FAMILIES) & (set(REFUSED) | set(OWN_CODE))


NAMED = {
    "runs": [
        *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "smolvlm", "llava_next_video"),
        *("llava_onevision", "video_llama_3", "internvl", "perception_lm"),
    ],
    "refused": ["gemma3n", "gemma4", "molmo2"],
}
"""What users were told."""


@pytest.mark.parametrize("state", NAMED)
def test_the_page_says_of_each_named_family_what_the_code_does(state):
    page = PAGE.read_text()
    assert set(NAMED[state]) <= set({"runs": FAMILIES, "refused": REFUSED}[state])
    for name in NAMED[state]:
        assert f"| `{name}` | {state} |" in page
    # each that runs is run in the tests
    assert set(FAMILIES) <= set(BUILDERS)


def config_of(name):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoConfig.for_model(name)


REASONS = {
    "sliding window": lambda config: (
        sum(kind == "sliding_attention" for kind in config.get_text_config().layer_types)
        > len(config.get_text_config().layer_types) / 2
    ),
    "encoder-decoder": lambda config: config.is_encoder_decoder,
    "several axes": lambda config: "def get_rope_index" in modelling(config),
    "cross-attention layers": lambda config: re.search("cross_?attention", modelling(config), re.IGNORECASE),
    "sound": lambda config: "input_features" in modelling(config),
    "query transformer": lambda config: "qformer_input_ids" in modelling(config),
    "both directions": lambda config: re.search("bidirectional", modelling(config), re.IGNORECASE),
}
"""What a reason for refusing says -> whether it holds for transformers' own model of the default config."""


def modelling(config):
    """The source of the model with this config."""
    name = type(config).__module__.replace(".configuration_", ".modeling_")
    return Path(importlib.util.find_spec(name).origin).read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_family_is_refused_for_what_it_is(name):
    try:
        config = config_of(name)
    except ValueError:
        pytest.skip("this version of transformers has no such family")
    holds = [is_so for words, is_so in REASONS.items() if words in REFUSED[name]]
    assert len(holds) == 1
    assert holds[0](config)


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(START)
    PAGE.write_text(before + START + table() + END + rest.partition(END)[2])
