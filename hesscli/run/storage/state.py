"""The files of a run while it lasts: which of them are this process's own, and what all processes have of them.

One process keeps `000005.safetensors`; of several, each its shards: `000005-rank0of2.safetensors`. Sums over another
number of processes round in other ways, so that nothing goes on from their products; they stay until the run has ended.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hesscli.distributed import Ranks
from hesscli.report.files import write_whole

_PRODUCTS = re.compile(r"\d{6}(?:-rank\d+of(\d+))?\.safetensors")


@dataclass(frozen=True, slots=True)
class State:
    """What the processes of a run keep in `folder`. Methods that are `agreed` are for all ranks together."""

    folder: Path
    ranks: Ranks

    def file(self, number: int) -> Path:
        """Where this rank's part of the products of a request lies."""
        return self.folder / f"{number:06d}{self._own}.safetensors"

    def half(self, number: int) -> Path:
        """Where it lies while it is written; no other process has the same, one that should have ended neither."""
        return self.folder / f"{number:06d}{self._own}.{os.getpid()}.half"

    def agreed_to_go_on(self) -> bool:
        """Whether every rank has products of its own from a run that was cut off."""
        return bool(self.ranks.least(int(self.file(0).exists())))

    def of_others(self) -> list[str]:
        """Who else has left products here, such as `2 processes`."""
        found = (_PRODUCTS.fullmatch(file.name) for file in self._files())
        sizes = {match[1] for match in found if match is not None}
        own = None if self.ranks.device is None else str(self.ranks.size)
        return [_processes(size) for size in sorted(sizes - {own}, key=lambda size: int(size or 0))]

    def agreed_choice(self) -> dict[str, Any] | None:
        """What the first rank kept by `keep_choice`, None where there is none."""
        here = self.ranks.rank == 0 and self._choice.exists()
        kept: dict[str, Any] | None = json.loads(self._choice.read_text(encoding="utf-8")) if here else None
        return self.ranks.agreed(kept)

    def keep_choice(self, choice: Mapping[str, Any]) -> None:
        """Keep how products are made; the first rank does. Raises UsageError where it cannot be written."""
        if self.ranks.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(json.dumps(dict(choice)), self._choice, field="output.dir")

    def forget(self, *, start: int) -> None:
        """Remove this rank's products from the number `start` on, and those that were cut off while they were written.

        It does so before any rank makes the next product: none takes part of one attempt for part of another.
        """
        own = re.compile(rf"(\d{{6}}){re.escape(self._own)}\.(?:safetensors|\d+(\.half))")
        for file in self._files():
            match = own.fullmatch(file.name)
            if match and (match[2] or int(match[1]) >= start):
                file.unlink(missing_ok=True)

    def agreed_end(self) -> None:
        """Remove this rank's products, and return when every rank has come here: only then is the run finished.

        On a disk of its own a rank leaves no empty folders; where all share one, the first rank's choice lies there.
        """
        self.forget(start=0)
        if self.ranks.rank:
            with suppress(OSError):
                os.removedirs(self.folder)
        self.ranks.least(0)

    @property
    def _own(self) -> str:
        return "" if self.ranks.device is None else f"-rank{self.ranks.rank}of{self.ranks.size}"

    @property
    def _choice(self) -> Path:
        return self.folder / ("product.json" if self.ranks.device is None else f"product-of{self.ranks.size}.json")

    def _files(self) -> Iterator[Path]:
        return iter(sorted(self.folder.iterdir()) if self.folder.is_dir() else [])


def _processes(size: str | None) -> str:
    if size is None:
        return "one process"
    return "1 process under torchrun" if size == "1" else f"{size} processes"
