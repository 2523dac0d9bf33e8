import threading

import torch

from kinescan.training.checkpoint_writer import CheckpointWriter, HostCopy


def test_jobs_run_in_order_in_another_thread() -> None:
    writer, seen = CheckpointWriter(), []
    for number in range(5):
        writer.submit(lambda number=number: seen.append((number, threading.current_thread().name)))  # type: ignore[misc]
    writer.wait()
    assert [number for number, _ in seen] == list(range(5))
    assert {name for _, name in seen} != {threading.current_thread().name}
    assert writer.problem is None


def test_after_a_job_that_fails_no_other_one_runs() -> None:
    writer, seen = CheckpointWriter(), []

    def fail() -> None:
        raise OSError(28, "No space left on device")

    for job in (lambda: seen.append(1), fail, lambda: seen.append(2)):
        writer.submit(job)
    writer.wait()
    assert seen == [1]
    assert isinstance(writer.problem, OSError)


def test_a_copy_stays_as_it_was_and_its_memory_is_used_again() -> None:
    source, copies = {"a": torch.zeros(3), "b": [torch.ones(2, dtype=torch.int64), "text"]}, HostCopy()
    first = copies.take(source)
    source["a"].add_(1)
    assert torch.equal(first["a"], torch.zeros(3))
    second = copies.take(source)
    assert second["a"].data_ptr() == first["a"].data_ptr() != source["a"].data_ptr()
    assert torch.equal(second["a"], torch.ones(3))
    assert second["b"][1] == "text"
    # another tensor than before at the same place
    assert torch.equal(copies.take({"a": torch.full((2, 2), 7.0)})["a"], torch.full((2, 2), 7.0))
    assert copies.take(source, kept=False)["a"] is None
