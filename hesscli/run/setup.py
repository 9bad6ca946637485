"""From a recipe to what a probe needs: checkpoint, slice, risk. The one builder that translates names."""

from dataclasses import dataclass

from hesscli.checkpoint import Checkpoint, load_checkpoint
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.selection import Block, partition, select_parameters
from hesscli.data import Slice, load_slice
from hesscli.demo import slice_file
from hesscli.events import OnEvent
from hesscli.recipe import Recipe

# Tokens in a batch where the user does not say: enough to fill the cores with matrix products, few enough that
# one batch's logits stay small.
_TOKENS_PER_BATCH = 4096
_MAX_LENGTH = 512  # or the model's positions, where those are fewer


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured."""

    checkpoint: Checkpoint
    data: Slice
    risk: EmpiricalRisk
    blocks: list[Block]
    batch_size: int


def build_subject(recipe: Recipe, *, on_event: OnEvent) -> Subject:
    """Load the checkpoint and the slice that a recipe names, and put the risk over the selected parameters.

    Raises UsageError, UnavailableError or DoesNotFitError, each one line.
    """
    model = recipe.model
    checkpoint = load_checkpoint(
        model.id,
        revision=model.revision,
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
    data = _load_data(recipe, checkpoint, on_event)
    chosen = select_parameters(checkpoint.model, params=recipe.operator.params, exclude=recipe.operator.exclude)
    size = recipe.data.batch_size
    longest = max(s.targets.numel() for s in data.sequences)
    batch_size = max(1, _TOKENS_PER_BATCH // longest) if size == "auto" else size
    batch_size = min(batch_size, len(data.sequences))
    risk = EmpiricalRisk(
        checkpoint.model,
        list(data.batches(batch_size)),
        names=list(chosen),
        parameters=list(chosen.values()),
        input_device=checkpoint.input_device,
    )
    blocks = partition(list(chosen), by=recipe.operator.by)
    return Subject(checkpoint, data, risk, blocks, batch_size)


def _load_data(recipe: Recipe, checkpoint: Checkpoint, on_event: OnEvent) -> Slice:
    data, positions = recipe.data, checkpoint.max_positions
    embedded = data.id == "demo"
    return load_slice(
        str(slice_file()) if embedded else data.id,
        name="demo" if embedded else None,
        config_name=data.config_name,
        split=data.split,
        column=data.column,
        revision=data.revision,
        limit=data.limit,
        max_length=data.max_length or min(_MAX_LENGTH, positions or _MAX_LENGTH),
        pack=data.pack,
        tokenizer=checkpoint.tokenizer,
        vocab_size=checkpoint.vocab_size,
        max_positions=positions,
        offline=recipe.model.offline,
        on_event=on_event,
    )
