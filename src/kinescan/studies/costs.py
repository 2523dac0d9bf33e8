"""What the rows of a study cost, counted without data, weights or a GPU: parameters, FLOPs, training, memory."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch

from kinescan.config import RunConfig, build_run, flat_settings
from kinescan.models.classifier import VideoClassifier
from kinescan.models.zoo import create_model
from kinescan.profiling.cost import FLOPS_PER_MAC, Macs, count_cost, training_flops
from kinescan.profiling.step_memory import StepMemory, count_step_memory
from kinescan.runtime.files import read_toml
from kinescan.runtime.recipe_files import find_recipe
from kinescan.studies.paper import PaperTable, published
from kinescan.studies.study import Row, Study


@dataclass(frozen=True, kw_only=True)
class RowCost:
    """The cost of one row.

    Attributes:
        row: its name.
        model: its name in the zoo.
        num_parameters: of the model with the head of the data set.
        views: frames x clips x crops of a video in test.
        num_views: how many views that are.
        macs: of one view.
        num_clips: training videos in an epoch.
        num_epochs: of the training.
        batch_size: clips in a step.
        memory: of a training step with this batch in bfloat16; None where it was not counted.
    """

    row: str
    model: str
    num_parameters: int
    views: str
    num_views: int
    macs: Macs
    num_clips: int
    num_epochs: int
    batch_size: int
    memory: StepMemory | None

    @property
    def gflops(self) -> float:
        """Of all views by the paper's convention: a multiply-accumulate counts once, attention's products do not."""
        return self.macs.published * self.num_views / 1e9

    @property
    def gflops_in_full(self) -> float:
        """Of all views: two for each multiply-accumulate, attention's products among them."""
        return FLOPS_PER_MAC * self.macs.with_attention * self.num_views / 1e9

    @property
    def training_eflops(self) -> float:
        """Of the training by the paper's convention: three forward passes, two for each of its multiply-accumulates."""
        return training_flops(self.macs.published, num_clips=self.num_clips, num_epochs=self.num_epochs) / 1e18

    @property
    def training_eflops_in_full(self) -> float:
        """The same with attention's products."""
        return training_flops(self.macs.with_attention, num_clips=self.num_clips, num_epochs=self.num_epochs) / 1e18

    @property
    def memory_gb(self) -> float | None:
        """The most that a training step needs at any time, in 10^9 bytes."""
        return None if self.memory is None else self.memory.peak / 1e9

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            **asdict(self),
            "gflops": self.gflops,
            "gflops_in_full": self.gflops_in_full,
            "training_eflops": self.training_eflops,
            "training_eflops_in_full": self.training_eflops_in_full,
            "memory_gb": self.memory_gb,
        }


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A number of ours beside that of the paper.

    Attributes:
        row: its name.
        what: the number, with its unit.
        here: ours, as text.
        paper: the paper's, in the same unit; None where it says nothing.
        difference: of ours to the paper's, relative to it; None where it says nothing.
    """

    row: str
    what: str
    here: str
    paper: float | None
    difference: float | None


def row_costs(study: Study, paper: PaperTable, *, memory: bool = False) -> tuple[RowCost, ...]:
    """The cost of every row of a study on the paper's data set.

    Args:
        study: at the paper's size.
        paper: the table, for classes and training videos.
        memory: count a training step, too (some seconds a row), where the paper has a number for it.

    Raises:
        ConfigError: a row cannot be built.
    """
    return tuple(
        _cost(row.name, row_config(study, row), paper, memory=memory and "memory_gb" in published(paper, row.name))
        for row in study.rows
    )


def row_config(study: Study, row: Row) -> RunConfig:
    """The run of a row, without data and seed.

    Raises:
        ConfigError: a setting is wrong.
    """
    recipe = row.recipe or study.recipe
    table = recipe if isinstance(recipe, dict) else read_toml(find_recipe(recipe))
    return build_run(table, settings=flat_settings(study.settings) | flat_settings(row.settings))


def _cost(row: str, config: RunConfig, paper: PaperTable, *, memory: bool) -> RowCost:
    frames, size, views = config.preprocessing.num_frames, config.preprocessing.size, config.views()
    options = json.dumps({"image_size": size, **config.model.options}, sort_keys=True)
    num_parameters, macs = _counted(config.model.name, paper.num_classes, options, views.frames)
    step = None
    if memory:
        model = _without_weights(config.model.name, paper.num_classes, options)
        step = count_step_memory(model, num_clips=config.loader.batch_size, num_frames=frames, image_size=size)
    return RowCost(
        row=row,
        model=config.model.name,
        num_parameters=num_parameters,
        views=str(views),
        num_views=views.num_views,
        macs=macs,
        num_clips=paper.num_clips,
        num_epochs=config.optim.epochs,
        batch_size=config.loader.batch_size,
        memory=step,
    )


def _without_weights(model: str, num_classes: int, options: str) -> VideoClassifier:
    with torch.device("meta"):
        return create_model(model, num_classes=num_classes, **json.loads(options))


@lru_cache(maxsize=64)
def _counted(model: str, num_classes: int, options: str, num_frames: int) -> tuple[int, Macs]:
    """Parameters and MACs of a view; kept, since the tables share many of their rows. `options` are JSON."""
    built = _without_weights(model, num_classes, options)
    return built.num_parameters, count_cost(built, num_frames=num_frames).macs


def compare_costs(costs: tuple[RowCost, ...], paper: PaperTable) -> Iterator[Compared]:
    """Every number of ours, with the paper's where there is one; of those in full, there is none.

    What the table of the paper leaves out is shown all the same, but for memory that was not counted.
    """
    for cost in costs:
        said = published(paper, cost.row)
        numbers = {
            "parameters": (cost.num_parameters / 1e6, f"{cost.num_parameters:,}", "parameters (M)"),
            "gflops": (cost.gflops, f"{cost.gflops:,.1f}", f"GFLOPs, {cost.views}"),
            "gflops_in_full": (cost.gflops_in_full, f"{cost.gflops_in_full:,.1f}", "in full"),
            "training_eflops": (cost.training_eflops, f"{cost.training_eflops:.4f}", "training EFLOPs"),
            "training_eflops_in_full": (cost.training_eflops_in_full, f"{cost.training_eflops_in_full:.4f}", "in full"),
        }
        if cost.memory_gb is not None:
            numbers["memory_gb"] = (cost.memory_gb, f"{cost.memory_gb:.2f}", f"memory (GB), batch {cost.batch_size}")
        for name, (value, shown, what) in numbers.items():
            theirs = said.get(name)
            difference = None if theirs is None else value / theirs - 1
            yield Compared(row=cost.row, what=what, here=shown, paper=theirs, difference=difference)
