import pytest
import torch

from kinescan.vlm import PixelSettings, open_stream

PIXELS = PixelSettings(min_pixels=64, max_pixels=10_000)

QUESTION = [5, 17, 200, 41, 8]
TOLERANCE = 1e-4


def ask(model, frames, question=QUESTION, **options):
    with open_stream(model, **{"hf_compat": True, "pixels": PIXELS, **options}) as stream:
        stream.push(frames)
        return stream.ask(question, max_new_tokens=1).logits, stream


def plain_logits(model, inputs, **options):
    with torch.no_grad():
        return model(**inputs, **options).logits[0, -1]


@pytest.mark.parametrize("storage", ["memory", "offload"])
@pytest.mark.parametrize(("num_frames", "patches_per_step"), [(2, 1), (6, 1), (14, 1), (8, 2), (10, 2)])
def test_unlimited_budget_equals_plain_forward(family_name, num_frames, patches_per_step, storage, vlm, video, plain):
    model, frames = vlm(family_name), video(num_frames)
    for budget in (None, 10_000):
        logits, stream = ask(
            model, frames, budget=budget, patches_per_step=patches_per_step, storage=storage, chunk_tokens=13
        )
        expected = plain_logits(model, plain(stream.family, frames, QUESTION))
        torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=TOLERANCE)
