"""From a recipe to what a probe needs: checkpoint, slice, risk. The one builder that translates names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hesscli.checkpoint import Checkpoint, load_checkpoint
from hesscli.checkpoint.sharding import shard, to_device, without_weights
from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.layers.offloaded import Offloaded
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.selection import Block, partition, partition_by_globs, select_parameters
from hesscli.curvature.sharded.risk import ShardedRisk
from hesscli.data import Batch, Slice
from hesscli.distributed import Ranks, ranks
from hesscli.errors import UsageError
from hesscli.events import OnEvent
from hesscli.recipe import Recipe
from hesscli.recipe.blocks import load_blocks
from hesscli.run.faults import in_section
from hesscli.run.slices import batches, check_images, check_options, load_data, rows_per_batch


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured."""

    checkpoint: Checkpoint
    data: Slice
    risk: EmpiricalRisk
    blocks: list[Block]
    batch_size: int
    held_out: Slice | None
    """The sequences that follow the slice, where some are asked for."""
    batches: Sequence[Batch] = ()
    """Of the slice as they were made; a run that is short of memory cuts the risk's into fewer rows."""


def _blocks(recipe: Recipe, names: list[str]) -> list[Block]:
    if recipe.operator.blocks is None:
        return partition(names, by=recipe.operator.by)
    return partition_by_globs(names, load_blocks(Path(recipe.operator.blocks)))


def build_subject(recipe: Recipe, *, on_event: OnEvent) -> Subject:
    """Load the checkpoint and the slice that a recipe names, and put the risk over the selected parameters.

    Where processes have joined, the first one reads, and each has its part.

    Raises UsageError, UnavailableError or DoesNotFitError, each one line.
    """
    together = ranks()
    if together.device is None:
        read, bare = _read(recipe, on_event), None
    else:
        read, bare = _share(recipe, together, on_event)
    checkpoint, data, held_out, batch_size = read
    chosen = select_parameters(
        checkpoint.model,
        params=recipe.operator.params,
        exclude=recipe.operator.exclude,
        adapter=checkpoint.adapter_parameters,
    )
    rows = batches(data, batch_size, checkpoint)
    given: dict[str, Any] = {"names": list(chosen), "parameters": list(chosen.values())}
    given["input_device"] = checkpoint.input_device
    risk: EmpiricalRisk
    if checkpoint.reads:
        given["residence"] = _offloaded(checkpoint, given["names"], given["parameters"])
        risk = LayeredRisk(checkpoint.model, rows, **given)
    elif bare is None:
        risk = EmpiricalRisk(checkpoint.model, rows, **given)
    else:
        risk = ShardedRisk(checkpoint.model, rows, **given, ranks=together, bare=bare)
    if checkpoint.identity.task == "image-classification":
        check_images(risk)
    blocks = _blocks(recipe, list(chosen))
    return Subject(checkpoint, data, risk, blocks, batch_size, held_out, tuple(rows))


def _offloaded(checkpoint: Checkpoint, names: list[str], parameters: list[nn.Parameter]) -> Offloaded:
    folder = checkpoint.offload_folder
    return Offloaded(checkpoint.model, checkpoint.reads, names=names, parameters=parameters, folder=folder)


_Read = tuple[Checkpoint, Slice, Slice | None, int]
_Shared = tuple[_Read, nn.Module]


def _read(recipe: Recipe, on_event: OnEvent) -> _Read:
    """The checkpoint, the slice, the held-out one, and the rows of a batch."""
    model = recipe.model
    with in_section("data"):
        if model.task != "auto":  # before anything is fetched
            check_options(recipe, model.task)
    with in_section("model"):
        checkpoint = load_checkpoint(
            model.id,
            revision=model.revision,
            task=model.task,
            dtype=model.dtype,
            attention=model.attn,
            placement=model.placement,
            device_map=model.device_map,
            max_memory=model.max_memory,
            offload_dir=model.offload_dir,
            trust_remote_code=model.trust_remote_code,
            allow_pickle=model.allow_pickle,
            offline=model.offline,
            on_event=on_event,
        )
    with in_section("data"):
        check_options(recipe, checkpoint.identity.task)
        data, held_out = load_data(recipe, checkpoint, on_event)
        return checkpoint, data, held_out, rows_per_batch(recipe, checkpoint, data)


def _share(recipe: Recipe, together: Ranks, on_event: OnEvent) -> _Shared:
    """The same on every rank, of weights its shards: the first rank reads, layer by layer where it can, and sends.

    Beside it a copy of the model without weights and without hooks, for products layer by layer.
    """
    whole, read = None, None
    reads: Mapping[str, Callable[[], torch.Tensor]] = {}
    if together.rank == 0:
        here = recipe.model.model_copy(update={"placement": "fsdp"})
        checkpoint, *rest = _read(recipe.model_copy(update={"model": here}), on_event)
        whole, reads = checkpoint.model, checkpoint.reads
        if type(whole).__module__.startswith("transformers_modules."):
            what = "a model with code of its own cannot be sent to other processes"
            raise UsageError("model.placement", what, "start one process, without torchrun")
        bare = without_weights(whole)
        read = (replace(checkpoint, model=bare, reads={}, copies=None, offload_folder=None), *rest)
    found: _Read = together.agreed(read)  # type: ignore[assignment] # None on the others
    bare = without_weights(found[0].model)
    to_device(bare, together)
    shard(found[0].model, whole, together, reads=reads)
    return found, bare
