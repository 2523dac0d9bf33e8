import difflib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from kinescan.errors import ConfigError
from kinescan.fields import MAX_COUNT, check_most, check_types

NOT_DECAYED = ("A_log", "D", "class_embedding", "positional_embedding", "register_tokens")
"""Last parts of names of parameters that get no weight decay whatever their shape."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How weights are updated: AdamW, layer-wise learning rates, warm-up and cosine by step.

    Attributes:
        lr: peak learning rate for a batch of `lr_batch_size` clips; scaled linearly with the batch that is used.
        lr_batch_size: clips in the batch that `lr` is written for.
        min_lr_ratio: the cosine ends at this fraction of the peak.
        epochs: passes over the training data; 0 trains nothing, and the model is scored as it starts.
        warmup_epochs: epochs over which the learning rate rises from 0; at most half of all epochs are used.
        weight_decay: AdamW's; none on norms, biases, A_log, D and embeddings.
        betas: AdamW's running averages.
        eps: AdamW's, added to the denominator.
        layer_decay: factor from one backbone layer to the one below it; 1.0 gives all the same rate. New parameters
            keep the full rate.
        lr_scales: pattern of parameter names -> factor on their learning rate, on top of layer decay, such as
            {"scanner.*" = 2.0}; the first pattern that matches counts.
        label_smoothing: fraction of the target spread over all classes.
        clip_norm: largest norm of all gradients together; 0 leaves them as they are.
        ema_decay: keeps an exponential moving average (EMA) of the weights, which is what is evaluated, saved and
            returned; 0 keeps none. 0.999 for runs of thousands of steps.
    """

    lr: float = 7e-4
    lr_batch_size: int = 256
    min_lr_ratio: float = 0.01
    epochs: int = 20
    warmup_epochs: float = 5.0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    layer_decay: float = 0.70
    lr_scales: dict[str, float] = field(default_factory=dict)
    label_smoothing: float = 0.1
    clip_norm: float = 1.0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        check_most(self, lr=1e3, eps=1.0, weight_decay=1e6, clip_norm=1e12)
        check_most(self, lr_batch_size=MAX_COUNT, epochs=MAX_COUNT, warmup_epochs=MAX_COUNT)
        for name in ("lr", "eps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}.")
        for name, least in (("epochs", 0), ("lr_batch_size", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        for name in ("warmup_epochs", "weight_decay", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}.")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay must lie in (0, 1], got {self.layer_decay}; 1.0 switches it off.")
        for pattern, scale in self.lr_scales.items():
            if not 0 < scale <= 1e6:
                raise ConfigError(
                    f"lr_scales: {pattern!r} must be positive, got {scale}. To keep weights as they are, name them in "
                    "train.frozen."
                )
        for name in ("label_smoothing", "min_lr_ratio", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie in [0, 1), got {getattr(self, name)}.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas must lie in [0, 1), got {self.betas}.")

    def peak_lr(self, batch_size: int) -> float:
        """The learning rate at the end of the warm-up for `batch_size` clips in all processes together.

        Example:
            >>> round(OptimConfig(lr=7e-4).peak_lr(64), 6)
            0.000175
        """
        return self.lr * batch_size / self.lr_batch_size


def lr_ratio(step: int, *, num_steps: int, warmup_steps: float, min_ratio: float) -> float:
    """Fraction of the peak learning rate at a step: a linear rise, then a cosine down to `min_ratio`.

    A function of the step alone, so that a resumed run needs no schedule state.

    Args:
        step: the step about to be taken, from 0.
        num_steps: steps in the whole run.
        warmup_steps: steps of the rise; at most half of `num_steps` are used.
        min_ratio: value after the last step.

    Returns:
        A number in (0, 1].

    Example:
        >>> [round(lr_ratio(step, num_steps=8, warmup_steps=2, min_ratio=0.0), 3) for step in range(8)]
        [0.5, 1.0, 1.0, 0.933, 0.75, 0.5, 0.25, 0.067]
    """
    warmup_steps = min(warmup_steps, num_steps / 2)
    if step + 1 < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(max(step - warmup_steps, 0.0) / max(num_steps - warmup_steps, 1.0), 1.0)
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(
    model: nn.Module, config: OptimConfig, *, layer_depths: Mapping[str, int | None], num_layers: int
) -> list[dict[str, Any]]:
    """AdamW groups: every trainable parameter once, by its learning-rate scale and whether it decays.

    A backbone parameter of depth d gets `layer_decay ** (num_layers - d)`: the embeddings (0) the smallest rate, the
    last block one factor less than new parameters and what follows the blocks, whose scale is 1.0. A factor of
    `config.lr_scales` comes on top.

    Args:
        model: frozen parameters (`requires_grad=False`) are left out.
        config: weight decay, layer decay and factors.
        layer_depths: parameter name -> depth in the backbone: 0 for embeddings, 1.. for blocks, `num_layers` for what
            follows them; None or absent for new parameters.
        num_layers: the largest depth, one more than there are blocks.

    Returns:
        Dicts with `params`, `param_names`, `weight_decay` and `lr_scale`, in a stable order.

    Raises:
        ConfigError: nothing is trainable, or a pattern of `lr_scales` matches nothing.

    Source: layer-wise decay as in BEiT (arXiv 2106.08254), section 3.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        >>> groups = parameter_groups(model, OptimConfig(), layer_depths={"0.weight": 1, "0.bias": 1}, num_layers=2)
        >>> [(group["param_names"], round(group["lr_scale"], 2), group["weight_decay"]) for group in groups]
        [(['0.weight'], 0.7, 0.05), (['0.bias'], 0.7, 0.0), (['1.weight', '1.bias'], 1.0, 0.0)]
    """
    _refuse_unmatched(model, config.lr_scales, "optim.lr_scales")
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = layer_depths.get(name)
        exponent = 0 if depth is None else num_layers - depth
        own = next((factor for pattern, factor in config.lr_scales.items() if fnmatchcase(name, pattern)), 1.0)
        scale, decays = config.layer_decay**exponent * own, _decays(name, parameter)
        group = groups.setdefault(
            (scale, decays),
            {
                "params": [],
                "param_names": [],
                "weight_decay": config.weight_decay if decays else 0.0,
                "lr_scale": scale,
            },
        )
        group["params"].append(parameter)
        group["param_names"].append(name)
    if not groups:
        raise ConfigError("no parameter is trainable. Check train.trainable: its patterns match names such as head.*.")
    return list(groups.values())


def make_optimizer(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over `groups`; the learning rates are set before each step by `set_lr`."""
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives each group `lr` times its own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def refuse_other_groups(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Passes when two optimizer states are of the same parameters, in the same order.

    Raises:
        ValueError: they are not.
    """
    names = [[group["param_names"] for group in state["param_groups"]] for state in (saved, own)]
    if names[0] != names[1]:
        raise ValueError("its optimizer holds other parameters, or in another order")


def refuse_other_shapes(optimizer: torch.optim.Optimizer) -> None:
    """Passes when what an optimizer keeps of a parameter is a number, or has the parameter's shape.

    Raises:
        ValueError: it has another shape, as that of another model.
    """
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, torch.Tensor) and value.numel() != 1 and value.shape != parameter.shape:
                raise ValueError(f"its optimizer's {name} has the shape {list(value.shape)}")


@contextmanager
def trainable_only(
    model: nn.Module, patterns: Sequence[str], *, frozen: Sequence[str] = (), stem: Collection[str] = ()
) -> Iterator[None]:
    """Freezes what is not to be trained; what was trainable before is so again afterwards.

    Args:
        model: parameters frozen by its owner stay frozen.
        patterns: shell-like patterns of names, such as "head.*": what matches none is frozen.
        frozen: what matches one of these is frozen, too.
        stem: names that are frozen, too.

    Raises:
        ConfigError: a pattern matches no parameter.
    """
    _refuse_unmatched(model, patterns, "train.trainable")
    _refuse_unmatched(model, frozen, "train.frozen")
    chosen = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (not _matches(name, patterns) or _matches(name, frozen) or name in stem)
    ]
    try:
        for parameter in chosen:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in chosen:
            parameter.requires_grad_(True)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _refuse_unmatched(model: nn.Module, patterns: Iterable[str], setting: str) -> None:
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"{setting}: {pattern!r} matches no parameter. {_closest_name(pattern, names)}")


def _closest_name(pattern: str, names: Sequence[str]) -> str:
    """A hint: the closest name, else the names of the model's parts."""
    near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.5)
    parts = dict.fromkeys(name.split(".")[0] for name in names)
    return f"Did you mean {near[0]!r}?" if near else f"Its parts: {', '.join(parts)}."


def _decays(name: str, parameter: nn.Parameter) -> bool:
    if getattr(parameter, "_no_weight_decay", False):
        return False
    return parameter.ndim > 1 and name.rsplit(".", 1)[-1] not in NOT_DECAYED
