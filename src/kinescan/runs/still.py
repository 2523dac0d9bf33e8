"""`--set still.NAME=VALUE`: patches that stand still are not computed again."""

import logging
from collections.abc import Sequence

from kinescan.errors import ConfigError
from kinescan.models.classifier import VideoClassifier
from kinescan.models.pks4 import PKS4
from kinescan.models.pks4_still import check_skipping
from kinescan.models.still import SkipUnchanged
from kinescan.runs.overrides import take_table

logger = logging.getLogger(__name__)


def still_settings(overrides: Sequence[str]) -> tuple[SkipUnchanged | None, list[str]]:
    """What `--set still.NAME=VALUE` says, None where nothing is; and the other overrides.

    Raises:
        ConfigError: a setting is unknown, or its value makes no sense.

    Example:
        >>> settings, others = still_settings(["still.pixel_threshold=6", "events.on=0.6"])
        >>> settings.pixel_threshold, others
        (6.0, ['events.on=0.6'])
    """
    settings, others = take_table("still", SkipUnchanged, overrides)
    return (settings if len(others) < len(overrides) else None), others


def skip_in(model: VideoClassifier, skip: SkipUnchanged | None) -> str | None:
    """Sets it on a model of one's own, where anything is to be skipped; and says so, for a report.

    Raises:
        ConfigError: the model cannot skip patches.
    """
    if skip is None:
        return None
    if not isinstance(model, PKS4):
        raise ConfigError(
            f"{model.name} computes every frame as a whole: --set still.NAME=VALUE is for PKS4 and for ViTs, as saved "
            "or trained and not exported. Leave it out."
        )
    check_skipping(model.config)
    model.skip_unchanged = skip
    note = (
        f"Patches whose pixels change by at most {skip.pixel_threshold:g} of 255 levels were not computed again "
        f"(token_threshold {skip.token_threshold:g})."
    )
    logger.info("%s", note.replace("were", "are"))
    return note
