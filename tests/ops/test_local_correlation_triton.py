"""The Triton kernels of the correlation: on a GPU where there is one, and by Triton's interpreter."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.library import opcheck

from kinescan.errors import BackendError
from kinescan.ops import local_correlation
from kinescan.ops.local_correlation import local_correlation_step

GOLDEN = Path(__file__).parents[1] / "golden" / "local_correlation.safetensors"
OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
HALF_TOLERANCE = 2**-7  # bfloat16 keeps 8 bits: one of the last place, either way


def run(features, grad, *settings, backend="triton", **options):
    leaf = features.detach().requires_grad_()
    maps = local_correlation(leaf, *settings, backend=backend, **options)
    (gradient,) = torch.autograd.grad(maps, leaf, grad.to(maps.dtype))
    return maps.detach(), gradient


def assert_matches_reference(device, shape, offsets, window, border="zeros", dtype=torch.float32, **options):
    batch, num_frames, num_channels, height, width = shape
    features = torch.randn(shape).to(device, dtype)
    grad = torch.randn(batch, num_frames, len(offsets), window * window, height, width).to(device, dtype)
    settings = (offsets, window, border)
    maps, gradient = run(features, grad, *settings, **options)
    expected_maps, expected = run(features.double(), grad, *settings, backend="reference", **options)
    assert maps.dtype == gradient.dtype == dtype
    relative = HALF_TOLERANCE if dtype == torch.bfloat16 else OUTPUT_TOLERANCE
    torch.testing.assert_close(maps.double(), expected_maps, atol=OUTPUT_TOLERANCE, rtol=relative)
    # The cosine of two numbers is 1 or -1: with one channel the gradient is 0, and what is left of it rounding.
    largest = expected.abs().max().item() if num_channels > 1 else grad.abs().max().item()
    relative = HALF_TOLERANCE if dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(gradient.double(), expected, atol=GRADIENT_TOLERANCE * largest, rtol=relative)


def check_every_window(device):
    assert_matches_reference(device, (1, 3, 5, 6, 5), (-1, 0, 2), 3)
    assert_matches_reference(device, (2, 2, 3, 3, 17), (1, 0), 5)
    assert_matches_reference(device, (1, 2, 2, 5, 6), (1, -1), 9)
    assert_matches_reference(device, (1, 2, 3, 2, 1), (0, 1), 1)


def check_every_offset(device):
    for border in ("zeros", "replicate"):
        assert_matches_reference(device, (1, 1, 3, 3, 4), (0,), 3, border)
        assert_matches_reference(device, (1, 5, 3, 3, 4), (-4, -3, -2, -1, 0), 3, border)  # causal
        assert_matches_reference(device, (1, 4, 3, 3, 4), (2, -1, 0, 12, -7, -1), 1, border)  # any order, one twice
        assert_matches_reference(device, (1, 2, 3, 3, 4), (5,), 1, border)  # none inside


def check_sizes_beyond_a_block(device):
    assert_matches_reference(device, (1, 2, 35, 4, 4), (1,), 3)
    assert_matches_reference(device, (1, 2, 1, 9, 9), (1, 0), 3)
    assert_matches_reference(device, (1, 2, 2, 7, 11), (-1,), 5)


def check_bfloat16(device):
    for border in ("zeros", "replicate"):
        assert_matches_reference(device, (1, 3, 6, 5, 4), (-1, 0), 3, border, torch.bfloat16)


def check_epsilon(device):
    assert_matches_reference(device, (1, 2, 3, 4, 3), (0, 1), 3, epsilon=0.5)


def check_zero_vectors(device):
    features = torch.randn(1, 3, 4, 5, 5)
    features[0, 1, :, 2, 2] = 0.0
    features[0, 1, :, 0, 0] = 1e-13
    maps, gradient = run(features.to(device), torch.randn(1, 3, 3, 9, 5, 5).to(device), (-1, 0, 1), 3)
    assert not maps[0, 1, :, :, 2, 2].any()
    assert not gradient[0, 1, :, 2, 2].any()
    assert not gradient[0, 1, :, 0, 0].any()
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 100


def check_nan_stays_with_its_frame_and_clip(device):
    features, grad = torch.randn(3, 4, 3, 3, 2).to(device), torch.randn(3, 4, 2, 9, 3, 2).to(device)
    clean_maps, clean_gradient = run(features, grad, (-1, 0), 3)
    features[1, 2], grad[2, 3] = torch.nan, torch.nan
    maps, gradient = run(features, grad, (-1, 0), 3)
    assert torch.equal(maps[[0, 2]], clean_maps[[0, 2]])
    assert torch.equal(maps[1, :2], clean_maps[1, :2])  # causal: nothing comes from the frames to come
    assert maps[1, 2, :, 4].isnan().all()
    assert torch.equal(gradient[0], clean_gradient[0])
    assert torch.equal(gradient[2, :2], clean_gradient[2, :2])
    assert gradient[2, 3].isnan().all()


def check_stored_values(device):
    values = {name: x.to(device) for name, x in load_file(GOLDEN).items()}
    features, grad = values["window3/F"].float(), values["window3/grad_out"].float()
    maps, gradient = run(features, grad, (-1, 1), 3)
    torch.testing.assert_close(maps.double(), values["window3/corr_f64"], atol=OUTPUT_TOLERANCE, rtol=OUTPUT_TOLERANCE)
    largest = values["window3/grad_F_f64"].abs().max().item()
    torch.testing.assert_close(
        gradient.double(), values["window3/grad_F_f64"], atol=GRADIENT_TOLERANCE * largest, rtol=0
    )
    maps = local_correlation(values["window9/F"].float(), (-2, -1, 1, 2), 9, backend="triton")
    expected = values["window9/every_7th_corr_f64"]
    torch.testing.assert_close(maps.flatten()[::7].double(), expected, atol=OUTPUT_TOLERANCE, rtol=OUTPUT_TOLERANCE)


def check_step_is_the_last_frame(device):
    clip = torch.randn(2, 3, 4, 3, 4).to(device).requires_grad_()
    grad = torch.randn(2, 2, 9, 3, 4).to(device)
    step = local_correlation_step(clip[:, -1], clip[:, :-1], 3, "triton")
    whole = local_correlation(clip, (-2, -1), 3, backend="reference")[:, -1]
    torch.testing.assert_close(step, whole, atol=OUTPUT_TOLERANCE, rtol=OUTPUT_TOLERANCE)
    (expected,), (given,) = (torch.autograd.grad(maps, clip, grad) for maps in (whole, step))
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-4)


def check_views(device):
    features = torch.randn(1, 4, 3, 2, 6).to(device).permute(0, 3, 4, 1, 2)  # [1, 2, 6, 4, 3], channels last in memory
    grad = torch.randn(3, 1).to(device).expand(1, 2, 2, 9, 4, 3, 1)[..., 0]
    maps, gradient = run(features, grad, (0, 1), 3)
    expected = run(features.double(), grad, (0, 1), 3, backend="reference")
    torch.testing.assert_close([maps.double(), gradient.double()], list(expected), atol=1e-5, rtol=1e-4)


def check_keeps_only_the_features(device):
    kept = []
    features = torch.randn(1, 2, 3, 2, 2, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        local_correlation(features, (0, 1), 1, backend="triton")
    assert [tensor.data_ptr() for tensor in kept] == [features.data_ptr()]


def check_is_a_well_behaved_operator(device):
    for replicate, first_frame in ((False, 0), (True, 1)):
        features = torch.randn(1, 2, 3, 2, 3, device=device, requires_grad=True)
        settings = ([-1, 0], 3, replicate, first_frame, 0.1)
        opcheck(torch.ops.kinescan.local_correlation_triton.default, (features, *settings))
        grad = torch.randn(1, 2 - first_frame, 2, 9, 2, 3, device=device)
        opcheck(torch.ops.kinescan.local_correlation_triton_backward.default, (grad, features.detach(), *settings))


def check_compiles_as_one_graph(device):
    def loss(features):
        return local_correlation(features.relu(), (-1, 0), 3, backend="triton").sin().sum()

    features = torch.randn(1, 2, 4, 3, 2, device=device, requires_grad=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(features), features)
    torch.testing.assert_close(found, torch.autograd.grad(loss(features), features))


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
    message = r"local_correlation: backend 'triton' cannot run on cpu .*: (it needs a CUDA|triton is not installed)"
    with pytest.raises(BackendError, match=message):
        local_correlation(torch.ones(1, 2, 3, 4, 4), backend="triton")


def test_tables_of_a_gpu_are_not_allocated_by_the_thread_that_may_prepare_a_graph(monkeypatch):
    module = pytest.importorskip("kinescan.ops.local_correlation.triton")
    made, make = [], module._make_tables

    def record(*arguments):
        made.append((arguments[-1], threading.get_ident()))
        return make(*arguments[:-1], "cpu")

    monkeypatch.setattr(module, "_make_tables", record)
    for device in ("cuda:0", "cpu"):
        module._tables.__wrapped__(4, (-1, 0, 1), False, 0, device)
    assert [device for device, _ in made] == ["cuda:0", "cpu"]
    assert [thread == threading.get_ident() for _, thread in made] == [False, True]
