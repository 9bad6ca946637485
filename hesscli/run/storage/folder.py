"""The run folder: named by a hash of what determines the answer, `.part` until it is finished."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hesscli.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class OccupiedError(UsageError):
    """Another process is at the same run."""


STATE = "state"  # the folder of a run's products while it lasts
JOURNAL = "journal.jsonl"  # what happened, line by line


def run_hash(facts: Mapping[str, Any]) -> str:
    """Eight hex digits over everything that determines a run's figures, and nothing else."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_folder(root: Path, *, model: str, revision: str | None, probe: str, run_id: str) -> Path:
    """`ROOT/ORG__MODEL/REVISION/PROBE-RUNID`; nothing is made on disk."""
    return root / _plain(model.replace("/", "__")) / _plain(revision or "main") / f"{probe}-{run_id}"


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).strip(".") or "_"


def check_writable(root: Path) -> None:
    """Raises UsageError where runs cannot be written below `root`."""
    existing = next((p for p in (root, *root.parents) if p.exists()), None)
    if existing is None or not existing.is_dir():
        raise UsageError("output.dir", f"{str(existing or root)!r} is not a folder", "give another with -o")
    if not os.access(existing, os.W_OK):
        raise UsageError("output.dir", f"{str(existing)!r} cannot be written", "give another with -o")


@contextmanager
def part_folder(final: Path, *, resume: bool) -> Iterator[Path]:
    """A folder to write in that takes its final name, and the old run's place, when the block ends well.

    When it does not, the run's state is left, if it has any, and its journal, and nothing else; with `resume` the next
    run of the same finds them there. Raises OccupiedError where another process is at the same run.
    """
    part = part_of(final)
    try:
        part.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"{str(part.parent)!r} cannot be written ({error.strerror or error})"
        raise UsageError("output.dir", what, "give another with -o") from error
    with alone_in(part):
        _clear(part, keep_state=resume, keep_journal=resume)
        try:
            yield part
            shutil.rmtree(part / STATE, ignore_errors=True)
            shutil.rmtree(final, ignore_errors=True)
            part.rename(final)
        except BaseException:
            with suppress(OSError):  # another rank may be at a file of its own still
                _clear(part, keep_state=resume, keep_journal=True)
                if not any(part.iterdir()):
                    shutil.rmtree(part, ignore_errors=True)
            raise


def part_of(final: Path) -> Path:
    """The folder of a run that is not finished."""
    return final.with_name(final.name + ".part")


def _clear(part: Path, *, keep_state: bool, keep_journal: bool) -> None:
    for entry in part.iterdir():
        if entry.name == JOURNAL and keep_journal:
            continue
        if entry.name == STATE and keep_state and any(entry.glob("*.safetensors")):
            continue
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)


@contextmanager
def alone_in(part: Path) -> Iterator[None]:
    """Hold a lock on the folder, which the system takes back from a process that is killed.

    Raises OccupiedError where another process holds it. Where there are no locks nothing is held.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(part, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                yield  # a file system without locks
                return
            what = f"another process is writing {part.name!r}"
            raise OccupiedError("output.dir", what, "wait for it, or give another folder with -o") from error
        yield
    finally:
        os.close(handle)
