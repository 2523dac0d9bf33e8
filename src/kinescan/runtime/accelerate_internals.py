"""Every name of accelerate that accelerate calls private and this package uses, and nothing else."""

from accelerate.state import AcceleratorState, PartialState


def forget_accelerator_state(*, also_processes: bool) -> None:
    """Clears what accelerate keeps of the last `Accelerator`, so that the next one may have other settings.

    Args:
        also_processes: forget the process group and the device, too.
    """
    AcceleratorState._reset_state(reset_partial_state=also_processes)


def forget_processes() -> None:
    """Clears what accelerate keeps of the process group and the device."""
    PartialState._reset_state()
