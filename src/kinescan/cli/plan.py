"""How `kinescan train --dry-run` shows what a run would do."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import kinescan
from kinescan.cli.output import print_json
from kinescan.cli.terminal import print_table
from kinescan.runtime.launch import is_main_process
from kinescan.runtime.quantities import duration

if TYPE_CHECKING:
    from kinescan.config import RunConfig
    from kinescan.training.dry_run import GroupPlan, Plan

GIB = 2**30


def show_plan(config: "RunConfig", plan: "Plan", *, as_json: bool) -> None:
    """Prints the resolved recipe and the plan; of several processes, one does."""
    if not is_main_process():
        return
    if as_json:
        print_json({"recipe": asdict(config), "plan": plan.to_json()})
        return
    print(kinescan.config.dump_recipe(config))
    print(f"{plan.model}: {plan.num_parameters:,} parameters, {plan.num_trained:,} of them trained\n")
    rows = [
        (f"{group.lr:.3g}", group.weight_decay, len(group.names), f"{group.num_parameters:,}", _named(group))
        for group in plan.groups
    ]
    print_table(("peak lr", "decay", "tensors", "parameters", "names"), rows)
    each = f" by {plan.num_processes} processes" if plan.num_processes > 1 else ""
    print(
        f"\n{plan.steps_per_epoch * plan.num_epochs:,} steps: {plan.num_epochs} epochs of {plan.steps_per_epoch:,}, "
        f"{plan.clips_per_step} clips a step{each}"
    )
    parts = ", ".join(f"{name} {bytes_ / GIB:.2f}" for name, bytes_ in asdict(plan.memory).items() if bytes_)
    print(f"about {plan.memory.total / GIB:.2f} GiB on the device of each process: {parts}")
    print(f"{plan.flops / 1e15:.3g} PFLOPs of training, two for each MAC")
    if plan.seconds is not None and plan.seconds_per_clip is not None:
        print(
            f"about {duration(plan.seconds)} of steps on {plan.device}, at {plan.seconds_per_clip:.3g} s a clip as "
            "just timed; reading videos and evaluating come on top"
        )


def _named(group: "GroupPlan") -> str:
    """The first and the last name."""
    return group.names[0] if len(group.names) == 1 else f"{group.names[0]} ... {group.names[-1]}"
