import logging
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from kinescan.errors import BackendError, ConfigError, ShapeError
from kinescan.ops import backend as backend_module
from kinescan.ops import selective_scan, selective_scan_step

GOLDEN = Path(__file__).parents[1] / "golden" / "selective_scan.safetensors"
# Against published values in float64: outputs (absolute, relative), gradients (of the largest entry).
TOLERANCE = {torch.float64: (1e-10, 1e-9, 1e-8), torch.float32: (1e-5, 1e-5, 1e-4)}
ARGUMENTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
ALONG_TIME = ("u", "delta", "B", "C", "z")


def draw(num_tracks, num_steps, num_channels, state_size, dtype=torch.float64, optional=True, state=True):
    def normal(*shape):
        return torch.randn(*shape, dtype=dtype)

    tensors = {
        "u": normal(num_tracks, num_steps, num_channels),
        "delta": normal(num_tracks, num_steps, num_channels),
        "A": -torch.exp(normal(num_channels, state_size)),
        "B": normal(num_tracks, num_steps, state_size),
        "C": normal(num_tracks, num_steps, state_size),
    }
    if optional:
        tensors |= {"D": normal(num_channels), "z": normal(num_tracks, num_steps, num_channels)}
        tensors["delta_bias"] = normal(num_channels)
    if state:
        tensors["state"] = normal(num_tracks, num_channels, state_size)
    return tensors


def assert_equals_published(values, case, dtype, backend):
    absolute, relative, of_largest = TOLERANCE[dtype]
    given = {n: values[f"{case}/{n}"].to(dtype) for n in ARGUMENTS if f"{case}/{n}" in values}
    leaves = {n: x.clone().requires_grad_() for n, x in given.items()}
    ours = {n: x.transpose(1, 2) if n in ALONG_TIME else x for n, x in leaves.items()}
    y, state = selective_scan(**ours, delta_softplus="delta_bias" in given, backend=backend)
    torch.testing.assert_close(y.transpose(1, 2).double(), values[f"{case}/out_f64"], atol=absolute, rtol=relative)
    torch.testing.assert_close(state.double(), values[f"{case}/last_state_f64"], atol=absolute, rtol=relative)
    grad_y = values[f"{case}/grad_out"].transpose(1, 2).to(dtype)
    for name, grad in zip(leaves, torch.autograd.grad(y, list(leaves.values()), grad_y), strict=True):
        expected = values[f"{case}/d{name}_f64"]
        largest = expected.abs().max().item()
        torch.testing.assert_close(grad.double(), expected, atol=of_largest * largest, rtol=0.0, msg=f"{case} d{name}")


@pytest.mark.parametrize(
    ("dtype", "backend"), [(torch.float64, "reference"), (torch.float32, "reference"), (torch.float32, "numba")]
)
def test_equals_published_values(dtype, backend):
    values = load_file(GOLDEN)
    for case in sorted({key.split("/")[0] for key in values}):
        assert_equals_published(values, case, dtype, backend)


@pytest.mark.parametrize(
    ("dtype", "backend"), [(torch.float64, "reference"), (torch.float32, "reference"), (torch.float32, "numba")]
)
def test_equals_every_published_value(shared, dtype, backend):
    values = load_file(shared / "fixtures" / "selective_scan.safetensors")
    for case in sorted({key.split("/")[0] for key in values}):
        assert_equals_published(values, case, dtype, backend)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_two_steps_by_hand(backend):
    """Delta = 1, A = -ln 2 halves the state: h = 1 * 3 = 3, then 1.5 + 2 * 5 = 11.5; y = C h + D u."""
    y, state = selective_scan(
        u=torch.tensor([[[3.0], [5.0]]]),
        delta=torch.ones(1, 2, 1),
        A=torch.tensor([[-math.log(2.0)]]),
        B=torch.tensor([[[1.0], [2.0]]]),
        C=torch.tensor([[[10.0], [100.0]]]),
        D=torch.tensor([7.0]),
        delta_softplus=False,
        backend=backend,
    )
    torch.testing.assert_close(y, torch.tensor([[[30.0 + 21.0], [1150.0 + 35.0]]]))
    torch.testing.assert_close(state, torch.tensor([[[11.5]]]))


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_limits_of_the_decay(backend):
    u, ones = torch.randn(2, 9, 5), torch.ones(2, 9, 5)
    B = C = torch.ones(2, 9, 1)
    forgets, _ = selective_scan(u, ones, torch.full((5, 1), -1e4), B, C, delta_softplus=False, backend=backend)
    torch.testing.assert_close(forgets, u)
    keeps, last = selective_scan(u, ones, torch.zeros(5, 1), B, C, delta_softplus=False, backend=backend)
    torch.testing.assert_close(keeps, u.cumsum(dim=1))
    torch.testing.assert_close(last[:, :, 0], u.sum(dim=1))


