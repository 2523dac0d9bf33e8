"""How many positions a stream of a declared length may come to."""

from kinescan.errors import ConfigError
from kinescan.vlm.chat import Chat
from kinescan.vlm.config import StreamConfig
from kinescan.vlm.families import Family, Features
from kinescan.vlm.families.door import follows_length


def positions_of_horizon(family: Family, chat: Chat, config: StreamConfig, features: Features) -> int | None:
    """Positions of `horizon_frames`, the text around them and room for questions; None where no length is declared.

    Args:
        family: gives positions.
        chat: writes the text around frames.
        config: of the stream.
        features: of its first temporal patch.
    """
    horizon = config.horizon_frames
    if horizon is None or not config.horizon_is_limit:
        return None
    merged = family.temporal_patch
    num_patches = -(-horizon // merged)
    text = len(chat.before_patch(horizon, horizon / config.fps, "between")) + len(chat.after_patch())
    extent = family.patch_extent(features, num_patches, merged / config.fps)
    opening = len(chat.before_patch(1, 0.0, "first"))
    return opening + extent + num_patches * text + config.horizon_text_tokens


def check_declared(family: Family, horizon_frames: int | None) -> None:
    """Raises ConfigError where a model has to know the length of the video beforehand, and no horizon is declared."""
    if horizon_frames is None and follows_length(family.decoder):
        raise ConfigError(
            f"{family.name}: rotary frequencies of this model follow the length of the video, so they are fixed "
            "for the longest one it may become: declare horizon_frames."
        )
