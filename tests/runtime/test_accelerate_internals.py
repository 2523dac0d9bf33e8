from accelerate import Accelerator
from accelerate.state import PartialState

from kinescan.runtime.accelerate_internals import forget_accelerator_state, forget_processes


def test_runs_with_other_settings_need_a_forgotten_state() -> None:
    forget_accelerator_state(also_processes=True)
    assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"
    forget_accelerator_state(also_processes=True)
    assert Accelerator(cpu=True, mixed_precision="no").mixed_precision == "no"
    forget_accelerator_state(also_processes=True)


def test_processes_are_forgotten() -> None:
    PartialState(cpu=True)
    forget_processes()
    assert PartialState._shared_state == {}
