"""Where a data set comes from, told without reading it."""

import re
from pathlib import Path

from hesscli.data.local import find_local


def data_origin(dataset: str, *, revision: str | None, offline: bool) -> Path | str | None:
    """The file or folder on this machine, or the commit on the hub; None where that cannot be told.

    Costs a request for a branch or a tag on the hub, none for a commit. Raises UsageError as reading would.
    """
    if find_local(dataset) is not None:
        return Path(dataset).expanduser()
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi, constants, snapshot_download

    try:
        if offline or constants.HF_HUB_OFFLINE:
            return Path(snapshot_download(dataset, repo_type="dataset", revision=revision, local_files_only=True)).name
        return HfApi().dataset_info(dataset, revision=revision, timeout=10.0).sha
    except Exception:  # of its HTTP client, whose types differ between versions; reading says what is wrong
        return None
