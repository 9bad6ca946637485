"""Files that appear whole or not at all."""

import os
from pathlib import Path

from hesscli.errors import UsageError

_STREAMS = ("/dev/std", "/dev/fd/", "/proc/")


def write_whole(text: str, path: Path, *, field: str) -> None:
    """Write `text` to `path`: readers see the old file or the whole new one, never a part.

    A link is followed. A pipe or a device, such as /dev/stdout, is written to and never replaced. Raises UsageError, in
    whose front stands `field`, where it cannot be written.
    """
    try:
        if _is_stream(path):
            with path.open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
        else:
            _replace(path.resolve() if path.is_symlink() else path, text)
    except OSError as error:
        what = f"{path.name} cannot be written: {error.strerror or error}"
        raise UsageError(field, what, "give a folder that exists and is writable") from None


def _is_stream(path: Path) -> bool:
    """Whether it is no file of its own: /dev/stdout may lead to one, which whoever opened it goes on to hold."""
    return str(path.absolute()).startswith(_STREAMS) or (path.exists() and not path.is_file())


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
