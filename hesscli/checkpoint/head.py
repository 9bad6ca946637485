"""What an adapter of PEFT brings in full: a head for its own task, or embeddings for tokens of its own.

Such weights the base model may lack, or have in another shape: it is built as the adapter needs it, and what the files
of the base model do not fill is NaN until the adapter's weights are in its place.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hesscli.checkpoint.quiet import in_short, quiet
from hesscli.checkpoint.tasks import TASKS, Task, check_exists, check_softmax, find_task
from hesscli.errors import UnavailableError, UsageError

Shape = tuple[int, ...]
# What the adapter's config says that it was trained for: a task by PEFT's name, or where there is none, a class.
_TASKS = {
    "SEQ_CLS": "sequence-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
}
_ENDINGS = {
    "ForSequenceClassification": "sequence-classification",
    "ForImageClassification": "image-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
}
# Numbers of classes and of tokens that no model has: a weight with such a side has it from them.
_CLASSES, _TOKENS = 7919, 104_729


@dataclass(frozen=True, slots=True)
class Brought:
    """What an adapter brings beside its layers."""

    id: str
    task: str | None
    """What it was trained for where that has a head of classes, else None: its base model's task is its own."""
    shapes: Mapping[str, Shape] | None
    """Of the weights that are none of its layers', by their names in a base model; None where they cannot be seen."""


def task_of(raw: Mapping[str, Any], *, id: str) -> str | None:
    """The task whose head an adapter with this config was trained with, None where it is its base model's.

    Raises UnavailableError where hess has no such task.
    """
    mapping = raw.get("auto_mapping")
    trained = str(mapping.get("base_model_class")) if isinstance(mapping, dict) else ""
    by_class = next((task for end, task in _ENDINGS.items() if trained.endswith(end)), None)
    found = _TASKS.get(str(raw["task_type"])) if raw.get("task_type") else by_class
    if found is not None and found not in TASKS:
        raise UnavailableError("model", f"'{id}' was trained for {found}", f"hess measures {', '.join(TASKS)}")
    return found


def fit_config(
    config: PreTrainedConfig, raw: dict[str, Any], brought: Brought, *, asked: str, id: str, code: bool
) -> Task:
    """The task of the base model `id` with what an adapter brings; the config has its numbers of classes and tokens.

    `code` says whether the checkpoint's own code may run. Costs a model on `meta`, two where the numbers are others.

    Raises:
        UsageError: another task than the adapter's was asked for, or one of no single softmax.
        UnavailableError: the weights that tell these numbers cannot be seen, or the model cannot be built.
    """
    if brought.task is None:
        task = find_task(config, raw, asked=asked, id=id)
        _count(config, task, brought, code=code)
        return task
    if asked not in ("auto", brought.task):
        raise UsageError("task", f"'{brought.id}' was trained for {brought.task}, not {asked}", "leave --task out")
    if brought.shapes is None:
        what = f"how many classes '{brought.id}' tells apart stands in its weights, which are not here"
        raise UnavailableError("weights", what, "fetch it, and give its folder")
    task = TASKS[brought.task]
    check_exists(task, config, raw, id=id)
    _count(config, task, brought, code=code)
    check_softmax(task, config, id=brought.id)
    return task


def _count(config: PreTrainedConfig, task: Task, brought: Brought, *, code: bool) -> None:
    """Set the numbers of classes and of tokens to those of the weights that are brought, where these differ."""
    if not brought.shapes or not (task.class_names(config) or code):
        return
    stored, built = brought.shapes, _shapes(config, task, id=brought.id, code=code)
    differing = [name for name, shape in stored.items() if built.get(name, shape) != shape]
    if not differing:
        return
    probe = copy.deepcopy(config)
    probe.num_labels, _with_tokens(probe).vocab_size = _CLASSES, _TOKENS
    built = _shapes(probe, task, id=brought.id, code=code)
    for name in differing:
        for told, side in zip(built[name], stored[name], strict=False):
            if told == _CLASSES:
                config.num_labels = side
            elif told == _TOKENS:
                _with_tokens(config).vocab_size = side


def _with_tokens(config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a config that says how many tokens there are; of an encoder-decoder its decoder's is a copy."""
    return config if hasattr(config, "vocab_size") else config.get_text_config(decoder=True)


def _shapes(config: PreTrainedConfig, task: Task, *, id: str, code: bool) -> dict[str, Shape]:
    try:
        with torch.device("meta"), quiet():
            bare = task.loader.from_config(copy.deepcopy(config), trust_remote_code=code)
    except Exception as error:  # any of 400 architectures, or the checkpoint's own code
        what = f"the base model of '{id}' cannot be built for {task.name}: {in_short(error)}"
        raise UnavailableError("model", what, "check the config of its base model") from error
    return {name: tuple(p.shape) for name, p in bare.named_parameters(remove_duplicate=False)}


def excuse(model: PreTrainedModel, info: dict[str, Any], brought: Brought, *, base: str) -> dict[str, nn.Parameter]:
    """What of the model its files did not fill and the adapter brings, by name, NaN now; `info` no longer tells of it.

    `info` is what `from_pretrained` says of missing, mismatched and unexpected weights.

    Raises:
        UnavailableError: what the adapter brings is of another shape, or does not hold all that the files lack.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    shapes = brought.shapes or {}
    for name, shape in shapes.items():
        if name in named and tuple(named[name].shape) != shape:
            wanted = tuple(named[name].shape)
            what = f"{name} is {shape} in the adapter '{brought.id}' and {wanted} in its base model '{base}'"
            raise UnavailableError("weights", what, "give the base model that it was trained on")
    lacking = {*info["missing_keys"], *(key for key, _, _ in info["mismatched_keys"])}
    given = {name: named[name] for name in sorted(lacking & shapes.keys() & named.keys())}
    if (given or brought.task) and (left := sorted(lacking - shapes.keys())):
        raise _not_brought(brought, left, base=base)
    for p in given.values():
        p.data.fill_(torch.nan)
    info["missing_keys"] = [key for key in info["missing_keys"] if key not in given]
    info["mismatched_keys"] = [key for key in info["mismatched_keys"] if key[0] not in given]
    if brought.task:  # the head that the base model has, which its adapter's trainer left out too
        body = f"{model.base_model_prefix}."
        info["unexpected_keys"] = [key for key in info["unexpected_keys"] if key.startswith(body)]
    return given


def check_given(model: PreTrainedModel, given: Mapping[str, nn.Parameter], brought: Brought, *, base: str) -> None:
    """Raise UnavailableError where a weight that `excuse` let pass is still in the model and was not given."""
    held = {id(p) for p in model.parameters()}
    left = [name for name, p in given.items() if id(p) in held and bool(p.isnan().any())]
    if left:
        raise _not_brought(brought, left, base=base)


def _not_brought(brought: Brought, names: Sequence[str], *, base: str) -> UnavailableError:
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    what = f"'{brought.id}' does not bring {names[0]}{others}, and its base model '{base}' has none that fits"
    return UnavailableError(
        "weights", f"{what}: random ones would stand there", "give the base model that it was trained on"
    )