@pytest.mark.parametrize("delta_softplus", [True, False])
def test_reference_gradients_are_those_of_finite_differences(delta_softplus):
    tensors = draw(2, 3, 2, 2)
    tensors["delta"] = tensors["delta"].abs() + 0.1

    def scan(*values):
        return selective_scan(**dict(zip(tensors, values, strict=True)), delta_softplus=delta_softplus)

    assert torch.autograd.gradcheck(scan, [x.requires_grad_() for x in tensors.values()])


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_pieces_give_what_the_whole_gives(backend):
    tensors = draw(3, 41, 10, 4, dtype=torch.float32)
    whole, last = selective_scan(**tensors, backend=backend)
    for lengths in ([1] * 41, [16, 25], [40, 1], [7, 17, 17]):
        state, start, chunks = tensors["state"], 0, []
        for length in lengths:
            cut = {n: x[:, start : start + length] if n in ALONG_TIME else x for n, x in tensors.items()}
            y, state = selective_scan(**{**cut, "state": state}, backend=backend)
            chunks.append(y)
            start += length
        torch.testing.assert_close(torch.cat(chunks, dim=1), whole, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(state, last, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_step_is_a_scan_of_one_step(backend):
    tensors = draw(6, 1, 33, 16, dtype=torch.float32)
    y, last = selective_scan(**tensors, backend=backend)
    before = tensors["state"].clone()
    row, state = selective_scan_step(
        **{n: x[:, 0] if n in ALONG_TIME else x for n, x in tensors.items()}, backend=backend
    )
    assert torch.equal(row, y[:, 0])
    assert torch.equal(state, last)
    assert torch.equal(tensors["state"], before)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_future_does_not_reach_the_past(backend):
    tensors = draw(2, 20, 7, 5, dtype=torch.float32)
    y, _ = selective_scan(**tensors, backend=backend)
    for name in ALONG_TIME:
        changed = tensors[name].clone()
        changed[:, 11:] += 1.0
        y_changed, _ = selective_scan(**{**tensors, name: changed}, backend=backend)
        assert torch.equal(y_changed[:, :11], y[:, :11])
        assert not torch.equal(y_changed[:, 11:], y[:, 11:])


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(dtype, backend):
    tensors = draw(2, 20, 12, 4, dtype=torch.float32)
    tensors = {n: x.to(dtype) if n in ALONG_TIME else x for n, x in tensors.items()}
    leaves = [x.requires_grad_() for x in tensors.values()]
    wide = {n: x.detach().float().requires_grad_() for n, x in tensors.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = selective_scan(**tensors, backend=backend)
    expected, expected_state = selective_scan(**wide, backend=backend)
    assert (y.dtype, state.dtype) == (dtype, torch.float32)
    assert torch.equal(y, expected.to(dtype))
    assert torch.equal(state, expected_state)
    grad = torch.randn_like(y)
    expected_grads = torch.autograd.grad(expected, list(wide.values()), grad.float())
    for leaf, ours, theirs in zip(leaves, torch.autograd.grad(y, leaves, grad), expected_grads, strict=True):
        assert ours.dtype == leaf.dtype
        torch.testing.assert_close(ours, theirs.to(leaf.dtype))


def test_nan_is_not_swallowed():
    for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "state"):
        tensors = draw(1, 4, 3, 2, dtype=torch.float32)
        tensors[name].view(-1)[0] = math.nan
        y, _ = selective_scan(**tensors, backend="numba")
        assert y.isnan().any(), name


def test_float64_runs_in_float64():
    tensors = draw(1, 3, 4, 2)
    y, state = selective_scan(**tensors)
    assert y.dtype == state.dtype == torch.float64


@pytest.mark.bad_input
def test_backend_by_name_that_cannot_run_is_an_error():
    tensors = draw(1, 3, 4, 2)
    with pytest.raises(BackendError, match=r"selective_scan: backend 'numba'.*float64"):
        selective_scan(**tensors, backend="numba")
    with pytest.raises(BackendError, match="reference"):
        selective_scan(**tensors, backend="cuda_graph")


def test_choice_is_announced_once(caplog, monkeypatch):
    monkeypatch.setattr(backend_module, "_announced", set())
    tensors = draw(1, 3, 4, 2, dtype=torch.float32)
    with caplog.at_level(logging.INFO, logger="kinescan"):
        for _ in range(2):
            selective_scan(**tensors)
    assert caplog.messages == ["selective_scan runs with the numba backend on cpu"]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("u", (2, 3), r"u.*\[R, T, D\].*\[2, 3\]"),
        ("u", (2, 0, 4), r"u.*\[R, T, D\].*\[2, 0, 4\]"),
        ("A", (5, 3), r"A.*\[D, S\].*D = 4.*\[5, 3\]"),
        ("delta", (2, 3, 5), r"delta.*\[R, T, D\] = \[2, 3, 4\].*\[2, 3, 5\]"),
        ("B", (2, 3, 4), r"B must be \[R, T, S\] = \[2, 3, 6\] .* got \[2, 3, 4\]"),
        ("C", (2, 6, 3), r"C must be \[R, T, S\] = \[2, 3, 6\] .* got \[2, 6, 3\]"),
        ("D", (4, 1), r"D must be \[D\] = \[4\] .* got \[4, 1\]"),
        ("z", (2, 4), r"z.*\[R, T, D\] = \[2, 3, 4\].*\[2, 4\]"),
        ("delta_bias", (6,), r"delta_bias must be \[D\] = \[4\] .* got \[6\]"),
        ("state", (2, 6, 4), r"state.*\[R, D, S\] = \[2, 4, 6\].*\[2, 6, 4\]"),
    ],
)
def test_wrong_shape_is_named(name, shape, message):
    with pytest.raises(ShapeError, match=message):
        selective_scan(**{**draw(2, 3, 4, 6, dtype=torch.float32), name: torch.zeros(shape)})


