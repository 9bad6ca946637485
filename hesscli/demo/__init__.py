"""The embedded checkpoint `demo`: where its revisions and its text slice lie in the package."""

from pathlib import Path

from hesscli.errors import UnavailableError

REVISIONS = ("step50", "step200", "final")  # in order of training

_FOLDER = Path(__file__).parent


def checkpoint_folder(revision: str | None = None) -> Path:
    """The folder of one revision of `demo`, which loads by itself like any other checkpoint.

    None and "main" mean the final one, as the newest commit does on the hub.

    Raises:
        UnavailableError: `demo` has no such revision.
    """
    name = "final" if revision in (None, "main") else revision
    if name not in REVISIONS:
        what = f"demo has no revision '{revision}'"
        raise UnavailableError(field="revision", what=what, remedy="use step50, step200 or final")
    return _FOLDER / "checkpoints" / name


def slice_file() -> Path:
    """JSON lines with a column `text`: documents that no revision was trained on."""
    return _FOLDER / "slice.jsonl"
