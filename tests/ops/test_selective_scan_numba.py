import math
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import numba as compiler
import pytest
import torch
from torch.library import opcheck

from kinescan.ops import selective_scan
from kinescan.ops.selective_scan import kernels, numba

OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4


def draw(num_tracks, num_steps, num_channels, state_size, optional=True, state=True):
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
    return tensors


def multiples(num_channels, state_size):
    """Rates as a Mamba block has them before training: 1 .. S times one of each channel, by way of their logarithms."""
    logarithms = torch.log(torch.arange(1.0, state_size + 1)) + torch.randn(num_channels, 1)
    return -torch.exp(logarithms)


def kind_of(rates):
    rates = rates.contiguous()
    return kernels.kind_of_rates(rates.data_ptr(), *rates.shape)


def run(tensors, backend, grad_y, grad_state, **options):
    leaves = {n: x.detach().requires_grad_() for n, x in tensors.items()}
    y, state = selective_scan(**leaves, **options, backend=backend)
    outputs, grads = [y, state], [grad_y.to(y.dtype), grad_state.to(y.dtype)]
    found = torch.autograd.grad(outputs, list(leaves.values()), grads)
    return {"y": y.detach(), "state": state.detach()}, dict(zip(leaves, found, strict=True))


def assert_matches_reference(tensors, **options):
    """Outputs, last state and every gradient, for a loss of both outputs, against float64."""
    grad_y = torch.randn(tensors["u"].shape)
    grad_state = torch.randn(tensors["u"].shape[0], *tensors["A"].shape)
    outputs, grads = run(tensors, "numba", grad_y, grad_state, **options)
    double = {n: x.double() for n, x in tensors.items()}
    expected, expected_grads = run(double, "reference", grad_y, grad_state, **options)
    for name, value in outputs.items():
        largest = max(1.0, expected[name].abs().max().item())
        torch.testing.assert_close(
            value.double(), expected[name], atol=OUTPUT_TOLERANCE * largest, rtol=OUTPUT_TOLERANCE, msg=name
        )
    for name, grad in grads.items():
        largest = max(1e-30, expected_grads[name].abs().max().item())
        error = (grad.double() - expected_grads[name]).abs().max().item()
        assert error <= GRADIENT_TOLERANCE * largest, f"gradient of {name}: {error} of {largest}"


