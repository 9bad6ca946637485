"""Where a data set lies on disk: a file or a folder of one kind, and the `datasets` builder that reads it."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hesscli.errors import UsageError

BUILDERS = {".jsonl": "json", ".json": "json", ".txt": "text", ".parquet": "parquet", ".csv": "csv"}
EXTENSIONS = " ".join(BUILDERS)
IMAGES = "images"  # the kind of a folder of class folders
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
# Files that `datasets` passes over in a folder: they describe the data and hold no rows.
NOT_DATA = {"README.md", "config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"}
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
# Pandas takes the words NA, null, nan, None for missing values; in a text column they are text.
OPTIONS: Mapping[str, dict[str, Any]] = {"csv": {"keep_default_na": False}}


@dataclass(frozen=True, slots=True)
class LocalData:
    """What `datasets.load_dataset_builder` is called with, and the root to strip from its messages."""

    path: str
    name: str
    root: str
    kind: str
    arguments: dict[str, Any] = field(default_factory=dict)


def kind_of(path: Path) -> str | None:
    """The builder for a file's extension (`.gz` looked through), None where there is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        # `datasets` unpacks lines on the fly; parquet is compressed inside.
        kind = BUILDERS.get(suffixes[-2]) if len(suffixes) > 1 else None
        return None if kind == "parquet" else kind
    return BUILDERS.get(suffixes[-1]) if suffixes else None


def find_local(dataset: str) -> LocalData | None:
    """The file or folder that `dataset` names, None where it can only be a hub id.

    Raises:
        UsageError: it is written like a path and is not there, has an extension that nothing reads, is
            empty, or is a folder with no data or with several kinds of it.
    """
    path = Path(dataset).expanduser()
    if dataset and path.is_dir():  # the empty path is the working folder
        return _folder(path, dataset)
    if path.is_file():
        return _file(path)
    if dataset and path.exists():
        raise UsageError("dataset", f"{path.name} is neither a file nor a folder", f"give a {EXTENSIONS} file")
    written_as_path = dataset.startswith((".", "/", "~")) or dataset.endswith("/") or dataset.count("/") > 1
    if written_as_path or "\\" in dataset or kind_of(path) is not None:
        raise UsageError("dataset", f"no file or folder {dataset!r}", _nearest(path))
    if dataset in BUILDERS.values():
        # `datasets` would take it for the reader, and read what lies in the working folder.
        raise UsageError("dataset", f"{dataset!r} is a kind of file", f"give a file ({EXTENSIONS}) or a hub id")
    if not HUB_ID.fullmatch(dataset):
        raise UsageError("dataset", f"{dataset!r} is no file, no folder and no hub id", "give one of these")
    return None


def _file(path: Path) -> LocalData:
    kind = kind_of(path)
    if kind is None:
        raise UsageError("dataset", f"{path.name} has an extension that is not read", f"give one of {EXTENSIONS}")
    if path.stat().st_size == 0:
        raise UsageError("dataset", f"{path.name} is empty", "give a file that holds rows")
    # Escaped, because `datasets` would expand a name with [ ] or * as a pattern.
    files = {"train": ["".join(f"[{c}]" if c in "*?[" else c for c in str(path.absolute()))]}
    arguments = {"data_files": files, **OPTIONS.get(kind, {})}
    return LocalData(kind, path.name, str(path.absolute().parent), kind, arguments)


def _folder(path: Path, dataset: str) -> LocalData:
    name = path.resolve().name or dataset
    if set("*?[") & set(str(path.absolute())):
        what = f"the path of folder {name} holds one of * ? [, which datasets takes for a pattern"
        raise UsageError("dataset", what, "rename it, or give a file")
    if (path / "state.json").exists() and any(path.glob("*.arrow")):
        what = f"{name} was written by save_to_disk, which cannot be streamed"
        raise UsageError("dataset", what, "write it with to_parquet and give that file")
    visible = [p.relative_to(path) for p in path.rglob("*") if p.is_file()]
    visible = [p for p in visible if not any(part.startswith((".", "__")) for part in p.parts)]
    data = [(p, kind) for p in visible if p.name not in NOT_DATA and (kind := kind_of(p)) is not None]
    kinds = Counter(kind for _, kind in data)
    if not kinds and any(p.suffix.lower() in IMAGE_SUFFIXES for p in visible):
        return LocalData(IMAGES, name, str(path.absolute()), IMAGES)
    if not kinds:
        inside = ", ".join(sorted({p.suffix or p.name for p in visible})[:5])
        inside = f"holds no data, only {inside}" if inside else "is empty"
        raise UsageError("dataset", f"folder {name} {inside}", f"give a folder of {EXTENSIONS} or of images")
    if len(kinds) > 1:
        inside = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        raise UsageError("dataset", f"folder {name} mixes kinds of files ({inside})", "keep one kind, or give a file")
    if not any((path / p).stat().st_size for p, _ in data):
        raise UsageError("dataset", f"every file of folder {name} is empty", "give files that hold rows")
    (kind,) = kinds
    return LocalData(str(path.absolute()), name, str(path.absolute()), kind, dict(OPTIONS.get(kind, {})))


def _nearest(path: Path) -> str:
    folder = path.parent
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    close = get_close_matches(path.name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else "check the path"
