"""The Triton kernels of the scan: on a GPU where there is one, and by Triton's interpreter."""

import math
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch.library import opcheck

from kinescan.errors import BackendError
from kinescan.ops import selective_scan, selective_scan_step

GOLDEN = Path(__file__).parents[1] / "golden" / "selective_scan.safetensors"
OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
HALF_TOLERANCE = 2**-7  # bfloat16 keeps 8 bits: one of the last place, either way
ARGUMENTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
ALONG_TIME = ("u", "delta", "B", "C", "z")


def draw(device, num_tracks, num_steps, num_channels, state_size, optional=True, state=True):
    tensors = {
        "u": torch.randn(num_tracks, num_steps, num_channels),
        "delta": torch.randn(num_tracks, num_steps, num_channels),
        "A": -torch.exp(torch.randn(num_channels, state_size)),
        "B": torch.randn(num_tracks, num_steps, state_size),
        "C": torch.randn(num_tracks, num_steps, state_size),
    }
    if optional:
        tensors |= {"D": torch.randn(num_channels), "z": torch.randn(num_tracks, num_steps, num_channels)}
        tensors["delta_bias"] = torch.randn(num_channels)
    if state:
        tensors["state"] = torch.randn(num_tracks, num_channels, state_size)
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def run(tensors, backend, grad_y, grad_state, **options):
    leaves = {n: x.detach().requires_grad_() for n, x in tensors.items()}
    y, state = selective_scan(**leaves, **options, backend=backend)
    outputs, grads = [y, state], [grad_y.to(y.dtype), grad_state.to(state.dtype)]
    found = torch.autograd.grad(outputs, list(leaves.values()), grads)
    return {"y": y.detach(), "state": state.detach()}, dict(zip(leaves, found, strict=True))


def assert_matches_reference(tensors, half=False, **options):
    """Outputs, last state and every gradient, for a loss of both outputs, against float64."""
    u, A = tensors["u"], tensors["A"]
    grad_y, grad_state = torch.randn(u.shape).to(u), torch.randn(u.shape[0], *A.shape).to(A)
    outputs, grads = run(tensors, "triton", grad_y, grad_state, **options)
    double = {n: x.double() for n, x in tensors.items()}
    expected, expected_grads = run(double, "reference", grad_y, grad_state, **options)
    for name, value in {**outputs, **grads}.items():
        wanted = {**expected, **expected_grads}[name]
        tolerance = OUTPUT_TOLERANCE if name in outputs else GRADIENT_TOLERANCE
        if value.dtype == torch.bfloat16:
            torch.testing.assert_close(value.double(), wanted, atol=tolerance, rtol=HALF_TOLERANCE, msg=name)
            continue
        error, largest = (value.double() - wanted).abs().max().item(), wanted.abs().max().item()
        assert error <= tolerance * max(1e-30, largest), f"{name}: {error} of {largest}"
    assert all(grads[name].dtype == x.dtype and grads[name].shape == x.shape for name, x in tensors.items())


def check_every_length(device):
    for num_steps in (1, 3, 8, 17):
        assert_matches_reference(draw(device, 2, num_steps, 5, 16))


def check_other_sizes(device):
    assert_matches_reference(draw(device, 1, 2, 131, 5))  # two blocks of channels
    assert_matches_reference(draw(device, 3, 9, 33, 3))
    assert_matches_reference(draw(device, 1, 3, 7, 1))
    assert_matches_reference(draw(device, 1, 3, 3, 100))  # threads share a channel


def check_tracks_share_a_program(device):
    from kinescan.ops.selective_scan import triton as kernels

    with mock.patch.object(kernels, "TRACK_PARTS", 2):
        for num_steps in (2, 9):
            assert_matches_reference(draw(device, 5, num_steps, 3, 2))


def check_splits_of_time(device):
    """A long scan of few tracks: splits side by side, the last of them shorter, with and without what is optional."""
    from kinescan.ops.selective_scan import triton as kernels
    from kinescan.ops.selective_scan import triton_splits

    with mock.patch.object(triton_splits, "PROGRAMS", 6), mock.patch.object(triton_splits, "FEWEST_STEPS", 3):
        assert triton_splits.split_time(2, 10, 1) == (3, 4)
        assert_matches_reference(draw(device, 2, 10, 5, 4))
        assert_matches_reference(draw(device, 1, 11, 3, 2, optional=False, state=False))
        tensors = draw(device, 1, 13, 3, 2)
        assert_matches_reference({n: x.bfloat16() if n in ALONG_TIME else x for n, x in tensors.items()})
        tensors["delta"] = tensors["delta"].abs()
        assert_matches_reference({name: x for name, x in tensors.items() if name != "state"}, delta_softplus=False)
        with mock.patch.object(kernels, "TRACK_PARTS", 2):
            assert_matches_reference(draw(device, 1, 19, 3, 2))
        check_gradient_of_one_output(device)
        check_views(device)


