"""A classifier that starts from the names of its classes, read by the text encoder of CLIP."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinescan.errors import ConfigError
from kinescan.fields import check_types
from kinescan.models.weights.text_encoder import encode_texts

logger = logging.getLogger(__name__)

PLACEHOLDER = "{}"
"""In a template, where the class name stands."""
_MOST_TEXTS = 200_000


@dataclass(frozen=True, kw_only=True)
class TextHead:
    """The classifier's start from class names; off unless `templates` holds one.

    Attributes:
        templates: texts with {} for the class name, such as "a video of a person {}."; with several, the embeddings of
            a class are averaged. Empty: the classifier starts anew.
        names: label -> text to use for it, where the label says little by itself; other labels
            stand for themselves, with blanks for underscores.
        weights: folder or hub name of a CLIP model of transformers with text encoder and tokenizer; empty: the model's
            weights.
    """

    templates: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    weights: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        for template in self.templates:
            if template.count(PLACEHOLDER) != 1:
                raise ConfigError(
                    f"a template must hold {PLACEHOLDER} once, where the class name stands, got {template!r}. Write it "
                    f'as "a video of a person {PLACEHOLDER}."'
                )
        twice = sorted({template for template in self.templates if self.templates.count(template) > 1})
        if twice:
            raise ConfigError(f"templates lists {twice[0]!r} twice. Name each once.")
        if (self.names or self.weights) and not self.templates:
            raise ConfigError(
                f"templates is empty, so that no class is read as text. Give some, such as "
                f'["a video of {PLACEHOLDER}."], or leave names and weights out.'
            )

    def texts(self, labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Label -> its texts, one for each template.

        Raises:
            ConfigError: `names` has a label that is not one of these, or two classes have the same texts.

        Example:
            >>> TextHead(templates=("a video of {}.",)).texts(["open_door", "run"])
            {'open_door': ('a video of open door.',), 'run': ('a video of run.',)}
        """
        strange = sorted(set(self.names) - set(labels))
        if strange:
            raise ConfigError(
                f"names has {strange[0]!r}, which is not a class here. The classes: {', '.join(sorted(labels)[:8])}."
            )
        named = {label: self.names.get(label, label.replace("_", " ")) for label in labels}
        seen: dict[str, str] = {}
        for label, name in named.items():
            twin = seen.setdefault(name, label)
            if twin != label:
                raise ConfigError(
                    f"the classes {twin!r} and {label!r} would both be read as {name!r}, so that no text tells them "
                    "apart. Give one of them another text in names."
                )
        if len(labels) * len(self.templates) > _MOST_TEXTS:
            raise ConfigError(
                f"{len(labels)} classes with {len(self.templates)} templates are more than {_MOST_TEXTS:,} texts. Give "
                "fewer templates."
            )
        return {
            label: tuple(template.replace(PLACEHOLDER, name) for template in self.templates)
            for label, name in named.items()
        }


def class_weights(embeddings: Tensor, num_classes: int, scale: float) -> Tensor:
    """Rows of a classifier on unit embeddings that scores as CLIP does.

    Args:
        embeddings: [K * M, E], those of the M texts of a class one after the other.
        num_classes: K.
        scale: what cosines are multiplied by.

    Returns:
        [K, E]: of each class the mean of its unit embeddings, brought to unit length, times `scale`.

    Source: Learning Transferable Visual Models (arXiv 2103.00020), section 3.1.4; as the start of a classifier, Robust
        Fine-Tuning of Zero-Shot Models (arXiv 2109.01903).
    """
    unit = F.normalize(embeddings, dim=-1).unflatten(0, (num_classes, -1)).mean(dim=1)
    return scale * F.normalize(unit, dim=-1)


def start_from_texts(model: Any, text: TextHead, weights: str | Path | None) -> Mapping[str, tuple[str, ...]]:
    """Writes the classifier of a model that compares unit embeddings, and says what each class was read as.

    Args:
        model: a classifier with labels, `config.unit_frames` and a linear `head`; its head is changed.
        text: templates and names.
        weights: those of the model, for a `text` that names none.

    Raises:
        ConfigError: the text encoder's embeddings do not fit the model's, or a text is too long.
        CheckpointError: there is no text encoder, or no tokenizer.
    """
    source = text.weights or weights
    if source is None:
        raise ConfigError(
            "templates are read by CLIP's text encoder, and no weights are given. Set weights to a CLIP model, such as "
            "openai/clip-vit-base-patch16."
        )
    texts = text.texts(model.labels)
    flat = [line for lines in texts.values() for line in lines]
    logger.info("%s: reading %d texts of %d classes", source, len(flat), len(texts))
    embeddings, scale = encode_texts(source, flat)
    head: nn.Linear = model.head
    if embeddings.shape[1] != head.in_features:
        raise ConfigError(
            f"{source} gives texts {embeddings.shape[1]} numbers each, and the model's frames have {head.in_features}. "
            "Give the text encoder of the same CLIP model."
        )
    with torch.no_grad():
        head.weight.copy_(class_weights(embeddings, len(texts), scale))
        head.bias.zero_()
    return texts
