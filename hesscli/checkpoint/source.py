"""MODEL[@REVISION] to a folder on this machine: `demo`, a local folder, or a commit on the hub."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from hesscli.checkpoint import hub
from hesscli.demo import checkpoint_folder
from hesscli.errors import UnavailableError, UsageError
from hesscli.events import OnEvent

DEMO = "demo"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")  # one or two names; anything else can only be a path
_CHECKPOINT_FILES = ("*.safetensors", "*.bin", "*.gguf", "config.json", "adapter_config.json")


@dataclass(frozen=True, slots=True)
class Reference:
    """What the user named: a folder, or a name for `demo` and the hub."""

    name: str
    revision: str | None
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A folder that holds the checkpoint, and the names for the report."""

    id: str
    revision: str | None
    commit: str | None
    folder: Path


def parse(model: str, *, revision: str | None) -> Reference:
    """What `model` and `--revision` name together. Nothing is fetched.

    A folder that exists is meant even if its name holds an `@`. A folder in which there is nothing of a checkpoint
    does not hide a hub id of the same name. `demo` is always the embedded one; `./demo` is a folder.

    Raises:
        UsageError: two revisions that disagree, or a revision of a folder.
        UnavailableError: no such folder, or a file.
    """
    if not model.strip():
        raise UsageError("model", "the name is empty", "give a hub id, a folder or demo")
    name, at, suffix = model, "", ""
    if not _is_folder(model) and "@" in model:
        name, at, suffix = model.rpartition("@")
        if not _is_folder(name):  # a revision may hold an @, a hub id may not
            name, at, suffix = model.partition("@")
    if at and not suffix:
        raise UsageError("revision", f"'{model}' ends in @ without a revision", "name one, or leave the @ out")
    if at and revision is not None and suffix != revision:
        what = f"'{model}' names revision '{suffix}', --revision says '{revision}'"
        raise UsageError("revision", what, "give one of them")
    revision = suffix if at else revision
    if name == DEMO:
        return Reference(DEMO, revision)
    if _is_folder(name):
        if revision is not None:
            raise UsageError("revision", f"the folder '{name}' has no revisions", "leave the revision out")
        return Reference(name, None, Path(name).expanduser())
    if Path(name).expanduser().is_file():
        raise UnavailableError("model", f"'{name}' is a file", "give the folder that holds it")
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        what = f"no such folder: '{model}'"
        raise UnavailableError("model", what, "give a folder that holds config.json, a hub id or demo")
    return Reference(name, revision)


def _is_folder(name: str) -> bool:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return False
    return not _HUB_ID.fullmatch(name) or any(any(folder.glob(pattern)) for pattern in _CHECKPOINT_FILES)


def locate(
    reference: Reference,
    *,
    allow_pickle: bool,
    trust_remote_code: bool,
    offline: bool,
    on_event: OnEvent,
) -> Source:
    """The folder with the checkpoint's files, fetched from the hub into its cache where need be.

    Raises:
        UnavailableError: the checkpoint cannot be had; the line says why and what to do.
    """
    if reference.folder is not None:
        name = Path(os.path.abspath(reference.folder)).name or reference.name  # a link keeps its own name
        return Source(name, None, None, reference.folder)
    if reference.name == DEMO:
        return Source(DEMO, reference.revision, None, checkpoint_folder(reference.revision))
    folder, commit = hub.fetch(
        reference.name,
        revision=reference.revision,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        offline=offline,
        on_event=on_event,
    )
    return Source(reference.name, reference.revision, commit, folder)
