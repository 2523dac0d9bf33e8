import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kinescan.errors import BackendError, ConfigError, ShapeError
from kinescan.ops import backend as backend_module
from kinescan.ops import local_correlation
from kinescan.ops.backend import plain_torch
from kinescan.ops.local_correlation import local_correlation_step

BACKENDS = ("reference", "dense", "numba")
GOLDEN = Path(__file__).parents[1] / "golden" / "local_correlation.safetensors"
# Outputs: absolute and relative. Gradients: of the largest entry.
OUTPUT_TOLERANCE = {torch.float64: (1e-10, 1e-9), torch.float32: (1e-5, 1e-5), torch.bfloat16: (2e-2, 0.0)}
GRADIENT_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 2e-2}
# (backend, dtype) that the reference values are held against
PRECISIONS = [
    *(("reference", torch.float64), ("reference", torch.float32)),
    *(("dense", torch.float64), ("dense", torch.float32), ("numba", torch.float32)),
]


def assert_output(given, expected, dtype):
    absolute, relative = OUTPUT_TOLERANCE[dtype]
    torch.testing.assert_close(given.double(), expected.double(), atol=absolute, rtol=relative)


def assert_gradient(given, expected, dtype):
    largest = expected.abs().max().item()
    torch.testing.assert_close(given.double(), expected.double(), atol=GRADIENT_TOLERANCE[dtype] * largest, rtol=0.0)


