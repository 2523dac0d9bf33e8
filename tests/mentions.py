"""What a test asks of a text: the names in it, not its sentences."""


def mentions(text: str, *names: str) -> bool:
    """Whether all of `names` (file names, keys, values, numbers) are in `text`, in this order."""
    start = 0
    for name in names:
        found = text.find(name, start)
        if found < 0:
            return False
        start = found + len(name)
    return True