@pytest.mark.bad_input
def test_wrong_dtype_or_device_is_named():
    tensors = draw(2, 3, 4, 6, dtype=torch.float32)
    with pytest.raises(ShapeError, match=r"B.*float64.*float32. .* float64.*float64"):
        selective_scan(**{**tensors, "B": tensors["B"].double()})
    with pytest.raises(ShapeError, match=r"A.*int64.*float32"):
        selective_scan(**{**tensors, "A": tensors["A"].long()})
    with pytest.raises(ShapeError, match="z"):
        selective_scan(**{**tensors, "z": tensors["z"].to("meta")})


@pytest.mark.bad_input
def test_step_with_an_axis_of_time_is_an_error():
    tensors = draw(2, 1, 4, 6, dtype=torch.float32)
    with pytest.raises(ShapeError, match=r"u.*2 axes.*\[2, 1, 4\]"):
        selective_scan_step(**tensors)


def test_options_are_what_torch_gives_for_them():
    """The softplus of the step size, the gate and the skip in one, as a user would write them with torch."""
    tensors = draw(4, 6, 8, 4, dtype=torch.float32)
    y, _ = selective_scan(**tensors, backend="numba")
    by_parts, _ = selective_scan(
        tensors["u"],
        functional.softplus(tensors["delta"] + tensors["delta_bias"]),
        tensors["A"],
        tensors["B"],
        tensors["C"],
        delta_softplus=False,
        state=tensors["state"],
        backend="numba",
    )
    gated = (by_parts + tensors["D"] * tensors["u"]) * functional.silu(tensors["z"])
    torch.testing.assert_close(y, gated, atol=1e-5, rtol=1e-5)


def _small(dtype=torch.float32, num_steps=3):
    tensors = {name: torch.randn(5, num_steps, 33) for name in ("u", "delta", "z")}
    tensors |= {name: torch.randn(5, num_steps, 16) for name in ("B", "C")}
    tensors |= {"A": -torch.rand(33, 16), "D": torch.randn(33), "delta_bias": torch.randn(33)}
    return {name: x.to(dtype) for name, x in tensors.items()} | {"state": torch.randn(5, 33, 16).to(dtype)}


