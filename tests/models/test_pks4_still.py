from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinescan.errors import ConfigError
from kinescan.models.pks4 import PKS4
from kinescan.models.pks4_config import PKS4Config
from kinescan.models.pks4_state import PKS4State
from kinescan.models.still import SkipUnchanged

SIZES: dict[str, Any] = {
    "num_classes": 3, "width": 16, "heads": 2, "depth": 4, "image_size": 32, "patch_size": 8, "insert_after": 2,
    "window": 3, "embed_dim": 8,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "clips": {},
    "causal": {"causal": True},
    "patches are read": {"causal": True, "pooling": "mean"},
    "no class token": {"causal": True, "pooling": "mean", "class_token": False, "class_token_route": "none"},
    "rotary": {"causal": True, "positions": "rotary", "num_registers": 2},
    "averaging": {"scanner": False, "correlation": False, "variation": False, "class_token_route": "none"},
    "gate": {"causal": True, "gate": True},
    "frames": {"causal": True, "output": "frames", "class_token_route": "none"},
}
EQUAL = SkipUnchanged(pixel_threshold=0.0, token_threshold=0.0)
ATOL = 1e-6


def _model(**options: Any) -> PKS4:
    model = PKS4(PKS4Config(**SIZES | options)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def _half_still(num_frames: int = 6, batch: int = 2) -> Tensor:
    """The upper half of every frame is that of the first."""
    clip = torch.randn(batch, num_frames, 3, 32, 32)
    clip[:, 1:, :, :16] = clip[:, :1, :, :16]
    return clip


@pytest.mark.parametrize("variant", VARIANTS)
def test_where_everything_changes_logits_are_the_same_bit_for_bit(variant: str) -> None:
    model, clip = _model(**VARIANTS[variant]), torch.randn(2, 5, 3, 32, 32)
    with torch.no_grad():
        plain = model(clip)
        model.skip_unchanged = EQUAL
        torch.testing.assert_close(model(clip), plain, atol=0, rtol=0)


@pytest.mark.parametrize("variant", ["averaging", "frames"])
def test_where_nothing_changes_logits_are_the_same(variant: str) -> None:
    """Without an exchange of class tokens over time, which moves for some frames after the start."""
    model, clip = _model(**VARIANTS[variant]), torch.randn(2, 1, 3, 32, 32).expand(-1, 6, -1, -1, -1)
    with torch.no_grad():
        plain = model(clip)
        model.skip_unchanged = EQUAL
        torch.testing.assert_close(model(clip), plain, atol=ATOL, rtol=0)
        state = model.represent(clip, PKS4State(), keep_state=True)[1].still
    assert state is not None
    assert state.fraction[:, 0].tolist() == pytest.approx([1 / 6] * 2)


@pytest.mark.parametrize("variant", [name for name, options in VARIANTS.items() if "causal" in options])
@pytest.mark.parametrize("lengths", [(1, 1, 1, 1, 1, 1), (2, 3, 1)])
def test_a_stream_gives_what_the_whole_clip_gives(variant: str, lengths: tuple[int, ...]) -> None:
    model, clip = _model(**VARIANTS[variant]), _half_still()
    model.skip_unchanged = SkipUnchanged(pixel_threshold=0.0, token_threshold=0.3, refresh_frames=4)
    with torch.no_grad():
        whole = model.forward_stream(clip)[0]
        parts, state = [], None
        for part in clip.split(lengths, dim=1):
            logits, state = model.forward_stream(part, state)
            parts.append(logits)
    assert state is not None
    assert state.still is not None
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-4)
    assert whole.isfinite().all()


def test_kept_patches_serve_as_keys_and_values() -> None:
    """Against a plain computation of one block: queries of changed tokens over all tokens of the frame."""
    options = {"scanner": False, "correlation": False, "variation": False, "class_token_route": "none", "depth": 1}
    model, clip = _model(**options, insert_after=1), _half_still(2, 1)
    model.skip_unchanged = EQUAL
    with torch.no_grad():
        frames, _ = model.represent(clip, PKS4State(), keep_state=False)
        # with a single block, keys and values of patches that stand still are exactly those of a whole frame
        model.skip_unchanged = None
        torch.testing.assert_close(frames, model.represent(clip, PKS4State(), keep_state=False)[0], atol=ATOL, rtol=0)


