from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kinescan.layers.class_token import ROUTES, ClassTokenConv

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "class_token_conv.safetensors")


def _clip_tokens() -> torch.Tensor:
    """The published value is [tokens, batch * frames, channels] with two clips of five frames."""
    return GOLDEN["x_n_bt_c"].permute(1, 0, 2).reshape(2, 5, 4, 8).double()


@pytest.mark.parametrize("kind", ["init", "rand"])
def test_class_token_conv_matches_published_values(kind: str) -> None:
    route = ClassTokenConv(8).double()
    if kind == "rand":
        route.weight.data.copy_(GOLDEN["rand_conv_weight_f64"])
    else:
        assert torch.equal(route.weight.detach(), GOLDEN["init_conv_weight"].double())
    out, state = route(_clip_tokens())
    expected = GOLDEN[f"{kind}_out_f64"].permute(1, 0, 2).reshape(2, 5, 4, 8)
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=1e-9)
    assert state is None


@pytest.mark.parametrize("kind", ROUTES)
def test_patches_pass_class_token_routes_untouched(kind: str) -> None:
    tokens = torch.randn(2, 4, 5, 16)
    out, _ = ROUTES[kind](16)(tokens)
    touched = not torch.equal(out[:, :, 1:], tokens[:, :, 1:])
    assert touched == (kind == "tsm")
    assert not torch.equal(out[:, :, 0], tokens[:, :, 0])


def test_causal_start_takes_a_quarter_from_the_frame_before() -> None:
    tokens = torch.randn(1, 4, 1, 8)
    out, _ = ClassTokenConv(8, causal=True)(tokens)
    assert torch.equal(out[:, 1:, 0, :2], tokens[:, :-1, 0, :2])
    assert torch.equal(out[:, 0, 0, :2], torch.zeros(1, 2))
    assert torch.equal(out[..., 2:], tokens[..., 2:])


@pytest.mark.parametrize("kind", ROUTES)
def test_causal_route_in_pieces_equals_whole(kind: str) -> None:
    route = ROUTES[kind](16, causal=True)
    for parameter in route.parameters():
        torch.nn.init.normal_(parameter)
    tokens = torch.randn(2, 7, 5, 16)
    whole, _ = route(tokens)
    state, chunks = None, []
    for start, end in ((0, 1), (1, 2), (2, 5), (5, 7)):
        chunk, state = route(tokens[:, start:end], state)
        chunks.append(chunk)
    assert torch.equal(torch.cat(chunks, dim=1), whole)


@pytest.mark.parametrize("kind", ROUTES)
def test_causal_route_does_not_see_the_future(kind: str) -> None:
    route = ROUTES[kind](16, causal=True)
    tokens = torch.randn(1, 6, 3, 16)
    changed = tokens.clone()
    changed[:, 4:] = 9.0
    assert torch.equal(route(tokens)[0][:, :4], route(changed)[0][:, :4])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ROUTES)
def test_route_writes_into_its_argument_only_when_told_to(kind: str, causal: bool) -> None:
    route = ROUTES[kind](16, causal=causal).requires_grad_(False)
    for parameter in route.parameters():
        torch.nn.init.normal_(parameter)
    given, tokens = torch.randn(2, 5, 4, 16), torch.randn(2, 2, 4, 16)
    state = tokens[:, :, route.mixed_tokens(4)] if causal else None
    kept = given.clone()
    expected, tail = route(given, state)
    assert torch.equal(given, kept)
    out, tail_in_place = route(given, state, in_place=True)
    assert out is given
    assert torch.equal(out, expected)
    if causal:
        assert tail is not None
        assert tail_in_place is not None
        assert torch.equal(tail_in_place, tail)
        assert torch.equal(tail, kept[:, -2:, route.mixed_tokens(4)])
