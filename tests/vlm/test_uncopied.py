"""Streams exist once: a copy would share the cache with them, and be out of step."""

import copy
import pickle

import pytest
import torch

from kinescan.errors import ConfigError
from kinescan.vlm import open_stream

QUESTION = [5, 17, 200, 41, 8]


@pytest.mark.bad_input
@pytest.mark.parametrize("work", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_stream_is_not_copied(work, vlm, video):
    with open_stream(vlm("internvl")) as stream:
        stream.push(video(3))
        before = stream.ask(QUESTION, max_new_tokens=1).logits
        with pytest.raises(ConfigError, match="VideoStream"):
            work(stream)
        assert torch.equal(stream.ask(QUESTION, max_new_tokens=1).logits, before)
