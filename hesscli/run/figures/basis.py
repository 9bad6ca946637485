"""What a basis may take: where it is kept, in how many digits, and how many vectors of it there is room for."""

import shutil
import tempfile
from pathlib import Path

import torch

from hesscli.checkpoint.memory import available_bytes
from hesscli.errors import DoesNotFitError
from hesscli.linalg.krylov.extremes import smallest_capacity
from hesscli.linalg.mapped_space import MappedSpace
from hesscli.linalg.space import ParameterSpace
from hesscli.linalg.storage import ROWS, BasisStorage
from hesscli.recipe import Recipe

# A basis may take this part of what is free; the graph and the vectors of the product have the rest.
SHARE = 0.4
_REMEDY = "use --basis host or disk, --basis-dtype bfloat16 or int8, or choose fewer --params"


def storage_of(recipe: Recipe) -> BasisStorage:
    """How the recipe has bases kept."""
    return BasisStorage(place=recipe.estimator.basis, dtype=recipe.estimator.basis_dtype)


def basis_fits(space: ParameterSpace, *lengths: int) -> bool:
    """Whether bases of these lengths fit beside what is held now, wherever the space's bases are kept.

    As they are allocated: a basis of four vectors takes a block of 16.
    """
    return sum(-(-length // ROWS) * ROWS for length in lengths) <= room_for(space)


def vectors_fit(space: ParameterSpace, count: int) -> bool:
    """Whether `count` vectors fit beside what is held now and a product; in files they always do."""
    return isinstance(space, MappedSpace) or count <= _room(space, BasisStorage())


def room_for(space: ParameterSpace) -> int:
    """The number of basis vectors that fit beside what is held now."""
    return _room(space, space.storage)


def _room(space: ParameterSpace, storage: BasisStorage) -> int:
    needed = dict[torch.device | None, int]()
    for device, numel in zip(space.devices, space.local_numels, strict=True):
        home = {"device": device, "host": torch.device("cpu"), "disk": None}[storage.place]
        needed[home] = needed.get(home, 0) + storage.vector_bytes(numel, space.dtype)
    # A rank may hold no row of anything; the others then know.
    room = min(int(SHARE * _free(home, storage)) // max(1, size) for home, size in needed.items())
    return space.ranks.least(room)


def _free(home: torch.device | None, storage: BasisStorage) -> int:
    return available_bytes(home) if home is not None else shutil.disk_usage(storage.folder or _temporary()).free


def _temporary() -> Path:
    return Path(tempfile.gettempdir())


def krylov_dim_of(recipe: Recipe, space: ParameterSpace, *, steps: int) -> int | None:
    """The basis vectors of a restarted run, as asked or as many as fit; None where `steps` of them fit.

    Raises DoesNotFitError where there is no room for what was asked, or for the least that a restart needs.
    """
    estimator, room = recipe.estimator, room_for(space)
    most = min(steps, space.dimension)
    if estimator.krylov_dim is not None:
        if min(estimator.krylov_dim, most) > room:
            what = f"of {estimator.krylov_dim} basis vectors {room} fit in memory"
            raise DoesNotFitError("estimator.krylov_dim", what, _REMEDY)
        return estimator.krylov_dim
    if most <= room:
        return None
    least = smallest_capacity(estimator.k, estimator.which)
    if room < least:
        what = f"{estimator.k} pairs need {least} basis vectors, of which {room} fit in memory"
        raise DoesNotFitError("estimator.k", what, f"lower --k, or {_REMEDY}")
    return max(least, room)