@pytest.fixture
def nan_memory():
    """Fresh memory holds NaN, so that a value that nobody wrote shows."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("num_steps", [1, 2, 16, 17, 63, 100])
@pytest.mark.parametrize(
    ("num_channels", "state_size"), [(1, 1), (7, 4), (24, 16), (33, 17), (64, 16), (70, 8), (96, 5), (160, 16)]
)
def test_matches_reference_at_every_size(num_steps, num_channels, state_size, nan_memory):
    assert_matches_reference(draw(2, num_steps, num_channels, state_size))


@pytest.mark.parametrize("num_steps", [1, 2, 17, 63])
@pytest.mark.parametrize(("num_channels", "state_size"), [(1, 2), (7, 9), (33, 17), (64, 16), (70, 8), (96, 40)])
@pytest.mark.parametrize("rates", ["multiples", "but the last", "one is zero", "one grows"])
def test_matches_reference_whatever_is_known_about_the_rates(rates, num_channels, state_size, num_steps, nan_memory):
    """One exponential for several positions, one without a check of its range, or one that takes anything."""
    tensors = draw(2, num_steps, num_channels, state_size) | {"A": multiples(num_channels, state_size)}
    if rates != "multiples":
        tensors["A"][-1, -1] *= {"but the last": 1.01, "one is zero": 0.0, "one grows": -0.01}[rates]
    expected = {"multiples": kernels.MULTIPLES, "but the last": kernels.NEGATIVE}.get(rates, kernels.ANY)
    assert kind_of(tensors["A"]) == expected
    assert_matches_reference(tensors)


@pytest.mark.parametrize("num_tracks", [1, 5])
def test_parity_would_show_rates_that_are_taken_for_multiples(num_tracks, monkeypatch):
    """A hundredth beside is what training makes of them; a thousandth shows, too."""
    for change in (1e-2, 1e-3):
        tensors = draw(num_tracks, 17, 40, 16)
        tensors["A"] = multiples(40, 16) * (1 + change * torch.rand(40, 16))
        assert_matches_reference(tensors)
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "kind_of_rates", lambda *arguments: kernels.MULTIPLES)
            with pytest.raises(AssertionError):
                assert_matches_reference(tensors)


def test_kind_of_rates():
    rates = -torch.arange(1.0, 17.0).repeat(33, 1) * torch.rand(33, 1)
    assert kind_of(rates) == kind_of(multiples(200, 64)) == kernels.MULTIPLES
    assert kind_of(rates[:, :1]) == kernels.NEGATIVE, "one position alone saves nothing"
    for beside in (1 + 1e-6, 1 - 1e-6, 2.0):
        changed = rates.clone()
        changed[32, 15] *= beside
        assert kind_of(changed) == kernels.NEGATIVE
    for wrong in (0.0, -0.0, 1.0, math.nan, math.inf, -math.inf):
        changed = rates.clone()
        changed[32, 15] = wrong
        assert kind_of(changed) == kernels.ANY
        changed[32] = wrong
        assert kind_of(changed) == kernels.ANY


@pytest.mark.parametrize("state_size", [2, 9, 16, 64])
def test_decays_of_multiples_are_exact_to_the_rounding_of_a_few_products(state_size):
    rates = -torch.arange(1.0, state_size + 1) * torch.logspace(-6, 0.7, 500)[:, None]
    assert kind_of(rates) == kernels.MULTIPLES
    row, vector = torch.zeros(1, 1, 500), torch.zeros(1, 1, state_size)
    delta = torch.full((1, 1, 500), 0.3)
    start = torch.ones(1, 500, state_size)
    _, state = selective_scan(row, delta, rates, vector, vector, state=start.expand(1, -1, -1), backend="numba")
    # Read off the step size that the kernel takes: of u = 1 and B = 1 it is what is written into an empty state.
    ones = torch.ones_like
    _, written = selective_scan(ones(row), delta, rates, ones(vector), vector, backend="numba")
    exponents = written[0].double() * rates.double()
    error = (state[0].double() / exponents.exp() - 1).abs()[exponents > -86]
    assert (error <= 1e-6 + 4e-7 * exponents[exponents > -86].abs()).all()
    assert (state[0].double() - exponents.exp()).abs().max() < 5e-7


@compiler.njit
def _both_exponentials(x, with_range, without_range, size):
    for i in range(0, size, kernels.LANES):
        kernels.store(with_range, i, kernels.exp2(kernels.load(x, i)))
        kernels.store(without_range, i, kernels.exp2_of_negative(kernels.load(x, i)))


def test_exponential_of_negative_numbers_is_the_other_one_bit_for_bit():
    special = torch.tensor([0.0, -0.0, -1e-45, -1e-38, -126.5, -127.0, -127.5, -1e10, -3.4e38, -math.inf])
    x = -torch.cat([torch.logspace(-40, 3, 4096 - special.numel()), -special])
    with_range, without_range = torch.empty(4096), torch.empty(4096)
    _both_exponentials(x.data_ptr(), with_range.data_ptr(), without_range.data_ptr(), 4096)
    assert torch.equal(with_range.view(torch.int32), without_range.view(torch.int32))
    assert ((with_range.double() - torch.exp2(x.double())).abs() <= 1.2e-7 * torch.exp2(x.double()) + 1e-37).all()


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "state"])
@pytest.mark.parametrize("kind", [kernels.ANY, kernels.NEGATIVE, kernels.MULTIPLES])
def test_what_is_not_a_number_is_not_lost(name, kind):
    tensors = draw(2, 3, 40, 16)
    tensors["A"] = multiples(40, 16) if kind == kernels.MULTIPLES else tensors["A"]
    tensors["A"][0, 0] *= -1e-3 if kind == kernels.ANY else 1
    tensors[name].view(-1)[-1] = math.nan
    outputs = selective_scan(**tensors, backend="numba")
    expected = selective_scan(**tensors, backend="reference")
    for ours, theirs in zip(outputs, expected, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())


@pytest.mark.parametrize("absent", ["D", "z", "delta_bias", "state", "all"])
@pytest.mark.parametrize("delta_softplus", [True, False])
def test_matches_reference_without_optional_parts(absent, delta_softplus, nan_memory):
    for num_steps in (1, 5, 35):
        tensors = draw(3, num_steps, 40, 8, optional=absent != "all", state=absent != "all")
        tensors.pop(absent, None)
        if not delta_softplus:
            tensors["delta"] = tensors["delta"].abs()
            tensors["delta_bias"] = tensors["delta"].new_full((40,), 0.1)
            if absent in ("delta_bias", "all"):
                del tensors["delta_bias"]
        assert_matches_reference(tensors, delta_softplus=delta_softplus)


@pytest.mark.parametrize("absent", ["D", "z", "delta_bias", "nothing"])
@pytest.mark.parametrize("delta_softplus", [True, False])
def test_step_of_a_stream_matches_reference(absent, delta_softplus, nan_memory):
    """Sixteen positions, whole groups of channels: the step that reads and writes the state as it lies."""
    for num_channels in (32, 96):
        tensors = draw(5, 1, num_channels, 16)
        tensors["A"] = multiples(num_channels, 16) if absent == "nothing" and delta_softplus else tensors["A"]
        both = torch.randn(5, 1, 2 * num_channels)
        tensors["u"], tensors["z"] = both.chunk(2, dim=-1)
        tensors["B"], tensors["C"] = torch.randn(5, 1, 40)[..., 4:36].chunk(2, dim=-1)
        tensors.pop(absent, None)
        assert_matches_reference(tensors, delta_softplus=delta_softplus)


def test_step_of_a_stream_is_the_scan_of_one_step(monkeypatch):
    tensors = draw(6, 1, 64, 16)
    monkeypatch.setattr(kernels, "scan", None)
    y, state = selective_scan(**tensors, backend="numba")
    monkeypatch.undo()
    monkeypatch.setattr(numba, "STATE_SIZE", 0)
    general, general_state = selective_scan(**tensors, backend="numba")
    assert torch.equal(state, general_state)
    torch.testing.assert_close(y, general, atol=1e-5, rtol=1e-5)


def test_first_step_of_a_stream_is_that_of_an_empty_state(monkeypatch):
    """By the same kernel, so that a stream compiles one."""
    tensors = draw(6, 1, 64, 16, state=False)
    monkeypatch.setattr(kernels, "scan", None)
    first = selective_scan(**tensors, backend="numba")
    empty = selective_scan(**tensors, state=torch.zeros(6, 64, 16), backend="numba")
    assert all(torch.equal(own, other) for own, other in zip(first, empty, strict=True))


def test_first_step_is_finite_where_rates_overflow():
    tensors = draw(2, 1, 32, 16, state=False)
    y, state = selective_scan(**{**tensors, "A": torch.full((32, 16), 1e6)}, backend="numba")
    assert y.isfinite().all()
    assert state.isfinite().all()


def test_large_results_are_written_past_the_caches(monkeypatch, nan_memory):
    assert_matches_reference(draw(700, 8, 1504, 1))  # the kernels' own threshold, and a last group that is not whole
    monkeypatch.setattr(kernels, "LARGE", 24 * 48)
    is_large = kernels._is_large.py_func
    assert is_large((0, 4), (6, 48, 16), 128)
    assert not is_large((0, 4), (5, 48, 16), 128)
    assert not is_large((0, 4), (6, 56, 16), 128), "rows must be whole cache lines"
    assert not is_large((0, 4), (6, 48, 16), 132), "and begin with one"


def test_reads_views_without_dense_tracks(nan_memory):
    tensors = draw(4, 9, 48, 16)
    both = torch.randn(4, 9, 96)
    tensors["u"], tensors["z"] = both.chunk(2, dim=-1)
    tensors["B"], tensors["C"] = torch.randn(9, 4, 40).transpose(0, 1).split([16, 24], dim=-1)
    tensors["C"] = tensors["C"][..., :16]
    tensors["delta"] = torch.randn(4, 48, 9).transpose(1, 2)
    tensors["A"] = -torch.rand(16, 48).t()
    tensors["D"] = torch.randn(1).expand(48)
    tensors["state"] = torch.randn(4, 16, 48).transpose(1, 2)
    assert_matches_reference(tensors)


def test_gradient_through_one_output_alone():
    tensors = {n: x.requires_grad_() for n, x in draw(2, 20, 8, 4).items()}
    for part in (0, 1):
        outputs = {backend: selective_scan(**tensors, backend=backend)[part] for backend in ("numba", "reference")}
        weights = torch.randn_like(outputs["numba"])
        grads = {
            backend: torch.autograd.grad(output, list(tensors.values()), weights, allow_unused=True)
            for backend, output in outputs.items()
        }
        for name, ours, expected in zip(tensors, *grads.values(), strict=True):
            expected = torch.zeros_like(ours) if expected is None else expected
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("delta", "rate"), [(-25.0, 1.0), (-8.0, 1e3), (0.0, 300.0), (30.0, 1.0), (90.0, 40.0), (1e4, 1e4), (-90.0, 1e-3)]
)
def test_extreme_step_sizes_and_rates(delta, rate):
    """Decays from exactly 1 to exactly 0, softplus from exp(x) to x: all finite, gradients too."""
    tensors = draw(2, 20, 40, 4)
    tensors["delta"], tensors["A"] = tensors["delta"] + delta, rate * tensors["A"]
    tensors["B"] = tensors["B"] / max(1.0, delta)
    assert_matches_reference(tensors)
    assert_matches_reference(tensors | {"A": rate * multiples(40, 4)})


def test_decay_is_exact_to_rounding():
    """exp(delta A) over its whole range: no more than the rounding of the exponent and of the result in float32."""
    exponents = torch.linspace(-87.0, 88.0, 20001)
    nothing = torch.zeros(1, 1, 1)
    _, state = selective_scan(
        torch.zeros(1, 1, exponents.numel()),
        torch.ones(1, 1, exponents.numel()),
        exponents[:, None],
        nothing,
        nothing,
        delta_softplus=False,
        state=torch.ones(1, exponents.numel(), 1),
        backend="numba",
    )
    error = (state[0, :, 0].double() / exponents.double().exp() - 1).abs()
    assert (error <= 1.2e-7 + 1.2e-7 * exponents.abs()).all()


def test_decay_beyond_the_range_is_zero_or_infinite():
    exponents = torch.tensor([-1e30, -1000.0, -104.0, 0.0, 89.0, 1e30])
    nothing, ones = torch.zeros(1, 1, 1), torch.ones(1, 6, 1)
    tensors = {"A": exponents[:, None], "B": nothing, "C": nothing, "state": ones}
    _, state = selective_scan(torch.zeros(1, 1, 6), torch.ones(1, 1, 6), **tensors, delta_softplus=False)
    assert state[0, :, 0].tolist() == [0.0, 0.0, 0.0, 1.0, math.inf, math.inf]


def test_softplus_and_gate_are_exact_to_rounding():
    x = torch.linspace(-86.0, 100.0, 20001)
    one = torch.ones(1, 1, 1)
    rows = {"u": torch.ones(1, 1, x.numel()), "delta": x[None, None], "z": x[None, None]}
    y, state = selective_scan(
        **rows, A=torch.zeros(x.numel(), 1), B=one, C=0 * one, D=torch.ones(x.numel()), backend="numba"
    )
    softplus = torch.nn.functional.softplus(x.double(), threshold=1000)
    silu = x.double() * torch.sigmoid(x.double())
    assert ((state[0, :, 0].double() - softplus).abs() <= 4e-7 * softplus).all()
    assert ((y[0, 0].double() - silu).abs() <= 4e-7 * silu.abs()).all()


def test_long_sequences_stay_exact():
    tensors = draw(1, 2000, 8, 4)
    tensors["delta"] = tensors["delta"] - 5.0  # remembers thousands of steps
    assert_matches_reference(tensors)
    tensors = draw(1, 2000, 8, 16) | {"A": 0.05 * multiples(8, 16)}
    tensors["delta"] = tensors["delta"] - 5.0
    assert_matches_reference(tensors)


@pytest.mark.parametrize("num_threads", [2, 3, 8])
def test_threads_share_tracks_and_channels(num_threads, monkeypatch, nan_memory):
    monkeypatch.setattr(numba, "MIN_WORK", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for num_tracks in (1, 2, 5, 9):
            assert_matches_reference(draw(num_tracks, 18, 100, 4))
            assert_matches_reference(draw(num_tracks, 1, 64, 16))
    finally:
        torch.set_num_threads(before)


def test_is_safe_from_several_threads(monkeypatch):
    monkeypatch.setattr(numba, "MIN_WORK", 1)
    inputs = [draw(3, 7, 64, 4) for _ in range(16)]
    expected = [selective_scan(**tensors)[0] for tensors in inputs]
    with ThreadPoolExecutor(4) as pool:
        for y, alone in zip(pool.map(lambda tensors: selective_scan(**tensors)[0], inputs), expected, strict=True):
            assert torch.equal(y, alone)


def _scan_in_child(tensors, connection):
    connection.send(selective_scan(**tensors)[0].numpy())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_runs_in_a_forked_worker(monkeypatch):
    monkeypatch.setattr(numba, "MIN_WORK", 1)
    tensors = draw(3, 7, 64, 4)
    expected, _ = selective_scan(**tensors)  # the pool of threads exists before the fork
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    worker = multiprocessing.get_context("fork").Process(target=_scan_in_child, args=(tensors, theirs))
    worker.start()
    assert ours.poll(60)
    assert torch.equal(torch.from_numpy(ours.recv()), expected)
    worker.join()


def test_keeps_only_its_inputs_for_the_backward_pass():
    tensors = {n: x.requires_grad_() for n, x in draw(4, 50, 32, 16).items()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.data_ptr()), lambda x: x):
        selective_scan(**tensors)
    assert sorted(saved) == sorted(x.data_ptr() for x in tensors.values())


def test_is_a_well_behaved_operator():
    """Schema, fake tensors, autograd registration and tracing, with and without the optional parts."""
    for tensors in (draw(2, 5, 8, 4), draw(2, 5, 8, 4, optional=False, state=False)):
        names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
        leaves = {n: x.requires_grad_() for n, x in tensors.items()}
        arguments = (*(leaves.get(n) for n in names), True, leaves.get("state"))
        opcheck(torch.ops.kinescan.selective_scan.default, arguments)
        arguments = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
        for grad_state in (None, torch.randn(2, 8, 4)):
            opcheck(
                torch.ops.kinescan.selective_scan_backward.default,
                (torch.randn(2, 5, 8), grad_state, *arguments),
                test_utils=("test_schema", "test_faketensor"),
            )


class _Scan(torch.nn.Module):
    def forward(self, u, delta, A, B, C, state):
        y, state = selective_scan(u * 2.0, delta, A, B, C, state=state)
        return y.relu(), state


@pytest.mark.compile
def test_compiles_as_one_graph():
    leaves = {n: x.requires_grad_() for n, x in draw(2, 5, 8, 4, optional=False).items()}
    outputs = {}
    for name, module in (("eager", _Scan()), ("compiled", torch.compile(_Scan(), fullgraph=True))):
        y, state = module(**leaves)
        outputs[name] = [y, state, *torch.autograd.grad(y.sum() + (state**2).sum(), list(leaves.values()))]
    torch.testing.assert_close(outputs["compiled"], outputs["eager"])


class _InPlace(torch.nn.Module):
    def forward(self, u, delta, A, B, C, state, y):
        y, state = selective_scan(u * 2.0, delta, A, B, C, state=state, out=(y, state))
        return y.relu()


@pytest.mark.compile
def test_out_compiles_as_one_graph():
    tensors = draw(2, 5, 8, 4, optional=False)
    found = {}
    for name, module in (("eager", _InPlace()), ("compiled", torch.compile(_InPlace(), fullgraph=True))):
        own = {n: x.clone() for n, x in tensors.items()} | {"y": torch.full((2, 5, 8), torch.nan)}
        found[name] = (module(**own), own["state"], own["y"])
    torch.testing.assert_close(found["compiled"], found["eager"])


def test_out_is_a_well_behaved_operator():
    tensors = draw(2, 5, 8, 4)
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    arguments = (*(tensors[n] for n in names), True, tensors["state"], torch.empty(2, 5, 8), torch.empty(2, 8, 4))
    opcheck(torch.ops.kinescan.selective_scan_into.default, arguments)


def test_exports():
    tensors = draw(2, 5, 8, 4, optional=False)
    program = torch.export.export(_Scan(), (), tensors)
    assert "kinescan.selective_scan" in str(program.graph)
    torch.testing.assert_close(program.module()(**tensors), _Scan()(**tensors))


def test_compiles_where_no_folder_can_be_written(monkeypatch):
    njit = compiler.njit

    def without_cache(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(compiler, "njit", without_cache)
    assert kernels._compile(lambda x: x + 1)(1) == 2
