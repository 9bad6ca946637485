"""From a hub id, a file or a folder to rows in their own order, through `datasets`, streamed."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hesscli.data.failures import Origin, translated
from hesscli.data.local import IMAGES, LocalData, find_local
from hesscli.data.rows import Row
from hesscli.errors import UsageError


@dataclass(frozen=True, slots=True)
class Source:
    """Rows that can be read once, the columns they have, and what to call them."""

    rows: Generator[Row, None, None]
    columns: tuple[str, ...]
    name: str
    revision: str | None = None  # the commit on the hub where it is known
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by column, where numbers have names


def open_source(dataset: str, *, config_name: str | None, split: str, revision: str | None, offline: bool) -> Source:
    """The rows of one split, fetched only as far as they are read.

    Raises:
        UsageError: no such file, split or configuration, or a file that cannot be read as what it is.
        UnavailableError: a hub data set that is missing, gated, out of reach or a loading script.
    """
    local = find_local(dataset)
    if local is None:
        from hesscli.data.hub import open_builder

        offline = offline or _offline()
        origin = Origin(dataset, revision=revision, offline=offline)
        with translated(origin):
            builder, commit = open_builder(dataset, config_name=config_name, revision=revision, offline=offline)
            return _source(builder, split, origin, commit or revision)
    if revision is not None:
        raise UsageError("dataset_revision", f"{revision!r} is given for {local.name}, which is on disk", "drop it")
    if config_name is not None and local.path == local.kind:
        raise UsageError("config_name", f"{config_name!r} is given for {local.name}, a single file", "drop it")
    if local.kind == IMAGES:
        from hesscli.data.folders import read_folder

        rows, columns, names = read_folder(Path(local.root), name=local.name, split=split)
        return Source(rows, columns, local.name, None, {"label": names})
    origin = Origin(local.name, kind=local.kind, root=local.root)
    with translated(origin), TemporaryDirectory(prefix="hess-") as cache:
        return _source(_local_builder(local, config_name, cache), split, origin, None)


def _offline() -> bool:
    import datasets

    return bool(datasets.config.HF_HUB_OFFLINE)


def _local_builder(local: LocalData, config_name: str | None, cache: str) -> Any:
    import datasets  # here, because it takes a second to import and `curvature` needs the slice alone

    # A builder locks its cache folder even to stream; one of its own works in a home that is read-only
    # and leaves nothing behind that holds an absolute path.
    return datasets.load_dataset_builder(local.path, name=config_name, cache_dir=cache, **local.arguments)


def _source(builder: Any, split: str, origin: Origin, revision: str | None) -> Source:
    try:
        streams = builder.as_streaming_dataset()
    except StopIteration:  # the JSON reader's way to say that there is nothing to infer columns from
        raise _empty(origin) from None
    if split not in streams:
        what = f"{split!r} is not a split of {origin.name} (it has: {', '.join(map(str, streams))})"
        raise UsageError("split", what, "take one of them")
    features = getattr(streams[split], "features", None) or {}
    names = {column: tuple(f.names) for column, f in features.items() if type(f).__name__ == "ClassLabel"}
    iterator = iter(streams[split])
    first = next(iterator, None)
    if first is None:
        raise _empty(origin)
    return Source(_read(first, iterator, origin), tuple(first), origin.name, revision, names)


def _empty(origin: Origin) -> UsageError:
    return UsageError("dataset", f"{origin.name} holds no rows", "give data that holds rows")


def _read(first: Row, rest: Iterator[Row], origin: Origin) -> Generator[Row, None, None]:
    yield first
    with translated(origin):
        yield from rest


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and log lines of `datasets`, whose failures are reported once, as one line of ours.

    Nor is each read counted at a server, which `datasets` does for local files too: a file needs no network.
    """
    import datasets
    import huggingface_hub.utils as hub

    with ExitStack() as stack:
        for log, most in ((datasets.logging, datasets.logging.CRITICAL), (hub.logging, hub.logging.ERROR)):
            stack.callback(log.set_verbosity, log.get_verbosity())
            log.set_verbosity(most)
        stack.callback(setattr, datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", datasets.config.HF_UPDATE_DOWNLOAD_COUNTS)
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
        for bars in (datasets, hub):
            if not bars.are_progress_bars_disabled():
                stack.callback(bars.enable_progress_bars)
                bars.disable_progress_bars()
        yield
