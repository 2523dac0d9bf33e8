"""Numbers as people read them: parts of a whole, times, sizes of memory."""


def percent(ratio: float) -> str:
    """A ratio as per cent; NaN is a dash.

    Example:
        >>> percent(0.1234)
        '12.3 %'
    """
    return "-" if ratio != ratio else f"{100 * ratio:.1f} %"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:
        >>> duration(3723.4)
        '1:02:03'
    """
    whole = round(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02}:{whole % 60:02}"


def byte_size(num_bytes: int) -> str:
    """Bytes in the unit that suits them.

    Example:
        >>> byte_size(1536), byte_size(3 * 2**20)
        ('1.5 KiB', '3.0 MiB')
    """
    for power, unit in ((30, "GiB"), (20, "MiB")):
        if num_bytes >= 2**power:
            return f"{num_bytes / 2**power:.1f} {unit}"
    return f"{num_bytes / 2**10:.1f} KiB"
