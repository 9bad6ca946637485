"""Files that appear whole or not at all."""

import os
from pathlib import Path

from hesscli.errors import UsageError


def write_whole(text: str, path: Path, *, field: str) -> None:
    """Write `text` to `path`: readers see the old file or the whole new one, never a part.

    Raises UsageError, in whose front stands `field`, where it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        what = f"{path.name} cannot be written: {error.strerror or error}"
        raise UsageError(field, what, "give a folder that exists and is writable") from None
    finally:
        part.unlink(missing_ok=True)
