"""From a recipe to what a probe needs: checkpoint, slice, risk. The one builder that translates names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hesscli.checkpoint import Checkpoint, load_checkpoint
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.selection import Block, partition, partition_by_globs, select_parameters
from hesscli.data import Slice
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


def _blocks(recipe: Recipe, names: list[str]) -> list[Block]:
    if recipe.operator.blocks is None:
        return partition(names, by=recipe.operator.by)
    return partition_by_globs(names, load_blocks(Path(recipe.operator.blocks)))


def build_subject(recipe: Recipe, *, on_event: OnEvent) -> Subject:
    """Load the checkpoint and the slice that a recipe names, and put the risk over the selected parameters.

    Raises UsageError, UnavailableError or DoesNotFitError, each one line.
    """
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
            trust_remote_code=model.trust_remote_code,
            allow_pickle=model.allow_pickle,
            offline=model.offline,
            on_event=on_event,
        )
    with in_section("data"):
        check_options(recipe, checkpoint.identity.task)
        data, held_out = load_data(recipe, checkpoint, on_event)
        batch_size = rows_per_batch(recipe, checkpoint, data)
    params: Sequence[str] = recipe.operator.params
    if list(params) == ["*"] and checkpoint.adapter_parameters:  # what was trained; `**` takes the base model too
        params = checkpoint.adapter_parameters
    chosen = select_parameters(checkpoint.model, params=params, exclude=recipe.operator.exclude)
    risk = EmpiricalRisk(
        checkpoint.model,
        batches(data, batch_size, checkpoint),
        names=list(chosen),
        parameters=list(chosen.values()),
        input_device=checkpoint.input_device,
    )
    if checkpoint.identity.task == "image-classification":
        check_images(risk)
    blocks = _blocks(recipe, list(chosen))
    return Subject(checkpoint, data, risk, blocks, batch_size, held_out)
