"""From a recipe's data section and a checkpoint to a slice: the names of the one in the words of the other."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from hesscli.checkpoint import Checkpoint
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.data import Batch, Requirements, Slice, check_read, load_slice
from hesscli.demo import slice_file
from hesscli.errors import UsageError
from hesscli.events import Noted, OnEvent
from hesscli.recipe import Recipe

# Positions in a batch where the user does not say: enough to fill the cores with matrix products, few enough that
# one batch's logits stay small.
_POSITIONS_PER_BATCH = 4096
_MAX_LENGTH = 512  # or the model's positions, where those are fewer


def check_options(recipe: Recipe, task: str) -> None:
    """Raise UsageError for an option of the data that the task does not read."""
    data = recipe.data
    given = {key: getattr(data, key) for key in ("mask_prompt", "max_length", "pack", "target_column")}
    check_read(task, given)


def requirements(checkpoint: Checkpoint) -> Requirements:
    """What the checkpoint asks of its data."""
    config = checkpoint.model.config
    return Requirements(
        task=checkpoint.identity.task,
        vocab_size=checkpoint.vocab_size,
        max_positions=checkpoint.max_positions,
        pad_token_id=checkpoint.pad_token_id,
        num_token_types=checkpoint.num_token_types,
        num_labels=config.num_labels,
        label2id=config.label2id,
        num_channels=getattr(config, "num_channels", 3),
        tokenizer=checkpoint.tokenizer,
        image_processor=checkpoint.image_processor,
        decoder_input_ids=checkpoint.decoder_input_ids,
    )


def load_data(recipe: Recipe, checkpoint: Checkpoint, on_event: OnEvent) -> tuple[Slice, Slice | None]:
    """The slice that a recipe names, for the checkpoint's task, and the held-out one that follows, if any is asked for.

    Raises UsageError or UnavailableError, each one line.
    """
    data, positions = recipe.data, checkpoint.max_positions
    embedded, further = data.id == "demo", recipe.estimator.held_out or 0
    first = recipe.estimator.held_out_from or data.limit  # of those that are held out
    if further and first < data.limit:
        what = f"{first} is in the slice, which ends before {data.limit}"
        raise UsageError("estimator.held_out_from", what, f"give {data.limit} or more")
    found = load_slice(
        str(slice_file()) if embedded else data.id,
        model=requirements(checkpoint),
        name="demo" if embedded else None,
        config_name=data.config_name,
        split=data.split,
        column=data.column,
        target_column=data.target_column,
        mask_prompt=data.mask_prompt,
        revision=data.revision,
        limit=first + further if further else data.limit,
        max_length=data.max_length or min(_MAX_LENGTH, positions or _MAX_LENGTH),
        pack=data.pack is not False,
        seed=recipe.estimator.seed,
        offline=recipe.model.offline,
        on_event=on_event,
    )
    _check_as_they_stand(recipe, found)
    if not further:
        return found, None
    if len(found.sequences) <= first:
        what = f"no sequence follows the {len(found.sequences)} of the slice"
        if recipe.estimator.held_out_from is not None:
            what = f"there are {len(found.sequences)} sequences, and none at {first}"
            raise UsageError("estimator.held_out_from", what, "lower it, or leave --held-out out")
        raise UsageError("estimator.held_out", what, "lower --limit, or leave --held-out out")
    if len(found.sequences) < first + further:
        count = len(found.sequences) - first
        on_event(Noted(f"{count} of {further} held-out sequences: the data set has no more"))
    inside, outside = found.sequences[: data.limit], found.sequences[first:]
    return replace(found, sequences=inside), replace(found, sequences=outside)


def _check_as_they_stand(recipe: Recipe, found: Slice) -> None:
    """Raise UsageError where rows of token ids, which are neither cut nor packed, are asked to be."""
    data = recipe.data
    if found.column != "input_ids":
        return
    if data.pack:
        what = f"is on, and rows of input_ids are used as they stand (those of {found.id})"
        raise UsageError("pack", what, "leave it out, or name a column of text with --column")
    if data.max_length is not None and found.max_length > data.max_length:
        what = f"{data.max_length} is below the {found.max_length} tokens of a row of {found.id}"
        raise UsageError("max_length", what, "cut the rows: those of input_ids are used as they stand")


def rows_per_batch(recipe: Recipe, checkpoint: Checkpoint, data: Slice) -> int:
    """How many rows a batch has: as asked, else as many as make a batch worth its while.

    Raises UsageError where rows must stand alone and more than one is asked for.
    """
    asked = recipe.data.batch_size
    if checkpoint.one_row_a_batch:
        if asked not in ("auto", 1):
            what = f"{asked} rows cannot share a batch: the classifier finds no padding in them"
            raise UsageError("batch_size", what, "use 1, or set pad_token_id in the checkpoint's config.json")
        return 1
    longest = max(s.length for s in data.sequences)
    size = max(1, _POSITIONS_PER_BATCH // longest) if asked == "auto" else asked
    return min(size, len(data.sequences))


def full_rows(recipe: Recipe, *, max_positions: int | None, positions_per_image: int | None) -> tuple[int, int]:
    """(positions of a row, rows of a batch) where every row is full; of images, the patches of one.

    Raises UsageError where text would be cut to more positions than the model has.
    """
    data = recipe.data
    if positions_per_image is None and max_positions is not None and (data.max_length or 0) > max_positions:
        what = f"{data.max_length} is above the model's {max_positions} positions"
        raise UsageError("data.max_length", what, f"lower it to {max_positions}")
    length = positions_per_image or data.max_length or min(_MAX_LENGTH, max_positions or _MAX_LENGTH)
    size = max(1, _POSITIONS_PER_BATCH // length) if data.batch_size == "auto" else data.batch_size
    return length, min(size, data.limit)


def batches(data: Slice, batch_size: int, checkpoint: Checkpoint) -> Sequence[Batch]:
    """The slice in batches, with images in the model's own dtype."""
    dtype = checkpoint.model.dtype
    return [
        Batch(
            {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.inputs.items()},
            batch.targets,
            batch.first_row,
        )
        for batch in data.batches(batch_size)
    ]


def check_images(risk: EmpiricalRisk) -> None:
    """Raise UsageError where the model does not take images of this shape: one forward pass of one."""
    batch = risk.batches[0]
    shape = "x".join(str(n) for n in batch.inputs["pixel_values"].shape[1:])
    one = Batch({name: value[:1] for name, value in batch.inputs.items()}, batch.targets[:1])
    try:
        with torch.no_grad():
            risk.terms(one)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:  # each architecture has its own words for it
        what = f"the model does not take images of {shape}: {str(error).splitlines()[0][:120]}"
        raise UsageError("pixel_values", what, "give the shape that it was trained on") from error
