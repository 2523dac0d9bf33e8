from collections import Counter
from dataclasses import dataclass

_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of a checkpoint's tensors.

    Attributes:
        source: where they came from.
        layout: whose names they had: "openai", "open_clip", "hugging_face", "timm", "videomamba", "videomamba_image"
            or "kinescan".
        loaded: names in the model that were filled.
        missing: names in the model that the checkpoint has nothing for; they keep their start values.
        unexpected: names in the checkpoint that were not used.
        resized: names in the model whose values were interpolated or inflated to its sizes.
        notes: what was changed and how, a sentence each.

    Example:
        >>> print(LoadReport(source="vit.pt", layout="openai", loaded=("proj",), missing=("head.weight",)))
        vit.pt (openai layout): 1 tensors loaded, 1 missing (head.weight), 0 left over, 0 resized
    """

    source: str
    layout: str
    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.source} ({self.layout} layout): {len(self.loaded)} tensors loaded, "
            f"{len(self.missing)} missing{_named(self.missing)}, "
            f"{len(self.unexpected)} left over{_named(self.unexpected)}, "
            f"{len(self.resized)} resized{_named(self.resized)}" + "".join(f"; {note}" for note in self.notes)
        )


def _named(names: tuple[str, ...]) -> str:
    """The names in brackets; more than a few are counted by their first part."""
    if not names:
        return ""
    if len(names) <= _SHOWN:
        return f" ({', '.join(names)})"
    groups = Counter(name.split(".")[0] for name in names)
    return f" ({', '.join(f'{group}: {count}' for group, count in groups.items())})"