def with_gradient(features, grad, *settings, backend):
    leaf = features.detach().clone().requires_grad_()
    maps = local_correlation(leaf, *settings, backend=backend)
    (gradient,) = torch.autograd.grad(maps, leaf, grad.to(maps.dtype))
    return maps.detach(), gradient


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_frames_of_two_patches_by_hand(backend):
    # Frame 0: directions (0.6, 0.8) and (1, 0); frame 1: (0, 1) and (1, 0).
    frames = torch.tensor([[[3.0, 1.0], [4.0, 0.0]], [[0.0, 5.0], [2.0, 0.0]]])[None, :, :, None, :]
    maps = local_correlation(frames, (1, -1), 3, backend=backend)
    expected = torch.zeros(1, 2, 2, 9, 1, 2)
    left, centre, right = 3, 4, 5
    expected[0, 0, 0, centre, 0] = torch.tensor([0.8, 1.0])
    expected[0, 0, 0, right, 0, 0] = 0.6
    expected[0, 0, 0, left, 0, 1] = 0.0
    expected[0, 1, 1, centre, 0] = torch.tensor([0.8, 1.0])
    expected[0, 1, 1, right, 0, 0] = 0.0
    expected[0, 1, 1, left, 0, 1] = 0.6
    torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_identical_frames_meet_in_the_centre(backend):
    frames = torch.randn(2, 1, 16, 5, 6).expand(2, 4, 16, 5, 6)
    maps = local_correlation(frames, (-1, 0, 1), 5, backend=backend)
    centre = maps[:, :, :, 12]
    torch.testing.assert_close(centre[:, 1:-1], torch.ones_like(centre[:, 1:-1]))
    others = torch.cat([maps[:, 1:-1, :, :12], maps[:, 1:-1, :, 13:]], dim=3)
    assert others.max() < 0.99


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dy", "dx"), [(0, 2), (-1, 1), (2, -2)])
def test_moved_frame_is_found_at_its_displacement(dy, dx, backend):
    scene = torch.randn(1, 24, 11, 11)
    clip = torch.stack([scene[..., 2:9, 2:9], scene[..., 2 - dy : 9 - dy, 2 - dx : 9 - dx]], dim=1)
    maps = local_correlation(clip, (1,), 5, backend=backend)[0, 0, 0].unflatten(0, (5, 5))
    inner = maps[:, :, 2:-2, 2:-2]
    assert torch.equal(inner.flatten(0, 1).argmax(dim=0), torch.full((3, 3), (dy + 2) * 5 + dx + 2))
    torch.testing.assert_close(inner[dy + 2, dx + 2], torch.ones(3, 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_border_of_the_clip(backend):
    frames = torch.randn(1, 3, 4, 5, 5)
    zeros = local_correlation(frames, (-1, 0, 4), 3, "zeros", backend)
    replicate = local_correlation(frames, (-1, 0, 4), 3, "replicate", backend)
    assert not zeros[:, 0, 0].any()
    assert not zeros[:, :, 2].any()
    torch.testing.assert_close(replicate[:, 0, 0], zeros[:, 0, 1])
    torch.testing.assert_close(replicate[:, 2, 2], zeros[:, 2, 1])
    torch.testing.assert_close(replicate[:, 1:, :2], zeros[:, 1:, :2])


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("border", ["zeros", "replicate"])
def test_reference_gradcheck(window, border):
    features = torch.randn(1, 2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: local_correlation(x, (-1, 0), window, border), features)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_vectors_give_zeros_and_pass_no_gradient(backend):
    features = torch.randn(1, 3, 4, 5, 5)
    features[0, 1, :, 2, 2] = 0.0
    features[0, 1, :, 0, 0] = 1e-13
    maps, gradient = with_gradient(features, torch.randn(1, 3, 3, 9, 5, 5), (-1, 0, 1), 3, backend=backend)
    assert not maps[0, 1, :, :, 2, 2].any()
    assert not gradient[0, 1, :, 2, 2].any()
    assert not gradient[0, 1, :, 0, 0].any()
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 100


@pytest.mark.parametrize(("backend", "dtype"), PRECISIONS)
def test_agrees_with_stored_values(backend, dtype):
    values = load_file(GOLDEN)
    maps, gradient = with_gradient(
        values["window3/F"].to(dtype), values["window3/grad_out"], (-1, 1), 3, backend=backend
    )
    assert_output(maps, values["window3/corr_f64"], dtype)
    assert_gradient(gradient, values["window3/grad_F_f64"], dtype)
    maps = local_correlation(values["window9/F"].to(dtype), (-2, -1, 1, 2), 9, backend=backend)
    assert_output(maps.flatten()[::7], values["window9/every_7th_corr_f64"], dtype)


@pytest.mark.parametrize(("backend", "dtype"), PRECISIONS)
@pytest.mark.parametrize(
    ("case", "offsets", "window"), [("g0", (-2, -1, 1, 2), 9), ("g1", (-2, -1, 1, 2), 9), ("g5_win3", (-1, 1), 3)]
)
def test_agrees_with_published_block(shared, case, offsets, window, backend, dtype):
    values = load_file(shared / "fixtures" / "local_correlation.safetensors")
    maps, gradient = with_gradient(
        values[f"{case}/F"].to(dtype), values[f"{case}/grad_out"], offsets, window, backend=backend
    )
    assert_output(maps, values[f"{case}/corr_f64"], dtype)
    assert_gradient(gradient, values[f"{case}/grad_F_f64"], dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(dtype, backend):
    features, grad = torch.randn(1, 3, 8, 6, 5).to(dtype), torch.randn(1, 3, 2, 9, 6, 5).to(dtype)
    maps, gradient = with_gradient(features, grad, (0, 1), 3, backend=backend)
    wide_maps, wide_gradient = with_gradient(features.float(), grad.float(), (0, 1), 3, backend=backend)
    assert maps.dtype == gradient.dtype == dtype
    assert torch.equal(maps, wide_maps.to(dtype))
    assert torch.equal(gradient, wide_gradient.to(dtype))


@pytest.mark.parametrize(("backend", "dtype"), PRECISIONS)
@pytest.mark.parametrize(("num_context", "window", "size"), [(4, 9, (7, 6)), (1, 3, (1, 1)), (5, 5, (14, 14))])
def test_step_is_the_last_frame_of_the_clip(num_context, window, size, backend, dtype):
    clip = torch.randn(2, num_context + 1, 8, *size, dtype=dtype, requires_grad=True)
    offsets = tuple(range(-num_context, 0))
    grad = torch.randn(2, num_context, window * window, *size, dtype=dtype)
    whole = local_correlation(clip, offsets, window, backend=backend)[:, -1]
    step = local_correlation_step(clip[:, -1], clip[:, :-1], window, backend)
    assert_output(step, whole, dtype)
    expected, given = (torch.autograd.grad(maps, clip, grad)[0] for maps in (whole, step))
    assert_gradient(given, expected, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_stream_of_steps_equals_the_causal_clip(backend):
    clip = torch.randn(1, 7, 8, 6, 6)
    offline = local_correlation(clip, (-4, -3, -2, -1, 0), 3, backend=backend)
    context = torch.zeros(1, 5, 8, 6, 6)
    for t in range(7):
        context = torch.cat([context[:, 1:], clip[:, t : t + 1]], dim=1)
        assert_output(local_correlation_step(clip[:, t], context, 3, backend), offline[:, t], torch.float32)


def test_default_backend_follows_the_dtype_and_is_announced_once(monkeypatch, caplog):
    monkeypatch.setattr(backend_module, "_announced", set())
    with caplog.at_level(logging.INFO, logger="kinescan.ops.backend"):
        for dtype in (torch.float32, torch.float32, torch.float64):
            local_correlation(torch.randn(1, 2, 3, 4, 4, dtype=dtype), (0,), 3)
    assert caplog.messages == [
        "local_correlation runs with the numba backend on cpu",
        "local_correlation runs with the dense backend on cpu",
    ]


def test_numba_refuses_float64():
    with pytest.raises(BackendError, match=r"'numba'.*float64: .*float32.*These.*reference\."):
        local_correlation(torch.randn(1, 2, 3, 4, 4, dtype=torch.float64), backend="numba")


def test_dense_refuses_large_maps_where_the_reference_runs():
    frames = torch.randn(1, 1, 2, 33, 32)
    with pytest.raises(BackendError, match=r"'dense'.*compares.*1056 patches.*These"):
        local_correlation(frames, (0,), 3, backend="dense")
    with plain_torch():
        assert_output(
            local_correlation(frames, (0,), 3), local_correlation(frames, (0,), 3, backend="numba"), dtype=torch.float32
        )


@pytest.mark.bad_input
def test_unknown_backend():
    with pytest.raises(BackendError, match=r"backend 'cuda': .*there"):
        local_correlation(torch.randn(1, 2, 3, 4, 4), backend="cuda")


@pytest.mark.bad_input
@pytest.mark.parametrize("features", [torch.ones(2, 3, 4, 4), torch.ones(1, 2, 3, 4, 4, dtype=torch.int64)])
def test_wrong_features(features):
    with pytest.raises(ShapeError, match=r"features.*\[B, T, C, H, W\].*(float32|int64) \["):
        local_correlation(features)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4, 4), (1, 0, 3, 4, 4), (1, 2, 3, 4, 0)])
def test_empty_axis(shape):
    with pytest.raises(ShapeError, match="empty"):
        local_correlation(torch.ones(shape))


@pytest.mark.parametrize(("window", "hint"), [(8, "Use 7 or 9"), (0, "Use 1 or 3"), (-3, "Use 1 or 3")])
def test_window_without_a_middle(window, hint):
    with pytest.raises(ShapeError, match=rf"window.*{window}\. {hint}"):
        local_correlation(torch.ones(1, 2, 3, 4, 4), window=window)
    with pytest.raises(ShapeError, match=rf"window.*{window}\. {hint}"):
        local_correlation_step(torch.ones(1, 3, 4, 4), torch.ones(1, 2, 3, 4, 4), window)


def test_no_offsets():
    with pytest.raises(ConfigError, match="offsets"):
        local_correlation(torch.ones(1, 2, 3, 4, 4), ())


@pytest.mark.bad_input
def test_unknown_border():
    with pytest.raises(ConfigError, match=r"border.*'zeros'.*'replicate'.*'reflect'"):
        local_correlation(torch.ones(1, 2, 3, 4, 4), border="reflect")


@pytest.mark.bad_input
def test_negative_epsilon():
    with pytest.raises(ConfigError, match=r"epsilon.*-1\.0"):
        local_correlation(torch.ones(1, 2, 3, 4, 4), epsilon=-1.0)


@pytest.mark.bad_input
def test_step_with_frames_that_do_not_fit():
    with pytest.raises(ShapeError, match=r"current.*\[B, C, H, W\] = \[1, 3, 4, 4\] .*got \[1, 3, 4, 5\]"):
        local_correlation_step(torch.ones(1, 3, 4, 5), torch.ones(1, 2, 3, 4, 4))
    with pytest.raises(ShapeError, match=r"context.*\[B, K, C, H, W\].*float32 \[1, 3, 4, 4\]"):
        local_correlation_step(torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4))


def test_step_with_two_dtypes():
    with pytest.raises(ShapeError, match=r"torch\.float64.*torch\.float32"):
        local_correlation_step(torch.ones(1, 3, 4, 4).double(), torch.ones(1, 2, 3, 4, 4))