def check_splits_are_those_of_one_scan(device):
    """The same numbers, but for the order of sums, as one scan; a state that has died out stays so."""
    from kinescan.ops.selective_scan import triton_splits

    tensors = draw(device, 1, 12, 3, 4)
    tensors["A"][0] = -80.0
    whole = selective_scan(**tensors, backend="triton")
    with mock.patch.object(triton_splits, "PROGRAMS", 8), mock.patch.object(triton_splits, "FEWEST_STEPS", 2):
        in_splits = selective_scan(**tensors, backend="triton")
    torch.testing.assert_close(in_splits, whole, atol=1e-6, rtol=1e-5)


def check_when_time_is_cut(device):
    from kinescan.ops.selective_scan.triton_splits import split_time

    assert split_time(6272, 8, 12) == (1, 8)
    assert split_time(6272, 32, 12) == (1, 32)
    assert split_time(784, 1, 12) == (1, 1)
    num_splits, split_steps = split_time(8, 6273, 9)
    assert num_splits >= 10
    assert (num_splits - 1) * split_steps < 6273 <= num_splits * split_steps
    for num_steps in range(1, 3000, 7):
        num_splits, split_steps = split_time(1, num_steps, 3)
        assert (num_splits - 1) * split_steps < num_steps <= num_splits * split_steps


def check_options(device):
    assert_matches_reference(draw(device, 2, 3, 6, 4, optional=False, state=False))
    whole = draw(device, 2, 3, 6, 4)
    for left_out in ("D", "z", "delta_bias", "state"):
        assert_matches_reference({name: x for name, x in whole.items() if name != left_out})
    assert_matches_reference({**whole, "delta": whole["delta"].abs()}, delta_softplus=False)


def check_bfloat16(device):
    tensors = draw(device, 2, 9, 5, 16)
    assert_matches_reference({n: x.bfloat16() if n in ALONG_TIME else x for n, x in tensors.items()})
    assert_matches_reference({n: x.bfloat16() for n, x in tensors.items()})
    y, state = selective_scan(**{n: x.bfloat16() for n, x in tensors.items()}, backend="triton")
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)


def check_gradient_of_one_output(device):
    tensors = {n: x.requires_grad_() for n, x in draw(device, 2, 4, 5, 3).items()}
    names = [n for n in tensors if n not in ("C", "D", "z")]  # the last state does not depend on these
    for i in range(2):
        wanted = list(tensors) if i == 0 else names
        grads = []
        for backend in ("triton", "reference"):
            output = selective_scan(**tensors, backend=backend)[i]
            grads.append(torch.autograd.grad(output.square().sum(), [tensors[n] for n in wanted]))
        torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


