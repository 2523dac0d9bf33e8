"""What another library's error says, in one line."""

import re

# OpenVINO begins with the lines of its source that the error came through.
_SOURCE_LINE = re.compile(r"Exception from \S+:\d+:$|Check '.*' failed at \S+:$")


def first_line(error: BaseException) -> str:
    r"""What an error says first, since some append long logs; its class where it says nothing.

    Example:
        >>> first_line(ValueError("\n it is cut \nlog of 100 lines")), first_line(KeyboardInterrupt())
        ('it is cut', 'KeyboardInterrupt')
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not _SOURCE_LINE.match(line)]
    return (telling or lines or [type(error).__name__])[0]


def typed_line(error: BaseException) -> str:
    """The class of an error and what it says first, for errors whose class tells more than their text.

    Example:
        >>> typed_line(KeyError("u")), typed_line(AssertionError())
        ("KeyError: 'u'", 'AssertionError')
    """
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"
