"""One run in the processes that torchrun has started: which of them speaks and writes."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hesscli.distributed import joined
from hesscli.errors import UsageError
from hesscli.recipe import Recipe
from hesscli.recipe.document import identity


@dataclass(frozen=True, slots=True)
class Share:
    """What this process runs, and whether it is the one that speaks."""

    recipe: Recipe
    first: bool


@contextmanager
def together(recipe: Recipe, *, force: bool, resume: bool) -> Iterator[Share]:
    """Join the other processes for a run of this recipe; alone, the recipe as it is.

    The first process writes. The others write too, to a folder that nobody sees, so that all take the same steps.

    Raises UsageError where the recipe's placement is for one process and there are more, or the reverse, and where
    the processes have been asked for different runs or have different versions of what they run.
    """
    size, model = int(os.environ.get("WORLD_SIZE") or 1), recipe.model
    if size > 1 and (model.placement not in ("auto", "fsdp") or model.device_map is not None):
        asked = f"a device map in {size}" if model.device_map is not None else f"{model.placement!r} in {size}"
        what = f"{asked} processes would measure the same {size} times"
        raise UsageError("model.placement", what, "use fsdp, or start one process, without torchrun")
    to_measure = _flat(identity(recipe)) | {"--force": json.dumps(force), "--no-resume": json.dumps(not resume)}
    with joined(wanted=model.placement == "fsdp", asked=to_measure) as ranks:
        if ranks.rank == 0:
            yield Share(recipe, first=True)
            return
        with unseen(recipe) as own:
            yield Share(own, first=False)


@contextmanager
def unseen(recipe: Recipe) -> Iterator[Recipe]:
    """The recipe of a process that does not speak: what it writes beside its products lies where nobody sees it."""
    with tempfile.TemporaryDirectory() as folder:
        output = recipe.output.model_copy(update={"dir": folder, "plots": []})
        yield recipe.model_copy(update={"output": output})


def _flat(tree: dict[str, Any]) -> dict[str, str]:
    """Values by their paths, as text."""
    sections = {key: value if isinstance(value, dict) else {"": value} for key, value in tree.items()}
    return {
        f"{section}.{key}".rstrip("."): value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for section, values in sections.items()
        for key, value in values.items()
    }
