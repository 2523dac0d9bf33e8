import pytest
import torch
from tests.mentions import mentions


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_refuses_to_time_without_a_gpu(script, capsys) -> None:
    with pytest.raises(SystemExit):
        script("ops_gpu").parse([])
    said = capsys.readouterr().err
    assert mentions(said, "CUDA", "--dry-run")


def test_refuses_few_repetitions(script, capsys) -> None:
    with pytest.raises(SystemExit):
        script("ops_gpu").parse(["--repetitions", "5"])
    assert mentions(capsys.readouterr().err, "--repetitions", "20", "5")


def test_dry_run_needs_no_gpu(script) -> None:
    given = script("ops_gpu").parse(["--dry-run", "--dtype", "float32"])
    assert (given.dry_run, given.dtype) == (True, "float32")


def test_peers_are_called_in_turn_and_compared(script) -> None:
    gpu, calls = script("ops_gpu"), []
    clock = gpu.DeviceClock(torch.device("cpu"))
    runs = {name: (lambda name=name: calls.append(name)) for name in ("ours", "peer")}
    found = gpu.compare_in_turn(clock, runs, 3)
    assert calls[:8] == ["ours", "peer"] * 4  # one round is not timed
    assert set(found["times_faster_than"]) == {"peer"}
    assert all(low <= found["milliseconds"][name] <= high for name, (low, high) in found["range"].items())


def test_a_wrong_peer_stops_everything(script) -> None:
    gpu = script("ops_gpu")

    def wrong(tensors):
        y, state = gpu.scan_by_loop(tensors)
        return 1.1 * y, state

    with pytest.raises(SystemExit, match="nothing"):
        gpu.check_scans({"eager_loop": gpu.scan_by_loop, "wrong": wrong}, torch.device("cpu"), torch.float32)
