"""What the errors of safetensors have to say, and what breaks where they do not."""

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from kinescan.runtime.safetensors_internals import refused_by_system


def test_a_study_that_ends_at_a_full_disk_needs_the_number_in_the_text(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError) as raised:
        save_file({"weight": torch.zeros(1)}, tmp_path / "absent" / "weights.safetensors")
    assert refused_by_system(raised.value, [errno.ENOENT])
    assert not refused_by_system(raised.value, [errno.ENOSPC])


def test_a_number_in_another_error_does_not_count() -> None:
    assert not refused_by_system(RuntimeError(f"(os error {errno.ENOSPC})"), [errno.ENOSPC])