def _room(tensors):
    wide = torch.float64 if tensors["u"].dtype == torch.float64 else torch.float32
    return torch.full_like(tensors["u"], torch.nan), torch.full(tensors["state"].shape, torch.nan, dtype=wide)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("backend", [None, "reference", "blockwise"])
def test_out_holds_what_would_be_returned(backend, dtype):
    tensors = _small(dtype)
    expected = selective_scan(**tensors, backend=backend)
    out = _room(tensors)
    found = selective_scan(**tensors, backend=backend, out=out)
    assert found[0] is out[0]
    assert found[1] is out[1]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(out, expected, strict=True))


@pytest.mark.parametrize("num_channels", [32, 33])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_step_goes_on_in_the_same_memory(backend, num_channels):
    """Twenty steps; with 32 channels those of a stream, whose kernel reads and writes the state as it lies."""
    tensors = {name: x[..., :num_channels] for name, x in _small(num_steps=20).items() if x.shape[-1] == 33}
    tensors |= {"B": torch.randn(5, 20, 16), "C": torch.randn(5, 20, 16), "A": -torch.rand(num_channels, 16)}
    state = torch.randn(5, num_channels, 16)
    expected, last = selective_scan(**tensors, state=state, backend=backend)
    y = torch.empty(5, num_channels)
    for t in range(20):
        rows = {name: x[:, t] if x.ndim == 3 else x for name, x in tensors.items()}
        found = selective_scan_step(**rows, state=state, backend=backend, out=(y, state))
        assert found[0] is y
        assert found[1] is state
        torch.testing.assert_close(y, expected[:, t])
    torch.testing.assert_close(state, last)


def test_out_of_a_scan_may_be_the_state_that_comes_in():
    tensors = _small(num_steps=40)
    expected = selective_scan(**tensors)
    y, _ = _room(tensors)
    selective_scan(**tensors, out=(y, tensors["state"]))
    assert torch.equal(y, expected[0])
    assert torch.equal(tensors["state"], expected[1])


@pytest.mark.parametrize("name", ["u", "A", "delta_bias", "state"])
def test_out_takes_no_gradients(name):
    tensors = _small()
    tensors[name].requires_grad_()
    with pytest.raises(ConfigError, match=r"out .*no_grad"):
        selective_scan(**tensors, out=_room(tensors))
    with torch.no_grad():
        y, _ = selective_scan(**tensors, out=_room(tensors))
    assert not y.requires_grad


def test_graph_that_kept_what_out_overwrites_says_so():
    """As any operation of torch in place."""
    tensors, weight = _small(), torch.ones(1, requires_grad=True)
    out = _room(tensors)
    product = weight * out[0]
    selective_scan(**tensors, out=out)
    with pytest.raises(RuntimeError, match="operation"):
        product.sum().backward()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y, state: (y[:, :2], state), r"y.*\[5, 3, 33\]"),
        (lambda y, state: (y.double(), state), "float64"),
        (lambda y, state: (y, state.bfloat16()), "last"),
        (lambda y, state: (y, state.transpose(0, 1).contiguous().transpose(0, 1)), "strides"),
        (lambda y, state: y, "two tensors"),
        (lambda y, state: (y,), "two tensors"),
        (lambda y, state: (y, None), "two tensors"),
    ],
)
def test_wrong_out_is_named(change, message):
    tensors = _small()
    with pytest.raises(ShapeError, match=message):
        selective_scan(**tensors, out=change(*_room(tensors)))
    rows = {name: x[:, 0] if x.ndim == 3 and name != "state" else x for name, x in tensors.items()}
    with pytest.raises(ShapeError, match=r"out"):
        selective_scan_step(**rows, out=_room(tensors))


@pytest.mark.parametrize("shared", ["u", "z", "delta", "a part of the state", "each other"])
def test_out_that_shares_memory_is_an_error(shared):
    tensors = _small()
    y, state = _room(tensors)
    memory = torch.zeros(y.numel() + state.numel())
    if shared == "a part of the state":
        tensors["state"] = memory[: state.numel()].view_as(state)
        state = memory[33 : 33 + state.numel()].view_as(state)
    elif shared == "each other":
        y, state = memory[: y.numel()].view_as(y), memory[y.numel() - 1 : -1].view_as(state)
    else:
        y = tensors[shared]
    with pytest.raises(ShapeError, match="shares memory"):
        selective_scan(**tensors, out=(y, state))
