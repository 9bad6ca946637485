"""A data set on the hub, or what is cached of one where there is no network."""

import re
from pathlib import Path
from typing import Any


def open_builder(
    dataset: str, *, config_name: str | None, revision: str | None, offline: bool
) -> tuple[Any, str | None]:
    """The `datasets` builder and the commit it stands at (None where that is not known).

    Offline, files that were downloaded with the hub's own client are looked for first: they are the ones
    that a `revision` can be asked of. Raises whatever `datasets` and the hub raise.
    """
    import datasets

    if not offline:
        builder = datasets.load_dataset_builder(dataset, name=config_name, revision=revision)
        if revision is not None and type(builder).__name__ == "Cache":
            # Where the hub does not answer, `datasets` takes the latest that it prepared, of any revision.
            message = "the hub does not answer, and what is cached may be another revision"
            raise ConnectionError(message)
        return _with_commit(builder)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(dataset, repo_type="dataset", revision=revision, local_files_only=True)
        # A streamed data set leaves its card in the cache, and no data.
        builder = datasets.load_dataset_builder(folder, name=config_name)
    except (LocalEntryNotFoundError, datasets.data_files.EmptyDatasetError, datasets.exceptions.DatasetsError):
        if revision is not None:
            raise
    else:
        return builder, Path(folder).name
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        return _with_commit(datasets.load_dataset_builder(dataset, name=config_name))
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _with_commit(builder: Any) -> tuple[Any, str | None]:
    commit = builder.hash
    return builder, commit if commit and re.fullmatch(r"[0-9a-f]{40}", commit) else None
