"""What each process says of itself before it joins the others: its versions, and what it was asked for.

Processes that make other collectives, or the same ones of other sizes, wait for each other or take each other's bytes
for their own. So they are compared before the first one.
"""

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from hesscli import __version__
from hesscli.errors import UsageError

_ASKED, _HAS = "asked", "has"
_SHOWN = 60  # characters of a value


def greet(store: Any, rank: int, asked: Mapping[str, str], *, device: str) -> None:
    """Say it, where the others read it."""
    store.set(f"{_HAS}/{rank}", json.dumps({"hess": __version__, **_versions(), "device": device}))
    store.set(f"{_ASKED}/{rank}", json.dumps(dict(asked)))


def compare(store: Any, size: int) -> None:
    """Read what all have said. Raises UsageError, the same one on every rank, where they differ from the first one."""
    for kind, verb, remedy in (
        (_HAS, "has", "install the same on every machine"),
        (_ASKED, "is to measure with", "give every process the same command"),
    ):
        first, *others = (json.loads(text) for text in store.multi_get([f"{kind}/{rank}" for rank in range(size)]))
        for rank, own in enumerate(others, start=1):
            names = [name for name in sorted(own.keys() | first.keys()) if own.get(name) != first.get(name)]
            if names:
                one, other = (", ".join(f"{name} {_short(of.get(name))}" for name in names[:3]) for of in (first, own))
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                word = "has" if kind == _HAS else "with"
                raise UsageError("ranks", f"rank 0 {verb} {one}{more}, and rank {rank} {word} {other}", remedy)


def _short(value: str | None) -> str:
    text = "none" if value is None else " ".join(value.split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _versions() -> dict[str, str]:
    found = {"torch": str(torch.__version__)}
    try:
        found["transformers"] = version("transformers")
    except PackageNotFoundError:
        found["transformers"] = "none"
    return found
