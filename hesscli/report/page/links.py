"""Addresses of files as a page sees them."""

import os
from pathlib import Path
from urllib.parse import quote


def address(file: Path, page: Path) -> str:
    """Return the relative address of a file, escaped as an address is; the page's own folder is where it starts."""
    relative = Path(os.path.relpath(file.absolute(), page.absolute().parent)).as_posix()
    # In front of a colon in a name stands a folder, or it would read as a scheme.
    return quote(relative if relative.startswith("../") else f"./{relative}")
