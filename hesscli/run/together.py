"""One run in the processes that torchrun has started: which of them speaks and writes."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hesscli.distributed import joined
from hesscli.errors import UsageError
from hesscli.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Share:
    """What this process runs, and whether it is the one that speaks."""

    recipe: Recipe
    first: bool


@contextmanager
def together(recipe: Recipe) -> Iterator[Share]:
    """Join the other processes for a run of this recipe; alone, the recipe as it is.

    The first process writes. The others write too, to a folder that nobody sees, so that all take the same steps.

    Raises UsageError where the recipe's placement is for one process and there are more, or the reverse.
    """
    size, model = int(os.environ.get("WORLD_SIZE") or 1), recipe.model
    if size > 1 and (model.placement not in ("auto", "fsdp") or model.device_map is not None):
        asked = f"a device map in {size}" if model.device_map is not None else f"{model.placement!r} in {size}"
        what = f"{asked} processes would measure the same {size} times"
        raise UsageError("model.placement", what, "use fsdp, or start one process, without torchrun")
    with joined(wanted=model.placement == "fsdp") as ranks:
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
