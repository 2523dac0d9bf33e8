import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.library import opcheck
from torch.nn import functional

from kinescan.ops import local_correlation
from kinescan.ops.local_correlation import local_correlation_step

SIZES = [(1, 1), (7, 7), (6, 5), (14, 14), (3, 17)]
# (T, offsets): lengths from 1, causal, in any order, beyond the clip, one twice, none inside
TIMES = [
    (1, (0,)),
    (2, (-2, -1, 0, 1, 2)),
    (4, (-4, -3, -2, -1, 0)),
    (5, (2, -1, 0, 12, -7)),
    (9, (1, -2, 1)),
    (2, (5,)),
]
OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4


def run(features, grad, *settings, backend="numba"):
    leaf = features.detach().requires_grad_()
    maps = local_correlation(leaf, *settings, backend=backend)
    (gradient,) = torch.autograd.grad(maps, leaf, grad.to(maps.dtype))
    return maps.detach(), gradient


def assert_matches_reference(given, features, grad, *settings):
    maps, gradient = given
    expected_maps, expected_gradient = run(features.double(), grad, *settings, backend="reference")
    torch.testing.assert_close(maps.double(), expected_maps, atol=OUTPUT_TOLERANCE, rtol=OUTPUT_TOLERANCE)
    # The cosine of two numbers is 1 or -1: with one channel the gradient is 0, and what is left of it rounding.
    largest = expected_gradient.abs().max().item() if features.shape[2] > 1 else grad.abs().max().item()
    torch.testing.assert_close(gradient.double(), expected_gradient, atol=GRADIENT_TOLERANCE * largest, rtol=0.0)


@pytest.fixture
def nan_memory(monkeypatch):
    """Fresh memory holds NaN, so that a value that nobody wrote shows."""

    def nan_empty(shape, dtype=float):
        return np.full(shape, np.nan, dtype=dtype)

    run(torch.randn(1, 2, 1, 2, 2), torch.randn(1, 2, 1, 1, 2, 2), (0,), 1)  # compile with the true np.empty
    monkeypatch.setattr(np, "empty", nan_empty)
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("num_channels", [1, 3, 64])
@pytest.mark.parametrize("window", [1, 3, 9])
@pytest.mark.parametrize("size", SIZES)
def test_matches_reference_at_every_size(size, window, num_channels, nan_memory):
    features, offsets = torch.randn(2, 3, num_channels, *size), (-1, 0, 2)
    grad = torch.randn(2, 3, 3, window * window, *size)
    assert_matches_reference(run(features, grad, offsets, window), features, grad, offsets, window)


@pytest.mark.parametrize("border", ["zeros", "replicate"])
@pytest.mark.parametrize(("num_frames", "offsets"), TIMES)
def test_matches_reference_at_every_offset(num_frames, offsets, border, nan_memory):
    features, grad = torch.randn(2, num_frames, 6, 6, 5), torch.randn(2, num_frames, len(offsets), 25, 6, 5)
    assert_matches_reference(run(features, grad, offsets, 5, border), features, grad, offsets, 5, border)


@pytest.mark.parametrize("epsilon", [1e-6, 0.5])
def test_epsilon_matches_reference(epsilon, nan_memory):
    features = torch.randn(2, 3, 4, 5, 7)
    features[0, 1, :, 2, 3] = 0.0
    grad = torch.randn(2, 3, 2, 9, 5, 7)
    inputs = [features.double().requires_grad_(), features.clone().requires_grad_()]
    results = []
    for given, backend in zip(inputs, ("reference", "numba"), strict=True):
        maps = local_correlation(given, (0, 1), 3, backend=backend, epsilon=epsilon)
        results.append((maps.detach().double(), *torch.autograd.grad(maps, given, grad.to(maps.dtype))))
    (expected, expected_gradient), (maps, gradient) = results
    torch.testing.assert_close(maps, expected, atol=OUTPUT_TOLERANCE, rtol=OUTPUT_TOLERANCE)
    largest = expected_gradient.abs().max().item()
    torch.testing.assert_close(gradient.double(), expected_gradient, atol=GRADIENT_TOLERANCE * largest, rtol=0.0)
    plain = local_correlation(features, (0, 1), 3)
    assert (maps.abs() <= plain.double().abs() + 1e-6).all()
    assert (maps - plain).abs().max() > (1e-8 if epsilon < 0.1 else 0.01)


@pytest.mark.parametrize("num_channels", [95, 130, 202])
def test_matches_reference_across_channel_chunks(num_channels, nan_memory):
    features, grad = torch.randn(1, 3, num_channels, 5, 9), torch.randn(1, 3, 2, 49, 5, 9)
    assert_matches_reference(run(features, grad, (0, 1), 7), features, grad, (0, 1), 7)


def test_strided_inputs_and_gradients():
    features = torch.randn(2, 6, 5, 3, 8).permute(0, 3, 4, 1, 2)  # [2, 3, 8, 6, 5], channels last in memory
    grad = torch.randn(9, 1).expand(2, 3, 2, 9, 6).movedim(0, 0)[..., None].expand(2, 3, 2, 9, 6, 5)
    assert_matches_reference(run(features, grad, (0, 1), 3), features, grad, (0, 1), 3)
    frames = torch.randn(2, 6, 8, 6, 5)[:, ::2]
    assert_matches_reference(run(frames, grad, (0, 1), 3), frames, grad, (0, 1), 3)


