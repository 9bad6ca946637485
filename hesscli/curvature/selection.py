"""Which parameters take part, and how they fall into blocks: from names alone."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from hesscli.errors import UsageError

Granularity = Literal["layer", "module", "parameter"]
_LAYER = re.compile(r"^(.*?\.)?(\d+)(?=\.|$)")


@dataclass(frozen=True, slots=True)
class Block:
    """A set of parameters, by their places in the space."""

    name: str
    parts: frozenset[int]


def select_parameters(
    model: nn.Module, *, params: Sequence[str], exclude: Sequence[str], adapter: Sequence[str]
) -> dict[str, nn.Parameter]:
    """Parameters whose names match any of `params` and none of `exclude` (shell globs); tied ones stand once.

    Where an `adapter` trains parameters, `*` alone stands for these, by their names; `**` takes the base model too.
    What the model does not train, such as sinusoids that it keeps as a parameter, is a constant of the loss.
    Raises UsageError where a glob matches nothing or nothing is left.
    """
    if list(params) == ["*"] and adapter:
        params = adapter
    named = {name: p for name, p in model.named_parameters() if p.dtype.is_floating_point and p.requires_grad}
    for field, globs in (("operator.params", params), ("operator.exclude", exclude)):
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in named):
                near = get_close_matches(glob, list(named), n=1, cutoff=0.4)
                raise UsageError(
                    field,
                    f"{glob!r} matches no parameter",
                    f"nearest is {near[0]!r}" if near else f"names look like {next(iter(named))!r}",
                )
    chosen = {
        name: p
        for name, p in named.items()
        if any(fnmatchcase(name, g) for g in params) and not any(fnmatchcase(name, g) for g in exclude)
    }
    if not chosen:
        raise UsageError("operator.exclude", "no parameter is left", "exclude less")
    return chosen


def partition(names: Sequence[str], *, by: Granularity) -> list[Block]:
    """Blocks in the order of their first parameter; every parameter is in one block.

    By layer: what stands under the first number of a name is one block, the rest falls to its module
    (embeddings, final norm, head). By module: the module that owns the parameter. By parameter: each alone.
    """
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        groups.setdefault(_block_name(name, by), []).append(place)
    return [Block(name, frozenset(parts)) for name, parts in groups.items()]


def partition_by_globs(names: Sequence[str], globs: Mapping[str, Sequence[str]]) -> list[Block]:
    """A block for each entry: the parameters whose names match any of its globs.

    Raises UsageError where a parameter is in two blocks or in none, or a block has none.
    """
    field = "operator.blocks"
    blocks = {
        block: [i for i, name in enumerate(names) if any(fnmatchcase(name, glob) for glob in wanted)]
        for block, wanted in globs.items()
    }
    for block, places in blocks.items():
        if not places:
            raise UsageError(field, f"block {block!r} matches no parameter", f"names look like {names[0]!r}")
    for place, name in enumerate(names):
        owners = [block for block, places in blocks.items() if place in places]
        if len(owners) > 1:
            raise UsageError(field, f"{name!r} is in {owners[0]!r} and in {owners[1]!r}", "make the globs disjoint")
        if not owners:
            raise UsageError(field, f"{name!r} is in no block", "add a block for it, or leave it out with --exclude")
    return [Block(block, frozenset(places)) for block, places in blocks.items()]


def _block_name(name: str, by: Granularity) -> str:
    if by == "parameter":
        return name
    if by == "layer" and (match := _LAYER.match(name)):
        return match.group(0)
    return name.rpartition(".")[0] or name
