"""The tasks that hess measures: which of them a checkpoint has the head of, and the class that loads it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)
from transformers.models.auto import modeling_auto

from hesscli.errors import UsageError


@dataclass(frozen=True, slots=True)
class Task:
    """A head with a softmax over classes, and how transformers loads it."""

    name: str
    loader: Any
    """The auto class."""
    classes: Mapping[Any, Any]
    """The class, or the several, for each type of config."""
    reads: str
    """The first argument of the model's forward."""

    def class_names(self, config: PreTrainedConfig) -> tuple[str, ...]:
        """The classes that serve this task for a config, none where transformers has none."""
        found = self.classes.get(type(config), ())
        return tuple(c.__name__ for c in (found if isinstance(found, tuple) else (found,)))


TASKS = {
    task.name: task
    for task in (
        Task("causal-lm", AutoModelForCausalLM, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING, "input_ids"),
        Task("masked-lm", AutoModelForMaskedLM, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING, "input_ids"),
        Task("seq2seq-lm", AutoModelForSeq2SeqLM, modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, "input_ids"),
        Task(
            "sequence-classification",
            AutoModelForSequenceClassification,
            modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
            "input_ids",
        ),
        Task(
            "image-classification",
            AutoModelForImageClassification,
            modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
            "pixel_values",
        ),
    )
}
# Endings of names in `architectures` that transformers' own tables do not hold: older names, and code of its own.
_ENDINGS = {
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForMaskedLM": "masked-lm",
    "ForPreTraining": "masked-lm",
    "ForSeq2SeqLM": "seq2seq-lm",
    "ForSequenceClassification": "sequence-classification",
    "ForImageClassification": "image-classification",
}
_MEASURED = f"hess measures {', '.join(TASKS)}"


def find_task(config: PreTrainedConfig, raw: dict[str, Any], *, asked: str, id: str) -> Task:
    """The task whose head the checkpoint has, by the names in `architectures`; `asked` is `auto` or a task.

    Without a name that tells, it is seq2seq-lm for an encoder-decoder and else causal-lm, where only one is possible.

    Raises:
        UsageError: a head that hess does not know, another head than was asked for, or one of no single softmax.
    """
    names = [str(name) for name in raw.get("architectures") or ()]
    heads = [(name, task) for name in names for task in _heads(name, config, raw, id)]
    found = list(dict.fromkeys(task for _, task in heads))
    if asked != "auto" and found and asked not in found:
        name, head = heads[0]
        what = f"'{id}' has the head of {head} ({name}): for {asked} it would get a new one of random numbers"
        raise UsageError("task", what, f"leave --task out, or give a checkpoint trained for {asked}")
    if asked == "auto" and len(found) != 1:
        found = found or _possible(config)
        if len(found) > 1:
            what = f"'{id}' ({', '.join(names) or 'no architecture named'}) may be for {' or '.join(found)}"
            raise UsageError("task", what, f"say --task {found[0]}, or another that it was trained for")
    task = TASKS[found[0] if asked == "auto" else asked]
    check_exists(task, config, raw, id=id)
    _check_causal(task, config, names, id=id)
    check_softmax(task, config, id=id)
    return task


def _heads(name: str, config: PreTrainedConfig, raw: dict[str, Any], id: str) -> list[str]:
    """The tasks that a class name stands for: none for a bare model, two where one class serves both."""
    exact = [task.name for task in TASKS.values() if name in task.class_names(config)]
    if exact:
        # BART is in the table of masked-lm as well: its decoder would be given the answer's own shift.
        return [t for t in exact if not (t == "masked-lm" and "seq2seq-lm" in exact)]
    code = raw.get("auto_map") or {}
    if own := [task.name for task in TASKS.values() if str(code.get(task.loader.__name__)).endswith(f".{name}")]:
        return own
    if ending := next((task for end, task in _ENDINGS.items() if name.endswith(end)), None):
        # T5WithLMHeadModel, as T5 was called when its checkpoints were made.
        return ["seq2seq-lm" if name.endswith("LMHeadModel") and config.is_encoder_decoder else ending]
    other = re.search(r"For([A-Z]\w+)$", name)
    # Models of text and images: transformers may have a causal language model of their text part.
    if other is None or other[1] == "ConditionalGeneration":
        return []
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", other[1]).lower()
    raise UsageError("model", f"'{id}' is a {words} checkpoint ({name})", _MEASURED)


def _possible(config: PreTrainedConfig) -> list[str]:
    """What a checkpoint without a named head may be."""
    if config.is_encoder_decoder:
        return ["seq2seq-lm"]
    if found := [name for name in ("causal-lm", "masked-lm") if TASKS[name].class_names(config)]:
        return found
    return [task.name for task in TASKS.values() if task.class_names(config)] or ["causal-lm"]


def check_exists(task: Task, config: PreTrainedConfig, raw: dict[str, Any], *, id: str) -> None:
    """Raise UsageError where transformers has no model of this task for the config, or one that reads other inputs."""
    classes = task.class_names(config)
    if not classes and task.loader.__name__ not in (raw.get("auto_map") or {}):
        what = f"transformers {transformers.__version__} has no {task.name} model for '{raw.get('model_type')}'"
        raise UsageError("model", f"{what}, the architecture of '{id}'", _MEASURED)
    if classes and task.name == "seq2seq-lm" and not config.is_encoder_decoder:
        raise UsageError("model", f"'{id}' ({', '.join(classes)}) is no encoder-decoder of text", _MEASURED)
    for name in classes:
        reads = getattr(getattr(transformers, name, None), "main_input_name", task.reads)
        if reads != task.reads:
            what = f"'{id}' ({name}) reads {reads}, not {task.reads}"
            raise UsageError("model", what, _MEASURED)


def _check_causal(task: Task, config: PreTrainedConfig, names: list[str], *, id: str) -> None:
    """Encoders have causal heads too, whose attention is causal only where the config says that it is a decoder."""
    permuted = getattr(config, "attn_type", None) == "bi"  # XLNet
    if task.name != "causal-lm" or not (permuted or TASKS["masked-lm"].class_names(config)):
        return
    # BART's decoder sets its flag by itself when it is loaded.
    causal = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    if not causal and not getattr(config, "decoder_layers", 0):
        what = f"'{id}' ({', '.join(names) or 'no architecture named'}) sees the token that it should predict"
        raise UsageError("model", f"{what}: its attention is not causal", "give --task masked-lm, or a decoder")


def check_softmax(task: Task, config: PreTrainedConfig, *, id: str) -> None:
    """Raise UsageError where the config says that the classes of a classifier are not one softmax."""
    if not task.name.endswith("classification"):
        return
    kind = getattr(config, "problem_type", None)
    if config.num_labels < 2 or kind in ("regression", "multi_label_classification"):
        said = f"problem_type {kind}" if kind else f"num_labels {config.num_labels}"
        what = f"'{id}' is no classifier of one label a row ({said}), and the loss is a softmax cross-entropy"
        raise UsageError("model", what, "give a classifier with one label a row")
