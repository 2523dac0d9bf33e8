import tempfile
from pathlib import Path

from kinescan.errors import ConfigError
from kinescan.runtime.addresses import require_local


def prepare_output(folder: str | Path) -> Path:
    """The folder of a run, made and tried out by writing into it.

    Raises:
        ConfigError: nothing can be written there, or it is an address.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     prepare_output(Path(parent) / "runs" / "a").is_dir()
        True
    """
    folder = Path(folder)
    require_local(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A new file of a name that nobody else has.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-"):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            f"output {str(folder)!r} cannot be written ({reason}). Choose another folder with --output or `output`."
        ) from error
    return folder
