"""Where a checkpoint comes from, told without loading or fetching it."""

import json
import re
from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache

from hesscli.checkpoint.listing import ADAPTER_CONFIG, CONFIG
from hesscli.checkpoint.quiet import quiet
from hesscli.checkpoint.source import DEMO, parse
from hesscli.demo import checkpoint_folder

_PATIENCE = 10.0  # seconds; a hub that does not answer must cost less than the loading that is saved


def checkpoint_origin(model: str, *, revision: str | None, offline: bool) -> list[Path | str] | None:
    """The folder on this machine or the commit on the hub; of an adapter, its base model's behind it.

    Costs a request for a branch or a tag on the hub, none for a commit. None where the hub does not say and nothing
    is cached.

    Raises:
        UsageError, UnavailableError: as loading would.
        OSError, ValueError: an adapter's config cannot be read.
    """
    reference = parse(model, revision=revision)
    here: Path | str
    if reference.folder is not None:
        here = folder = reference.folder.expanduser()
    elif reference.name == DEMO:
        here = folder = checkpoint_folder(reference.revision)
    else:
        commit = _commit(reference.name, reference.revision, offline=offline)
        cached = None if commit is None else _cached(reference.name, commit)
        if commit is None or cached is None:  # not here yet: it will be loaded whatever its commit
            return None
        here, folder = commit, cached
    if not (folder / ADAPTER_CONFIG).is_file():
        return [here]
    adapter = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    base = adapter.get("base_model_name_or_path")
    if not isinstance(base, str):
        return None
    behind = checkpoint_origin(base, revision=adapter.get("revision") or None, offline=offline)
    return None if behind is None else [here, *behind]


def _commit(id: str, revision: str | None, *, offline: bool) -> str | None:
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    if not (offline or constants.HF_HUB_OFFLINE):
        try:
            with quiet():
                return HfApi().model_info(id, revision=revision, timeout=_PATIENCE).sha
        except Exception:  # of its HTTP client, whose types differ between versions; loading says what is wrong
            pass
    cached = _cached(id, revision)
    return None if cached is None else cached.name


def _cached(id: str, revision: str | None) -> Path | None:
    for name in (CONFIG, ADAPTER_CONFIG):
        found = try_to_load_from_cache(id, name, revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    return None