@pytest.mark.parametrize("size", [(5, 14), (1, 1), (9, 3)])
def test_nan_stays_with_its_frame_and_clip(size):
    features = torch.randn(3, 4, 8, *size)
    grad = torch.randn(3, 4, 2, 25, *size)
    clean_maps, clean_gradient = run(features, grad, (-1, 0), 5)
    features[1, 2], grad[2, 3] = torch.nan, torch.nan
    maps, gradient = run(features, grad, (-1, 0), 5)
    assert torch.equal(maps[[0, 2]], clean_maps[[0, 2]])
    assert torch.equal(maps[1, :2], clean_maps[1, :2])  # causal: nothing comes from the frames to come
    assert maps[1, 2, :, 12].isnan().all()
    assert torch.equal(gradient[0], clean_gradient[0])
    assert torch.equal(gradient[2, :2], clean_gradient[2, :2])
    assert gradient[2, 3].isnan().all()


@pytest.mark.parametrize("size", [(2, 3), (3, 9), (1, 1)])
def test_reads_nothing_around_its_inputs(size):
    def amid_nan(*shape):
        room = torch.full((torch.Size(shape).numel() + 40,), torch.nan)
        inside = room[20:-20].view(shape)
        return inside.copy_(torch.randn(shape))

    features, grad = amid_nan(1, 3, 4, *size), amid_nan(1, 3, 2, 9, *size)
    assert_matches_reference(run(features, grad, (-1, 0), 3), features, grad, (-1, 0), 3)


def test_number_of_threads_changes_nothing():
    features, grad = torch.randn(3, 5, 64, 14, 14), torch.randn(3, 5, 5, 81, 14, 14)
    threads_before = torch.get_num_threads()
    try:
        results = []
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            results.append(run(features, grad))
    finally:
        torch.set_num_threads(threads_before)
    for maps, gradient in results[1:]:
        assert torch.equal(maps, results[0][0])
        torch.testing.assert_close(gradient, results[0][1], atol=1e-5, rtol=1e-4)


def test_callers_on_several_threads_do_not_meet():
    clips = [torch.randn(1, 4, 16, 14, 14) for _ in range(8)]
    expected = [local_correlation(clip) for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        for maps, wanted in zip(pool.map(local_correlation, clips), expected, strict=True):
            assert torch.equal(maps, wanted)


def correlate_in_worker(clip):
    torch.set_num_threads(2)
    return local_correlation(torch.from_numpy(clip)).numpy()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_runs_in_a_forked_worker():
    threads_before = torch.get_num_threads()
    clip = torch.randn(1, 8, 64, 14, 14)
    try:
        torch.set_num_threads(2)
        expected = local_correlation(clip)
        with multiprocessing.get_context("fork").Pool(1) as pool:
            given = pool.apply_async(correlate_in_worker, (clip.numpy(),)).get(timeout=60)
    finally:
        torch.set_num_threads(threads_before)
    torch.testing.assert_close(torch.from_numpy(given), expected)


def test_keeps_only_the_features_for_backward():
    kept = []
    features = torch.randn(1, 4, 8, 6, 6, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        local_correlation(features)
    assert [tensor.data_ptr() for tensor in kept] == [features.data_ptr()]


def test_second_derivative_is_refused():
    features = torch.randn(1, 2, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        local_correlation(features, (0, 1), 3).square().sum(), features, create_graph=True
    )
    with pytest.raises(RuntimeError, match=r"local_correlation.*reference"):
        gradient.sum().backward()


@pytest.mark.parametrize(("replicate", "first_frame"), [(False, 0), (True, 2)])
def test_opcheck(replicate, first_frame):
    features = torch.randn(2, 3, 4, 6, 5, requires_grad=True)
    settings = ([-1, 0, 2], 3, replicate, first_frame, 0.1)
    opcheck(torch.ops.kinescan.local_correlation.default, (features, *settings))
    grad = torch.randn(2, 3 - first_frame, 3, 9, 6, 5)
    opcheck(torch.ops.kinescan.local_correlation_backward.default, (grad, features.detach(), *settings))


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_without_graph_breaks():
    def loss(features):
        step = local_correlation_step(features[:, -1], features[:, :-1], 3)
        return local_correlation(functional.relu(features), (-1, 0), 3).sin().sum() + step.square().sum()

    features = torch.randn(2, 4, 6, 6, 5, requires_grad=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (expected,) = torch.autograd.grad(loss(features), features)
    (given,) = torch.autograd.grad(compiled(features), features)
    torch.testing.assert_close(compiled(features), loss(features))
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-4)


class Causal(torch.nn.Module):
    def forward(self, features):
        return local_correlation(features, (-1, 0), 3)


def test_exports_with_free_batch_and_length():
    dims = {"features": {0: torch.export.Dim("B", min=1, max=64), 1: torch.export.Dim("T", min=2, max=64)}}
    program = torch.export.export(Causal(), (torch.randn(2, 4, 6, 6, 5),), dynamic_shapes=dims)
    other = torch.randn(3, 7, 6, 6, 5)
    assert torch.equal(program.module()(other), local_correlation(other, (-1, 0), 3))