def test_only_changed_patches_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clip, counted = _model(causal=True), _half_still(2, 1), []
    model.skip_unchanged = SkipUnchanged(pixel_threshold=0.0, token_threshold=1e9)
    for block in model.vit.blocks:
        block.mlp.register_forward_pre_hook(lambda _, inputs: counted.append(inputs[0].numel() // 16))
    with torch.no_grad():
        state = model.forward_stream(clip[:, :1])[1]
        counted.clear()
        model.forward_stream(clip[:, 1:], state)
    assert counted == [1 + 8] * 4


def test_slow_changes_add_up_until_they_count() -> None:
    """Each frame is one level brighter; a patch is compared with the frame in which it was last computed."""
    model = _model(causal=True)
    level = 1 / (255 * torch.tensor(model.preprocessing.std))[:, None, None]
    frames = torch.stack([level * t * torch.ones(3, 32, 32) for t in range(7)])[None]
    model.skip_unchanged = SkipUnchanged(pixel_threshold=2.5, token_threshold=1e9)
    state, fractions = None, []
    with torch.no_grad():
        for frame in frames.split(1, dim=1):
            _, state = model.forward_stream(frame, state)
            fractions.append(state.still.fraction[0, 0].item())
    assert fractions == [1, 0, 0, 1, 0, 0, 1]


def test_refreshing_computes_whole_frames_in_turn() -> None:
    model, clip = _model(causal=True), torch.randn(1, 1, 3, 32, 32)
    model.skip_unchanged = SkipUnchanged(pixel_threshold=0.0, token_threshold=1e9, refresh_frames=3)
    state, fractions = None, []
    with torch.no_grad():
        for _ in range(7):
            _, state = model.forward_stream(clip, state)
            fractions.append(state.still.fraction[0].tolist())
    assert fractions == [[1, 1], [0, 0], [0, 0]] * 2 + [[1, 1]]


def test_what_the_module_moves_is_computed_behind_it() -> None:
    model, clip = _model(causal=True), torch.randn(1, 1, 3, 32, 32)
    model.skip_unchanged = EQUAL
    with torch.no_grad():
        state = model.forward_stream(clip)[1]
        state = model.forward_stream(clip, state)[1]
    assert state.still.fraction[0].tolist() == [0, 1]


def test_streams_of_one_batch_skip_patches_of_their_own() -> None:
    model, clip = _model(causal=True), _half_still()
    clip[1] = clip[1, 0]
    clip[1, 1:, :, :, :8] += 1
    model.skip_unchanged = SkipUnchanged(pixel_threshold=0.0, token_threshold=0.2)
    with torch.no_grad():
        both = model.forward_stream(clip)[0]
        for row in range(2):
            alone = model.forward_stream(clip[row : row + 1])[0]
            torch.testing.assert_close(both[row], alone[0], atol=1e-5, rtol=1e-4)


def test_pixels_that_are_no_number_are_never_taken_for_still() -> None:
    model, clip = _model(causal=True), torch.randn(1, 2, 3, 32, 32)
    clip[:, 1] = clip[:, 0]
    clip[:, 1, :, 4, 4] = float("nan")
    model.skip_unchanged = SkipUnchanged()
    with torch.no_grad():
        assert not model(clip).isfinite().all()


def test_the_state_survives_as_named_tensors_and_zeros_are_no_state() -> None:
    model, clip = _model(causal=True), _half_still(3, 1)
    model.skip_unchanged = SkipUnchanged(pixel_threshold=0.0)
    with torch.no_grad():
        state = model.forward_stream(clip)[1]
        back = PKS4State.from_tensors(state.tensors(), 3, scanner=state.scanner)
        torch.testing.assert_close(
            model.forward_stream(clip, back)[0], model.forward_stream(clip, state)[0], atol=0, rtol=0
        )
        zeros = state.with_tensors({name: torch.zeros_like(tensor) for name, tensor in state.tensors().items()})
        assert zeros.still is not None
        torch.testing.assert_close(
            model.stream_frames(clip, zeros)[0], model.stream_frames(clip)[0], atol=1e-6, rtol=1e-5
        )


def test_training_computes_everything() -> None:
    model, clip = _model(norm="group"), _half_still()
    plain = model.train()(clip)
    model.skip_unchanged = SkipUnchanged()
    torch.testing.assert_close(model(clip), plain, atol=0, rtol=0)


def test_a_model_that_mixes_all_tokens_is_refused() -> None:
    model = _model(difference=True)
    model.skip_unchanged = SkipUnchanged()
    with pytest.raises(ConfigError, match="difference"), torch.no_grad():
        model(_half_still())
    model = _model(class_token_route="tsm")
    model.skip_unchanged = SkipUnchanged()
    with pytest.raises(ConfigError, match="tsm"), torch.no_grad():
        model(_half_still())
    model = _model(stem_convolutions=1)
    model.skip_unchanged = SkipUnchanged()
    with pytest.raises(ConfigError, match="stem_convolutions"), torch.no_grad():
        model(_half_still())


@pytest.mark.parametrize(
    "wrong",
    [{"pixel_threshold": -1.0}, {"pixel_threshold": float("nan")}, {"token_threshold": -0.1}, {"refresh_frames": 0}],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SkipUnchanged(**wrong)
