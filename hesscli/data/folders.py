"""A folder of class folders of images: one row an image, with the name of its folder as its class."""

from collections.abc import Generator
from itertools import zip_longest
from pathlib import Path

from hesscli.data.local import IMAGE_SUFFIXES
from hesscli.data.rows import Row
from hesscli.errors import UsageError


def read_folder(
    root: Path, *, name: str, split: str
) -> tuple[Generator[Row, None, None], tuple[str, ...], tuple[str, ...]]:
    """The rows of one split, their columns, and the names of the classes in the order of their numbers.

    `root/SPLIT/CLASS/x.png`, or `root/CLASS/x.png` for the split `train`. Classes are numbered in the order of their
    names, as `datasets` numbers them. The first image of each class comes first, then the second of each: the start
    of such a folder is not all of one class.

    Raises:
        UsageError: no such split, or images that lie in no class folder.
    """
    base = root / split
    if not base.is_dir():
        if split != "train":
            raise UsageError("split", f"folder {name} has no folder {split!r}", "name the folder of a split")
        base = root
    files = sorted(p for p in base.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(base).parts)]
    loose = next((p for p in files if p.parent == base), None)
    if loose is not None:
        what = f"{loose.name} of folder {name} lies in no class folder"
        raise UsageError("dataset", what, "put each image into a folder named like its class")
    if not files:
        raise UsageError("dataset", f"split {split!r} of folder {name} holds no images", "give class folders of images")
    classes = tuple(sorted({p.parent.name for p in files}))
    members = [[p for p in files if p.parent.name == c] for c in classes]
    turns = [p for turn in zip_longest(*members) for p in turn if p is not None]
    return _rows(turns, classes), ("image", "label"), classes


def _rows(files: list[Path], classes: tuple[str, ...]) -> Generator[Row, None, None]:
    for file in files:
        yield {"image": file.read_bytes(), "label": classes.index(file.parent.name)}
