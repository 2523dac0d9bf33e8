"""One picture out of the bytes of a JPEG, PNG or the like."""

import io

from av.video.reformatter import VideoReformatter

from kinescan.data.video.limits import Limits
from kinescan.data.video.opening import bound_frames, open_pipe
from kinescan.data.video.picture import to_rgb
from kinescan.errors import KinescanError, VideoError
from kinescan.shapes import Pixels


def decode_picture(content: bytes, *, limits: Limits | None = None, name: str = "the picture") -> Pixels:
    """The pixels of a picture, uint8 [3, H, W], upright.

    Args:
        content: of the file.
        limits: on its size.
        name: for messages.

    Raises:
        VideoError: it is not a picture, or damaged, or too large.

    Example:
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (32, 24), (250, 0, 0)).save(file, "PNG")
        >>> decode_picture(file.getvalue())[:, 0, 0].tolist()
        [250, 0, 0]
    """
    limits = limits or Limits()
    try:
        with open_pipe(io.BytesIO(content), limits) as container:
            if not container.streams.video:
                raise VideoError(name, "holds no picture.")
            bound_frames(name, container, limits)
            container.streams.video[0].thread_type = "NONE"
            for frame in container.decode(video=0):
                limits.check_size(name, frame.width, frame.height)
                if frame.is_corrupt:
                    break
                return to_rgb(name, frame, VideoReformatter()).permute(2, 0, 1)
    except KinescanError:
        raise
    # whatever a stranger's bytes do to a decoder is about these bytes
    except Exception as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise VideoError(name, f"cannot be decoded: {reason}. Send JPEG or PNG.") from None
    raise VideoError(name, "is cut or damaged. Send it again.")
