"""What `datasets` raises, as one line that a user can act on: the boundary that no traceback passes."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import shorten

from hesscli.errors import HessError, UnavailableError, UsageError


@dataclass(frozen=True, slots=True)
class Origin:
    """What is being read: `root` is the folder cut out of messages (None: the hub), `kind` its file format."""

    name: str
    kind: str = ""
    root: str | None = None
    revision: str | None = None
    offline: bool = False


@contextmanager
def translated(origin: Origin) -> Iterator[None]:
    """Turn what third parties raise inside into a `UsageError` or an `UnavailableError`."""
    try:
        yield
    except HessError:
        raise
    except Exception as error:
        translate = _of_file if origin.root is not None else _of_hub
        raise (_of_configuration(error, origin) or translate(error, origin)) from error


def _detail(error: BaseException) -> str:
    # `datasets` puts the working folder before what the hub said: "... at PATH. Couldn't find ID either: ...".
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rpartition(" either: ")[2]
    return shorten(line, 200, placeholder=" ...").rstrip(" .;:")


def _of_configuration(error: Exception, origin: Origin) -> HessError | None:
    for pattern, answer in (
        (r"available configs: \[(.*?)\]", "has several configurations and none was named"),
        (r"BuilderConfig .* not found. Available: \[(.*?)\]", "has no such configuration"),
    ):
        if found := re.search(pattern, str(error), re.DOTALL):
            return UsageError("config_name", f"{origin.name} {answer}", f"take one of {found[1]}")
    return None


def _of_file(error: Exception, origin: Origin) -> HessError:
    if isinstance(error, UnicodeError):
        return UsageError("dataset", f"{origin.name} is not UTF-8 text", "convert it to UTF-8")
    if isinstance(error, PermissionError):
        return UsageError("dataset", f"{origin.name} cannot be read: permission denied", "change its permissions")
    detail = _detail(error).replace(f"{origin.root}/", "")
    what = f"{origin.name} cannot be read as {origin.kind}: {detail}"
    return UsageError("dataset", what, "mend the file at that place")


def _of_hub(error: Exception, origin: Origin) -> HessError:
    message, name = str(error), origin.name
    if "scripts are no longer supported" in message:
        remedy = "try --dataset-revision refs/convert/parquet, or export it to parquet and give the file"
        return UnavailableError("dataset", f"{name!r} is a loading script, which datasets no longer runs", remedy)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "is a gated dataset" in message or "GatedRepoError" in kinds:
        return UnavailableError("dataset", f"{name!r} is gated", "ask for access on its page and set HF_TOKEN")
    if origin.revision and ("Revision" in type(error).__name__ or message.startswith("Revision")):
        return UnavailableError("dataset_revision", f"{name!r} has no revision {origin.revision!r}", "check the name")
    if origin.offline:
        remedy = f"run `hf download --repo-type dataset {name}` where there is a network, or give a local file"
        at = f" at revision {origin.revision!r}" if origin.revision else ""
        return UnavailableError("dataset", f"{name!r}{at} is not cached and hess is offline", remedy)
    if kinds & {"DatasetNotFoundError", "RepositoryNotFoundError"}:
        what = f"{name!r} is no file or folder here and no data set on the hub that can be seen"
        return UnavailableError("dataset", what, "check the spelling, or set HF_TOKEN if it is private")
    # What the hub's client has neither in its cache nor from the server; `datasets` wraps it as a missing file.
    unreached = "LocalEntryNotFoundError" in message
    if isinstance(error, FileNotFoundError) and not unreached:
        return UnavailableError("dataset", f"{name!r} holds no files that datasets can read", "give a local file")
    # Connection failures come as OSError from the hub's client and as HTTPError from the ones below it.
    if kinds & {"OSError", "HTTPError", "HfHubHTTPError", "ClientError", "TimeoutException", "TimeoutError"}:
        what = f"{name!r} is no file or folder here and cannot be fetched: {_detail(error)}"
        return UnavailableError("dataset", what, "check the network and try again, or give a local file")
    return UsageError("dataset", f"{name!r} cannot be read: {_detail(error)}", "give a file of it instead")