def check_published_values(device):
    values = {name: x.to(device) for name, x in load_file(GOLDEN).items()}
    for case in sorted({key.split("/")[0] for key in values}):
        leaves = {n: values[f"{case}/{n}"].float().requires_grad_() for n in ARGUMENTS if f"{case}/{n}" in values}
        ours = {n: x.transpose(1, 2) if n in ALONG_TIME else x for n, x in leaves.items()}
        y, state = selective_scan(**ours, delta_softplus="delta_bias" in leaves, backend="triton")
        torch.testing.assert_close(y.transpose(1, 2).double(), values[f"{case}/out_f64"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(state.double(), values[f"{case}/last_state_f64"], atol=1e-5, rtol=1e-5)
        grad_y = values[f"{case}/grad_out"].transpose(1, 2).float()
        for name, grad in zip(leaves, torch.autograd.grad(y, list(leaves.values()), grad_y), strict=True):
            expected = values[f"{case}/d{name}_f64"]
            largest = expected.abs().max().item()
            torch.testing.assert_close(grad.double(), expected, atol=GRADIENT_TOLERANCE * largest, rtol=0.0, msg=name)


def check_whole_and_steps(device):
    tensors = draw(device, 2, 5, 7, 4)
    whole, last = selective_scan(**tensors, backend="triton")
    state, rows = tensors["state"], []
    before = state.clone()
    for start, stop in ((0, 1), (1, 4), (4, 5)):
        cut = {n: x[:, start:stop] if n in ALONG_TIME else x for n, x in tensors.items()}
        if stop - start == 1:
            row, state = selective_scan_step(
                **{**cut, **{n: cut[n][:, 0] for n in ALONG_TIME}, "state": state}, backend="triton"
            )
            rows.append(row[:, None])
        else:
            chunk, state = selective_scan(**{**cut, "state": state}, backend="triton")
            rows.append(chunk)
    torch.testing.assert_close(torch.cat(rows, dim=1), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, last, atol=1e-5, rtol=1e-5)
    assert torch.equal(tensors["state"], before)


def check_views(device):
    """Parts of one projection, as a Mamba block hands them over, and a gradient that is one number repeated."""
    tensors = draw(device, 2, 3, 6, 4)
    projected = torch.randn(3, 2, 12).to(device).transpose(0, 1)
    both = torch.randn(2, 3, 9).to(device)
    tensors |= {"u": projected[..., :6], "z": projected[..., 6:], "B": both[..., 1:5], "C": both[..., 5:]}
    tensors["delta"] = torch.randn(2, 6, 3).to(device).transpose(1, 2)
    assert_matches_reference(tensors)
    leaf = tensors["u"].detach().requires_grad_()
    y, _ = selective_scan(**{**tensors, "u": leaf}, backend="triton")
    (found,) = torch.autograd.grad(y.sum(), leaf)
    y, _ = selective_scan(**{**tensors, "u": leaf}, backend="reference")
    torch.testing.assert_close(found, torch.autograd.grad(y.sum(), leaf)[0], atol=1e-5, rtol=1e-4)


def check_step_sizes_and_gates_over_their_range(device):
    x = torch.linspace(-86.0, 100.0, 2001, device=device)
    one, channels = torch.ones(1, 1, 1, device=device), x.numel()
    rows = {"u": torch.ones(1, 1, channels, device=device), "delta": x[None, None], "z": x[None, None]}
    A, D = torch.zeros(channels, 1, device=device), torch.ones(channels, device=device)
    y, state = selective_scan(**rows, A=A, B=one, C=0 * one, D=D, backend="triton")
    softplus = torch.nn.functional.softplus(x.double(), threshold=1000)
    silu = x.double() * torch.sigmoid(x.double())
    torch.testing.assert_close(state[0, :, 0].double(), softplus, atol=0.0, rtol=2e-5)
    torch.testing.assert_close(y[0, 0].double(), silu, atol=1e-30, rtol=2e-5)


def check_nan_is_not_swallowed(device):
    for name in (*ARGUMENTS, "state"):
        tensors = draw(device, 1, 4, 3, 2)
        tensors[name].view(-1)[0] = math.nan
        y, _ = selective_scan(**tensors, backend="triton")
        assert y.isnan().any(), name


def check_keeps_only_its_inputs(device):
    tensors = {n: x.requires_grad_() for n, x in draw(device, 2, 5, 8, 4).items()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.data_ptr()), lambda x: x):
        selective_scan(**tensors, backend="triton")
    assert sorted(saved) == sorted(x.data_ptr() for x in tensors.values())


def check_is_a_well_behaved_operator(device):
    """Schema, fake tensors, autograd registration and tracing, with and without the optional parts."""
    for tensors in (draw(device, 2, 3, 5, 4), draw(device, 2, 3, 5, 4, optional=False, state=False)):
        leaves = {n: x.requires_grad_() for n, x in tensors.items()}
        arguments = [*(leaves.get(n) for n in ARGUMENTS), True, leaves.get("state")]
        opcheck(torch.ops.kinescan.selective_scan_triton.default, arguments)
        arguments = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
        for grad_state in (None, torch.randn(2, 5, 4).to(device)):
            opcheck(
                torch.ops.kinescan.selective_scan_triton_backward.default,
                (torch.randn(2, 3, 5).to(device), grad_state, *arguments),
                test_utils=("test_schema", "test_faketensor"),
            )


def check_compiles_as_one_graph(device):
    def loss(u, delta, A, B, C, state):
        y, last = selective_scan(u * 2.0, delta, A, B, C, state=state, backend="triton")
        return y.relu().sum() + last.square().sum()

    leaves = {n: x.requires_grad_() for n, x in draw(device, 2, 3, 5, 4, optional=False).items()}
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(**leaves), list(leaves.values()))
    torch.testing.assert_close(found, torch.autograd.grad(loss(**leaves), list(leaves.values())))


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}


@pytest.mark.parametrize("name", CHECKS)
def test_by_the_interpreter(name, interpreted):
    assert interpreted[name] is None, interpreted[name]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CHECKS)
def test_on_a_gpu(name):
    CHECKS[name]("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_by_name_says_why_it_cannot_run():
    ones = torch.ones(1, 2, 3)
    message = (
        r"selective_scan: backend 'triton' cannot run on cpu with float32: (it needs a CUDA|triton is not installed)"
    )
    with pytest.raises(BackendError, match=message):
        selective_scan(ones, ones, -torch.ones(3, 1), ones[..., :1], ones[..., :1], backend="triton")
