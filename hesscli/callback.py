"""Curvature during training: a callback of `transformers.Trainer` that measures a fixed slice every so many steps."""

import json
import random
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hesscli.checkpoint.quiet import quiet
from hesscli.errors import HessError, UsageError
from hesscli.events import ignore
from hesscli.recipe import Recipe
from hesscli.recipe.document import resolve
from hesscli.report import schema
from hesscli.run.environment import arithmetic_restored
from hesscli.run.session import run

_READ = ("input_ids", "attention_mask", "labels", "label", "token_type_ids")  # columns that are used as they stand


class HessianCallback(TrainerCallback):
    """Measures the curvature of a fixed slice each `every` steps, and logs it through the trainer, to every tracker.

    The weights of the step are written to a temporary folder and measured as `hess PROBE` measures a checkpoint: the
    figures are those that it gives for the checkpoint of that step, and the training run is not touched; its weights,
    gradients, optimiser, random state and modes stay as they are bit for bit. A measurement costs a copy of the
    weights, on disk and in memory, beside what the probe holds. Between measurements the callback does nothing.

    Logged are `hess/NAME`, with the ends of its interval as `hess/NAME_low` and `hess/NAME_high`, for each metric that
    has a value, and `hess/trustworthy`, 0 where the report says that it is not. Reports and figures of each step lie in
    run folders below `output_dir`, so that `hess compare` and `hess plot` read them.

        trainer = Trainer(..., callbacks=[HessianCallback(every=500, probe="topk", recipe={"estimator.k": 1})])
    """

    def __init__(
        self,
        *,
        every: int,
        probe: str = "topk",
        dataset: str | Sequence[Mapping[str, Any]] | Iterable[Mapping[str, Any]] | None = None,
        recipe: Mapping[str, Any] | None = None,
        output_dir: str | None = None,
        at_start: bool = False,
        at_end: bool = False,
        on_error: Literal["warn", "raise"] = "warn",
    ) -> None:
        """Check what is asked for.

        `dataset`: rows with `input_ids` (and `labels`, `attention_mask`), or what `hess --dataset` takes; left out,
        the first rows of the trainer's training set. `recipe`: keys of a recipe by dotted path, such as
        `{"data.limit": 16, "estimator.steps": 40}`. `output_dir`: left out, `hess` in the trainer's own.

        Raises UsageError, all faults at once, before training starts.
        """
        if every < 1:
            raise UsageError("every", f"{every} is not a number of steps", "give at least 1")
        if on_error not in ("warn", "raise"):
            raise UsageError("on_error", f"{on_error!r} is not allowed", "use warn or raise")
        self._every, self._at_start, self._at_end, self._on_error = every, at_start, at_end, on_error
        self._values = {"probe": probe, **(recipe or {})}
        self._dataset, self._output_dir = dataset, output_dir
        for key in ("model.id", "output.dir", "data.id"):
            if key in self._values:
                raise UsageError("recipe", f"{key} is the callback's own", "use output_dir and dataset")
        self._limit = self._recipe(model=".", data=".", output=".").data.limit
        self._rows: list[dict[str, Any]] | None = None
        self._measured_at = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the slice; refuse a training run in several processes."""
        if args.world_size > 1:
            what = f"training runs in {args.world_size} processes"
            raise UsageError("HessianCallback", what, "save checkpoints and measure them with hess sweep")
        if not isinstance(self._dataset, str):
            rows = self._dataset if self._dataset is not None else _trainer().train_dataset
            self._rows = [_plain(row) for row in islice(iter(rows or ()), self._limit)]
            if not self._rows or "input_ids" not in self._rows[0]:
                raise UsageError(
                    "dataset", "its rows have no input_ids", "give tokenised rows, or the name of a data set"
                )
        if self._at_start:
            self._measure(args, state, control, **kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure where the step is one of those."""
        if state.global_step % self._every == 0:
            self._measure(args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the last step, where that is asked for and not done."""
        if self._at_end and state.global_step != self._measured_at:
            self._measure(args, state, control, **kwargs)

    def _measure(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: Any,
        processing_class: Any = None,
        **_: Any,
    ) -> None:
        self._measured_at = state.global_step
        output = self._output_dir or str(Path(str(args.output_dir)) / "hess")
        name = f"{Path(str(args.output_dir)).name or 'model'}-step{state.global_step}"
        try:
            with _untouched(), tempfile.TemporaryDirectory() as folder:
                weights, slice_ = Path(folder) / name, Path(folder) / "slice.jsonl"
                with quiet():
                    getattr(model, "_orig_mod", model).save_pretrained(weights)
                if processing_class is not None:
                    processing_class.save_pretrained(weights)
                if self._rows is not None:
                    slice_.write_text("".join(json.dumps(row) + "\n" for row in self._rows), encoding="utf-8")
                recipe = self._recipe(model=str(weights), data=str(slice_), output=output)
                report = run(recipe, force=False, resume=False, on_event=ignore).report
        except HessError as error:
            if self._on_error == "raise":
                raise
            warnings.warn(f"hess: step {state.global_step}: {error}", stacklevel=2)
            return
        # Logging clears this flag, and with it the loss that is due at the same step.
        due = control.should_log
        _trainer().log(logged(report))
        control.should_log = due

    def _recipe(self, *, model: str, data: str, output: str) -> Recipe:
        named = self._dataset if isinstance(self._dataset, str) else data
        own = {"model.id": model, "output.dir": output, "data.id": named}
        return resolve([("callback", self._values | own)])[0]


def logged(report: schema.Report) -> dict[str, float]:
    """What goes to the trackers: numbers only."""
    out = {"hess/trustworthy": float(report.status != "untrustworthy")}
    for name, metric in report.metrics.items():
        if metric.value is not None:
            out[f"hess/{name}"] = metric.value
        if metric.value is not None and metric.ci is not None:
            out[f"hess/{name}_low"], out[f"hess/{name}_high"] = metric.ci
    return out


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in row.items() if key in _READ}


def _trainer() -> Trainer:
    """The trainer that is calling: callbacks are not given it, and only its `log` reaches every tracker."""
    frame = sys._getframe(1)
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, Trainer):
            return found
        frame = frame.f_back  # type: ignore[assignment]
    raise UsageError("HessianCallback", "no Trainer is calling it", "give it to a transformers.Trainer")


@contextmanager
def _untouched() -> Iterator[None]:
    """Random states and the switches of arithmetic are as they were afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count()))
    try:
        with torch.random.fork_rng(devices=devices), arithmetic_restored():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
