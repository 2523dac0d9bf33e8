"""What is answered where a request is refused: a status, and words that say why."""

from typing import Any

from kinescan.errors import ConfigError, KinescanError, NonFiniteError, OutOfMemoryError, VideoError
from kinescan.runtime.urls import mask_urls

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class RequestProblem(Exception):
    """A request that is refused.

    Args:
        status: of HTTP, 4xx or 503.
        message: why, and what is allowed.
        code: a word for programs.
    """

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def problem_body(status: int, message: str, code: str) -> dict[str, Any]:
    """The body of an answer that refuses, in the form of the OpenAI interface."""
    return {"error": {"message": message, "type": KINDS.get(status, "server_error"), "code": code, "param": None}}


def said_of_video(reason: str) -> str:
    """A sentence about a video whose file has no name here.

    Args:
        reason: of a `VideoError`, which stands behind the file's name elsewhere.

    Example:
        >>> said_of_video("is empty."), said_of_video("its frames have no pixels.")
        ('the video is empty.', 'the video: its frames have no pixels.')
    """
    is_sentence = reason.split(" ", 1)[0] in ("is", "has", "holds", "cannot", "ends")
    return f"the video {reason}" if is_sentence else f"the video: {reason}"


def problem_of(error: KinescanError) -> RequestProblem:
    """What an error of kinescan means to a client.

    Example:
        >>> problem_of(VideoError("/tmp/kinescan-x.video", "is empty.")).message
        'the video is empty.'
    """
    if isinstance(error, VideoError):
        return RequestProblem(422, mask_urls(said_of_video(error.reason)), "unreadable_video")
    if isinstance(error, OutOfMemoryError):
        return RequestProblem(503, "the device has too little memory for this request at the moment.", "out_of_memory")
    if isinstance(error, NonFiniteError):
        return RequestProblem(422, mask_urls(str(error)), "not_finite")
    status = 400 if isinstance(error, ConfigError | ValueError) else 500
    return RequestProblem(status, mask_urls(str(error)), "invalid_value" if status == 400 else "server_error")
