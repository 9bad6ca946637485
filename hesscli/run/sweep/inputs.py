"""What a cell would be measured from, told without loading it: equal inputs, equal run."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hesscli import __version__
from hesscli.checkpoint.origin import checkpoint_origin
from hesscli.data.origin import data_origin
from hesscli.demo import slice_file
from hesscli.errors import HessError
from hesscli.recipe import Recipe
from hesscli.recipe.document import NO_FIGURES, identity


def cell_inputs(recipe: Recipe) -> str | None:
    """A hash of the version, the recipe, and the commits or the files' names, sizes and times behind it.

    None where that cannot be told: a checkpoint that is not here, a hub that does not answer. It stands for the run's
    own hash, which is of the content and needs the checkpoint loaded: files that were changed give other inputs, and
    then the run's own hash decides.
    """
    model, data = recipe.model, recipe.data
    try:
        origins = checkpoint_origin(model.id, revision=model.revision, offline=model.offline)
        rows: Path | str | None = slice_file()
        if data.id != "demo":
            rows = data_origin(data.id, revision=data.revision, offline=model.offline)
        if origins is None or rows is None:
            return None
        places = [*origins, rows]
        if recipe.operator.blocks is not None:
            places.append(Path(recipe.operator.blocks))
        found = [_files(place) if isinstance(place, Path) else place for place in places]
    except (HessError, OSError, ValueError):  # the run itself says what is wrong
        return None
    return hashed([__version__, identity(recipe), found])


def given(recipe: Recipe) -> dict[str, Any]:
    """What a recipe measures as far as it differs from the defaults: a key that hess gets later changes no hash."""
    tree = recipe.model_dump(by_alias=True, mode="json", exclude_defaults=True)
    return {key: value for key, value in tree.items() if key not in NO_FIGURES}


def hashed(facts: Any) -> str:
    """Sixteen hex digits over anything that JSON holds."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _files(place: Path) -> Sequence[tuple[str, int, int]]:
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
    return [(file.name, (found := file.stat()).st_size, found.st_mtime_ns) for file in files]
