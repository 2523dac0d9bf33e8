"""How many positions a stream of a declared length may come to."""

from kinescan.vlm.chat import Chat
from kinescan.vlm.config import StreamConfig
from kinescan.vlm.families import Family, Features


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
