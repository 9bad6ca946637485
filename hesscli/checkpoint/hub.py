"""A checkpoint on the hub: one commit of it in the local cache, and why it cannot be had in one line."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hesscli.checkpoint.listing import ADAPTER_CONFIG, CONFIG, is_adapter, small_files, weights_entry
from hesscli.checkpoint.quiet import in_short, quiet
from hesscli.checkpoint.weights import shard_names
from hesscli.errors import HessError, UnavailableError
from hesscli.events import Advanced, Finished, OnEvent, Started, Warned

_PATIENCE = 30.0  # seconds until a hub that does not answer counts as out of reach


def fetch(
    id: str,
    *,
    revision: str | None,
    allow_pickle: bool,
    trust_remote_code: bool,
    offline: bool,
    on_event: OnEvent,
) -> tuple[Path, str]:
    """The folder in the hub's cache with the files that loading needs and no others, and their commit.

    The branch is resolved once: every file is of the commit that its config was of. Weights that cannot be
    used are refused before they are fetched. Without a connection the cached commit is taken, with a warning.

    Raises:
        UnavailableError: not found, gated, offline and not cached, no room, or nothing in it that we load.
    """
    if offline or constants.HF_HUB_OFFLINE:
        return _cached(id, revision=revision)
    with quiet(), _failures(id, revision):
        try:
            info = HfApi().model_info(id, revision=revision, timeout=_PATIENCE)
        except Exception as error:
            if not _is_unreachable(error) or _cached_config(id, revision) is None:
                raise
            folder, commit = _cached(id, revision=revision)
            text = f"the hub cannot be reached: '{id}' is the cached commit {commit[:12]}, which may be old"
            on_event(Warned("hub_unreachable", text))
            return folder, commit
        names = {sibling.rfilename for sibling in info.siblings or ()}
        entry = weights_entry(names, id=id, allow_pickle=allow_pickle)
        # Under the revision as asked, so that the cache learns which commit it stands for.
        config = ADAPTER_CONFIG if is_adapter(names) else CONFIG
        folder = Path(hf_hub_download(id, config, revision=revision)).parent
        commit = folder.name
        stage = f"fetch {id}"
        wanted = [name for name in small_files(names, code=trust_remote_code) if name != config]
        first = Path(hf_hub_download(id, entry, revision=commit)) if entry.endswith(".index.json") else Path(entry)
        wanted += shard_names(first, id=id)
        on_event(Started(stage, len(wanted), "files"))
        for done, name in enumerate(wanted, start=1):
            hf_hub_download(id, name, revision=commit)
            on_event(Advanced(stage, done, name))
        on_event(Finished(stage))
    return folder, commit


def fetch_config(id: str, *, revision: str | None, offline: bool) -> Path:
    """The folder in the hub's cache with the config alone, which is fetched where need be; no weights are.

    The config is that of an adapter where there is no other.

    Raises:
        UnavailableError: not found, gated, or offline and not cached.
    """
    if offline or constants.HF_HUB_OFFLINE:
        return _cached(id, revision=revision)[0]
    with quiet(), _failures(id, revision):
        for name in (CONFIG, ADAPTER_CONFIG):
            try:
                return Path(hf_hub_download(id, name, revision=revision)).parent
            except LocalEntryNotFoundError:  # the hub does not answer
                raise
            except EntryNotFoundError:
                continue
        what = f"'{id}' on the hub holds neither {CONFIG} nor {ADAPTER_CONFIG}"
        raise UnavailableError("model", what, "give a checkpoint that save_pretrained wrote")


def fetch_shapes(id: str, name: str, *, commit: str, offline: bool) -> dict[str, tuple[int, ...]] | None:
    """The shapes of the tensors in a safetensors file, of which the header alone is fetched; None where it is not.

    Raises:
        UnavailableError: the hub does not answer, or the file is damaged.
    """
    if offline or constants.HF_HUB_OFFLINE:
        return None
    with quiet(), _failures(id, commit):
        try:
            found = HfApi().parse_safetensors_file_metadata(id, name, revision=commit)
        except EntryNotFoundError:
            return None
    return {tensor: tuple(info.shape) for tensor, info in found.tensors.items()}


def _cached_config(id: str, revision: str | None) -> Path | None:
    for name in (CONFIG, ADAPTER_CONFIG):
        found = try_to_load_from_cache(id, name, revision=revision)
        if isinstance(found, str):
            return Path(found)
    return None


def _cached(id: str, *, revision: str | None) -> tuple[Path, str]:
    with _failures(id, revision):
        config = _cached_config(id, revision)
    if config is None:
        at = f" at revision '{revision}'" if revision else ""
        what = f"'{id}'{at} is not in the cache, and offline mode is on"
        raise UnavailableError(
            "model", what, "run once online, set HF_HOME to the cache that holds it, or give a folder"
        )
    return config.parent, config.parent.name


@contextmanager
def _failures(id: str, revision: str | None) -> Iterator[None]:
    """Turn whatever huggingface_hub and its HTTP client raise into one line of ours."""
    try:
        yield
    except HessError:
        raise
    except Exception as error:  # its HTTP client's types differ between versions
        raise _explain(error, id, revision) from error


def _explain(error: Exception, id: str, revision: str | None) -> UnavailableError:
    token = "set HF_TOKEN or run `hf auth login`"
    chain = list(_causes(error))
    status = next((e.response.status_code for e in chain if isinstance(e, HfHubHTTPError)), None)
    if any(isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) for e in chain):
        what, remedy = f"no room left on the disk for '{id}'", "free some, or set HF_HOME to a larger disk"
    elif any(isinstance(e, GatedRepoError) for e in chain):  # a RepositoryNotFoundError too: asked first
        what, remedy = f"'{id}' is gated", f"accept its terms on its page, then {token}"
    elif any(isinstance(e, RepositoryNotFoundError) for e in chain):
        what = f"'{id}' is neither a folder here nor on the hub for you"
        remedy = f"check the name; if it is private, {token}"
    elif any(isinstance(e, RevisionNotFoundError) for e in chain):
        what, remedy = f"'{id}' has no revision '{revision}'", "give a branch, a tag or a commit of it"
        return UnavailableError("revision", what, remedy)
    elif any(isinstance(e, HFValidationError) for e in chain):
        what, remedy = f"'{id}' is neither a folder nor a hub id", "give a folder, ORG/NAME or demo"
    elif status in (401, 403):
        what, remedy = f"the hub refuses '{id}' to your token (HTTP {status})", token
    elif status == 429:
        what, remedy = f"the hub asks for patience with '{id}' (HTTP 429)", f"try again later, or {token}"
    elif status is not None and not isinstance(error, EntryNotFoundError):
        what, remedy = f"the hub fails to serve '{id}' (HTTP {status})", "try again later"
    elif any(_is_unreachable(e) for e in chain):
        what = f"the hub cannot be reached for '{id}'"
        remedy = "check the network and HF_ENDPOINT, or use --offline with a cached checkpoint"
    else:
        what, remedy = f"'{id}' cannot be fetched: {in_short(error)}", "try again"
    return UnavailableError("model", what, remedy)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_unreachable(error: BaseException) -> bool:
    """No answer at all; httpx was renamed between versions of huggingface_hub, so its types go by module."""
    if isinstance(error, HfHubHTTPError):
        return False
    by_client = type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore")
    return by_client or isinstance(error, (ConnectionError, TimeoutError, OfflineModeIsEnabled))
