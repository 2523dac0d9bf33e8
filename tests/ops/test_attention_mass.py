import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from kinescan.errors import BackendError, ConfigError, ShapeError
from kinescan.ops.attention_mass import attention_mass, blockwise

# (query heads, key heads, queries, keys, head size)
SHAPES = [(1, 1, 1, 1, 8), (4, 4, 1, 63, 16), (8, 2, 12, 32, 16), (6, 1, 63, 63, 24), (4, 2, 100, 301, 7)]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def draw(shape, dtype=torch.float32, batch=2):
    query_heads, key_heads, queries, keys, dim = shape
    q = 2 * torch.randn(batch, query_heads, queries, dim)
    k, v = torch.randn(2, batch, key_heads, keys, dim)
    return q.to(dtype), k.to(dtype), v.to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block_bytes", [2**21, 2**12, 2**9])
def test_blockwise_matches_reference(shape, dtype, block_bytes, monkeypatch):
    monkeypatch.setattr(blockwise, "CPU_BLOCK_BYTES", block_bytes)
    inputs = draw(shape, dtype)
    observed = min(3, shape[2])
    for choice in (None, observed):
        output, mass = attention_mass(*inputs, backend="blockwise", observed=choice)
        expected_output, expected_mass = attention_mass(*inputs, backend="reference", observed=choice)
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(output, expected_output, atol=tolerance, rtol=tolerance)
        exact = 1e-10 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(mass, expected_mass, atol=exact, rtol=exact)
        assert mass.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert output.dtype == dtype


def test_small_blocks_take_the_two_pass_way(monkeypatch):
    monkeypatch.setattr(blockwise, "CPU_BLOCK_BYTES", 2**12)
    monkeypatch.setattr(blockwise, "_whole_rows", None)
    output, _ = attention_mass(*draw((4, 2, 100, 301, 7)), backend="blockwise")
    assert output.isfinite().all()


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
@pytest.mark.parametrize("case", ["h0", "h1"])
def test_agrees_with_published_selection(shared, case, backend):
    values = load_file(shared / "fixtures" / "statekv_selection.safetensors")
    q, k, v = (values[f"{case}/{name}"] for name in "qkv")
    for suffix, wide, tolerance in (("f64", torch.float64, 1e-10), ("f64", torch.float32, 1e-5)):
        output, mass = attention_mass(q.to(wide), k.to(wide), v.to(wide), backend=backend)
        expected = values[f"{case}/attn_out_{suffix}"].transpose(1, 2)
        torch.testing.assert_close(output.double(), expected, atol=tolerance, rtol=tolerance)
        expected = values[f"{case}/key_scores_per_kv_head_{suffix}"]
        torch.testing.assert_close(mass.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
def test_output_is_plain_attention(backend):
    q, k, v = draw((8, 2, 12, 32, 16))
    visible = torch.ones(12, 32, dtype=torch.bool).tril(20)
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True, scale=0.3)
    output, _ = attention_mass(q, k, v, 0.3, backend)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
def test_worked_by_hand(backend):
    # Two queries, two keys, one number each. Query 0 sees key 0 alone; query 1 sees both with weights 1/4 and 3/4.
    q = torch.tensor([1.0, 1.0]).view(1, 1, 2, 1)
    k = torch.tensor([0.0, 3.0]).log1p().div(torch.tensor(4.0).log()).mul(torch.tensor(3.0).log()).view(1, 1, 2, 1)
    v = torch.tensor([4.0, 8.0]).view(1, 1, 2, 1)
    output, mass = attention_mass(q, k, v, 1.0, backend)
    torch.testing.assert_close(output.flatten(), torch.tensor([4.0, 7.0]))
    torch.testing.assert_close(mass.flatten(), torch.tensor([1.25, 0.75]))


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
def test_mass_sums_to_queries_times_group_and_equal_keys_share_it(backend):
    q, k, v = draw((8, 2, 12, 32, 16))
    _, mass = attention_mass(q, k, v, backend=backend)
    torch.testing.assert_close(mass.sum(-1), torch.full((2, 2), 12.0 * 4))
    _, mass = attention_mass(q[:, :, :1], torch.zeros_like(k), v, backend=backend)
    torch.testing.assert_close(mass, torch.full((2, 2, 32), 4 / 32))


def test_mass_ignores_what_comes_later():
    q, k, v = draw((8, 2, 12, 32, 16))
    output, mass = attention_mass(q, k, v)
    k[:, :, -1] += 5
    changed_output, changed_mass = attention_mass(q, k, v)
    torch.testing.assert_close(changed_output[:, :, :-1], output[:, :, :-1])
    assert (changed_mass - mass).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda q, k, v: attention_mass(q[0], k, v), ShapeError, r"wants queries \[B, Hq, Q, D\]"),
        (lambda q, k, v: attention_mass(q, k, v[..., :4]), ShapeError, "keys"),
        (lambda q, k, v: attention_mass(q[:1], k, v), ShapeError, "agree"),
        (lambda q, k, v: attention_mass(q[:, :7], k, v), ShapeError, "multiple"),
        (lambda q, k, v: attention_mass(q, k[:, :, :5], v[:, :, :5]), ShapeError, "1 <= Q <= L"),
        (lambda q, k, v: attention_mass(q, k.double(), v), ShapeError, "share"),
        (lambda q, k, v: attention_mass(q, k, v, observed=13), ConfigError, r"1 \.\. 12"),
        (lambda q, k, v: attention_mass(q.requires_grad_(), k, v), ConfigError, "inference"),
        (lambda q, k, v: attention_mass(q, k, v, backend="numba"), BackendError, "backend"),
    ],
)
@pytest.mark.bad_input
def test_bad_input_is_named(change, error, match):
    with pytest.raises(error, match=match):
        change(*draw((8, 2, 12, 32, 16)))


def test_tensors_that_want_gradients_are_taken_where_none_are_recorded():
    inputs = [part.requires_grad_() for part in draw((8, 2, 12, 32, 16))]
    with torch.no_grad():
        found, expected = (attention_mass(*inputs, backend=backend) for backend in ("blockwise", "reference"))
    for part, wanted in zip(found, expected, strict=True):
        assert not part.requires_grad
        torch.testing.assert_close(part, wanted, atol=1e-5, rtol=1e-5)


def test_results_are_not_overwritten_by_later_calls():
    # On a CPU the working memory is kept from call to call, and must serve both modes and any size and dtype.
    calls = [draw((4, 2, 100, 301, 7)), draw((8, 2, 12, 32, 16), torch.float64), draw((4, 2, 100, 301, 7))]
    with torch.inference_mode():
        first = attention_mass(*calls[0], backend="blockwise")
        copies = [part.clone() for part in first]
    with torch.no_grad():
        found = [attention_mass(*call, backend="blockwise") for call in calls[1:]]
    for part, copy in zip(first, copies, strict=True):
        assert torch.equal(part, copy)
    for call, parts in zip(calls[1:], found, strict=True):
        for part, expected in zip(parts, attention_mass(*call, backend="reference"), strict=True):
            torch.testing.assert_close(part, expected, atol=1e-5, rtol=1e-5)
