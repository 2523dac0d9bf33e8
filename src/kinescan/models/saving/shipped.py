"""The trained models that come with the package."""

from pathlib import Path

SHIPPED = Path(__file__).parents[2] / "shipped"
"""A folder a model, as `save_pretrained` writes it."""
MOTION = "motion"
"""Names the dominant motion of a clip: what is taken where no model is named and no run is there."""


def shipped_model(name: str) -> Path | None:
    """The folder of a model that comes with the package; None where none has this name.

    Example:
        >>> shipped_model("motion").name, shipped_model("other")
        ('motion', None)
    """
    folder = SHIPPED / name
    return folder if name.isidentifier() and (folder / "config.json").is_file() else None


def is_shipped(folder: str | Path) -> bool:
    """Whether a model's folder is one of those that come with the package."""
    return Path(folder).resolve().parent == SHIPPED.resolve()
