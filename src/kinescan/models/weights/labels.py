from collections.abc import Sequence

from torch import Tensor

from kinescan.errors import CheckpointError
from kinescan.models.weights.vit_weights import Pretrained

_SHOWN = 3


def describe_labels(saved: Sequence[str], own: Sequence[str]) -> str:
    """How the classes of a checkpoint differ from those of the data.

    Example:
        >>> describe_labels(["jump", "run", "walk"], ["run", "walk", "swim"])
        "it has 3, the data 3; only it has 'jump'; only the data have 'swim'"
        >>> describe_labels(["run", "walk"], ["walk", "run"])
        "the same 2 in another order; index 0 is 'run' there and 'walk' in the data"
    """
    only_saved = [label for label in saved if label not in set(own)]
    only_own = [label for label in own if label not in set(saved)]
    if not only_saved and not only_own:
        index = next(index for index, (old, new) in enumerate(zip(saved, own, strict=True)) if old != new)
        both = f"index {index} is {saved[index]!r} there and {own[index]!r} in the data"
        return f"the same {len(saved)} in another order; {both}"
    parts = [f"it has {len(saved)}, the data {len(own)}"]
    parts += [f"only it has {_listed(only_saved)}"] if only_saved else []
    parts += [f"only the data have {_listed(only_own)}"] if only_own else []
    return "; ".join(parts)


def refuse_other_classes(pretrained: Pretrained, labels: Sequence[str] | None) -> None:
    """Passes weights whose head has these classes, in any order, or says nothing about its classes.

    Raises:
        CheckpointError: it tells other classes apart; the message shows how they differ.
    """
    if pretrained.labels is not None and set(pretrained.labels) != set(labels or ()):
        differs = "this model has no labels" if labels is None else describe_labels(pretrained.labels, labels)
        raise CheckpointError(
            f"{pretrained.source} was trained on other classes: {differs}. To keep "
            "its backbone and start with a new head, ask for it: model.new_head = true."
        )


def reorder_head(tensors: dict[str, Tensor], saved: Sequence[str], own: Sequence[str]) -> dict[str, Tensor]:
    """The tensors with the rows of the head in another order of the same classes.

    Args:
        tensors: "head.weight" [K, W] and "head.bias" [K] among them.
        saved: the labels in their order.
        own: the same labels in the order wanted.
    """
    index_of = {label: index for index, label in enumerate(saved)}
    order = [index_of[label] for label in own]
    return {name: tensor[order] if name in ("head.weight", "head.bias") else tensor for name, tensor in tensors.items()}


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return ", ".join(map(repr, labels[:_SHOWN])) + more
