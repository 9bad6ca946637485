"""The run folder: named by a hash of what determines the answer, `.part` until it is finished."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hesscli.errors import UsageError


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
def part_folder(final: Path) -> Iterator[Path]:
    """A folder to write in that takes its final name, and the old run's place, when the block ends well.

    When it does not, nothing is left behind.
    """
    part = final.with_name(final.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
    except OSError as error:
        what = f"{str(part.parent)!r} cannot be written ({error.strerror or error})"
        raise UsageError("output.dir", what, "give another with -o") from error
    try:
        yield part
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
