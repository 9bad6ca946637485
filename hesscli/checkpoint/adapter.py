"""Adapters of PEFT: a folder with adapter_config.json, which names the base model that the adapter was trained on.

The adapter's layers are put into the base model and not merged, so its own parameters have a curvature. The model
keeps its class, and its parameters keep their names but for `base_layer` in those that an adapter stands beside.
"""

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from hesscli.checkpoint.head import Brought, Shape, task_of
from hesscli.checkpoint.listing import ADAPTER_CONFIG, is_adapter, names_in, weights_entry
from hesscli.checkpoint.offload import Read, Reads
from hesscli.checkpoint.quiet import in_short, quiet
from hesscli.checkpoint.source import Reference, Source, parse
from hesscli.checkpoint.weights import Weights, check_weights, stored_tensors, unsound_pickle
from hesscli.errors import HessError, UnavailableError, UsageError

_NAME = "default"  # PEFT's own name for the one adapter of a model; it stands in its parameters' names
_WHOLE = ".modules_to_save."  # in the names of weights of a module that is trained and saved as a whole
_MERGE = "merge the adapter into its base model and give the merged folder"
_ANOTHER = "give an adapter with layers of its own, such as LoRA, or a whole model"
_NOT_DERIVED = "whose gradient is not the derivative of the loss"
_NOT_TWICE = "which cannot be derived twice"
# Without what that hands to each layer the loss is the base model's, or none.
_NOT_ALONE = "which acts only where PEFT's own wrapper tells it to"
_SHARED = "whose layers share a part that stands in none of them"
# Of these, told by a key of the config or by its peft_type, there is no Hessian to be had: why, and what to do.
_NO_HESSIAN = {
    "use_dora": ("DoRA", _NOT_DERIVED, _MERGE),  # leaves the norm of the weight out (Liu et al. 2024, 4.3)
    "velora_config": ("VeLoRA", _NOT_DERIVED, _MERGE),  # compresses what it keeps for the way back
    "OSF": ("OSF", _NOT_DERIVED, _MERGE),  # projects the gradient
    "SHIRA": ("SHiRA", _NOT_TWICE, _MERGE),  # adds a sparse tensor
    "C3A": ("C3A", _NOT_TWICE, _MERGE),  # keeps a copy of its input for the way back: a constant to a second one
    "alora_invocation_tokens": ("aLoRA", _NOT_ALONE, _ANOTHER),
    "arrow_config": ("Arrow", _NOT_ALONE, _ANOTHER),
    "POLY": ("Poly", _NOT_ALONE, _ANOTHER),
    "VERA": ("VeRA", _SHARED, _MERGE),
    "PVERA": ("PVeRA", _SHARED, _MERGE),
    "VBLORA": ("VB-LoRA", _SHARED, _MERGE),
    "TINYLORA": ("TinyLoRA", _SHARED, _MERGE),
    "UNILORA": ("UniLoRA", _SHARED, _MERGE),
    "XLORA": ("X-LoRA", _NOT_ALONE, _ANOTHER),
}
# Beginnings of LoRA that PEFT computes from the weight that they stand beside, when the adapter's layers are made.
_FROM_BASE = ("pissa", "corda", "olora", "mica", "loftq")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's files, checked; nothing is loaded yet."""

    id: str
    folder: Path
    weights: Weights
    base: str
    """The base model as the adapter names it: a hub id or a folder."""
    base_revision: str | None
    brought: Brought
    """What it brings beside its layers."""


def read_adapter(source: Source, *, allow_pickle: bool) -> Adapter | None:
    """The adapter in a folder, None where the folder holds a whole model.

    Raises:
        UnavailableError: its files cannot be used, PEFT is not installed, it was trained for a task that hess has not,
            or it is of a kind whose gradient is not the derivative of the loss.
    """
    names = names_in(source.folder, id=source.id)
    if not is_adapter(names):
        return None
    entry = weights_entry(names, id=source.id, allow_pickle=allow_pickle)
    base, revision = base_of(source.folder, id=source.id)
    weights = check_weights(source.folder / entry, id=source.id)
    brought = brought_by(source.folder, stored_shapes(weights, id=source.id), id=source.id)
    return Adapter(source.id, source.folder, weights, base, revision, brought)


def brought_by(folder: Path, shapes: Mapping[str, Shape] | None, *, id: str) -> Brought:
    """What an adapter in a folder brings beside its layers; of its stored weights the shapes, None if not known.

    Raises:
        UnavailableError: it was trained for a task that hess has not.
    """
    task = task_of(_read(folder / ADAPTER_CONFIG, id=id), id=id)
    if shapes is None:
        return Brought(id, task, None)
    return Brought(id, task, {_plain(name).replace(".base_layer.", "."): shape for name, shape in shapes.items()})


def saves_modules(folder: Path, *, id: str) -> bool:
    """Whether the config of an adapter in a folder says that it has modules that are trained and saved whole."""
    raw = _read(folder / ADAPTER_CONFIG, id=id)
    return bool(raw.get("modules_to_save")) or task_of(raw, id=id) is not None


def stored_shapes(weights: Weights, *, id: str) -> dict[str, Shape]:
    """The shapes of an adapter's weights by their names in its file.

    Raises:
        UnavailableError: they are a pickle that cannot be read.
    """
    (file,) = weights.files
    if weights.pickled:
        return {name: tuple(part.shape) for name, part in _pickled(file, id=id, device="meta").items()}
    return {name: shape for name, (_, shape, _) in stored_tensors(file).items()}


def base_of(folder: Path, *, id: str) -> tuple[str, str | None]:
    """The base model as the adapter in a folder names it, a hub id or a folder, and its revision.

    Raises:
        UnavailableError: its config cannot be used, PEFT is not installed, or it is of a kind whose gradient is not
            the derivative of the loss.
    """
    raw = _read(folder / ADAPTER_CONFIG, id=id)
    base = raw.get("base_model_name_or_path")
    if not isinstance(base, str) or not base.strip():
        what = f"{ADAPTER_CONFIG} of '{id}' names no base model"
        raise UnavailableError("model", what, "add base_model_name_or_path to it")
    said = {key for key, value in raw.items() if value} | {str(raw.get("peft_type")).upper()}
    for kind, why, remedy in (found for key, found in _NO_HESSIAN.items() if key in said):
        raise UnavailableError("model", f"'{id}' is an adapter of {kind}, {why}", remedy)
    if str(raw.get("init_lora_weights")).startswith("pissa_niter"):  # PEFT splits the base model anew at each loading
        what = f"'{id}' stands beside a random part of its base model, which cannot be made again"
        raise UnavailableError("model", what, "save it with path_initial_model_for_weight_conversion, or merge it")
    if importlib.util.find_spec("peft") is None:
        raise UnavailableError("model", f"'{id}' is an adapter, and peft is not installed", "pip install 'hess[peft]'")
    return base, raw.get("revision") or None


def find_base(base: str, revision: str | None, locate: Callable[[Reference], Source], *, id: str) -> Source:
    """The folder of the base model of the adapter `id`, found in the same way as a model that a user names.

    Raises:
        UnavailableError: it cannot be had, or is itself an adapter.
    """
    try:
        found = locate(parse(base, revision=revision))
    except HessError as error:
        what = f"the base model of '{id}' cannot be had: {error.what}"
        raise UnavailableError("model", what, f"{error.remedy}, or mend {ADAPTER_CONFIG}") from error
    if is_adapter(names_in(found.folder, id=found.id)):
        what = f"the base model of '{id}', '{found.id}', is an adapter too"
        raise UnavailableError("model", what, _MERGE)
    return found


@dataclass(frozen=True, slots=True)
class Attached:
    """What became of a model's parameters when an adapter was put into it."""

    trained: tuple[str, ...]
    """The names of the parameters that the adapter trains."""
    reads: Reads
    """How each weight that is not where the model computes is read, by the name that it has now."""


def attach(adapter: Adapter, model: PreTrainedModel, reads: Mapping[str, Read]) -> Attached:
    """Put the adapter's layers with their weights into the model.

    They take the type and the device of the weight that they stand beside, and stay in memory, a weight of the base
    model that the adapter trains too; `reads` says how other weights are read that are not there, by their names now.

    Raises:
        UnavailableError: it does not fit the model, weights are missing, or it is of a kind without layers of its own.
        UsageError: it is made from weights of the base model that are not in memory.
    """
    from peft import inject_adapter_in_model, set_peft_model_state_dict

    away = {id(p): (p, p.data_ptr(), reads[name]) for name, p in model.named_parameters() if name in reads}
    try:
        with quiet():
            config = _config(adapter.folder, id=adapter.id)
            _check_made_without_base(config, away, adapter)
            inject_adapter_in_model(config, model, _NAME)
            left = _left_alone(model, away, adapter)
            outcome = set_peft_model_state_dict(model, _weights(adapter), adapter_name=_NAME)
    except HessError:
        raise
    except Exception as error:  # each kind of adapter fails in its own way
        raise _unsuited(adapter.id, model, error) from error
    _drop_replaced(model)
    named = dict(model.named_parameters())
    trained = {name: p for name, p in named.items() if p.requires_grad}
    missing, unexpected = sorted(trained.keys() & set(outcome.missing_keys)), sorted(outcome.unexpected_keys)
    if missing or unexpected or not trained:
        first = f"no weight for {missing[0]}" if missing else f"no place for {unexpected[0]}" if unexpected else "none"
        what = f"the weights of the adapter '{adapter.id}' are not those that its config asks for ({first})"
        raise UnavailableError("weights", what, "check its base model, or save it again")
    return Attached(tuple(trained), {name: read for name, read in left.items() if name in named})


def attach_bare(folder: Path, model: PreTrainedModel, *, id: str) -> tuple[str, ...]:
    """Put an adapter's layers into a model on `meta`, without weights; the names of the parameters that it trains.

    Raises UnavailableError where it does not fit the model, or is of a kind without layers of its own.
    """
    try:
        with quiet():
            config = _config(folder, id=id)
            if str(getattr(config, "init_lora_weights", None)).lower().startswith(_FROM_BASE):
                config.init_lora_weights = True  # there is nothing to begin from, and the shapes are the same
            return attach_again(config, model)
    except HessError:
        raise
    except Exception as error:  # each kind of adapter fails in its own way
        raise _unsuited(id, model, error) from error


def attach_again(config: Any, model: PreTrainedModel) -> tuple[str, ...]:
    """Put the layers of an adapter with this config of PEFT into a model on `meta`; the names of what it trains.

    Raises what PEFT raises where it does not fit.
    """
    from peft import inject_adapter_in_model

    moving = [p for p in model.parameters() if p.requires_grad]
    with torch.device("meta"):
        inject_adapter_in_model(config, model, _NAME, low_cpu_mem_usage=True)
    _drop_replaced(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for p in trained.values():
        p.data = p.data.to(model.dtype)
    for p in moving:
        p.requires_grad_(True)
    return tuple(trained)


def _config(folder: Path, *, id: str) -> Any:
    """The adapter's config as PEFT has it, for training: what is trained is told apart by requires_grad."""
    from peft import PeftConfig
    from peft.utils.constants import SEQ_CLS_HEAD_NAMES

    config: Any = PeftConfig.from_pretrained(str(folder), local_files_only=True)
    if config.is_prompt_learning or config.is_adaption_prompt:
        kind = str(getattr(config.peft_type, "value", config.peft_type)).lower().replace("_", " ")
        what = f"'{id}' is an adapter for {kind}, whose parameters stand before the tokens and in no layer"
        raise UnavailableError("model", what, _ANOTHER)
    config.inference_mode = False
    if config.task_type == "SEQ_CLS":  # as PeftModelForSequenceClassification does, which old configs do not tell
        named = list(config.modules_to_save or ())
        config.modules_to_save = [*named, *(head for head in SEQ_CLS_HEAD_NAMES if head not in named)]
    return config


def _drop_replaced(model: PreTrainedModel) -> None:
    """Take out the modules in whose place copies are trained: PEFT keeps them to switch the adapter off."""
    from peft.utils import ModulesToSaveWrapper

    for module in list(model.modules()):
        if isinstance(module, ModulesToSaveWrapper):
            del module.original_module


def _unsuited(id: str, model: PreTrainedModel, error: Exception) -> UnavailableError:
    what = f"the adapter '{id}' does not go into {type(model).__name__}: {in_short(error)}"
    return UnavailableError("model", what, f"check its base model, or {_MERGE}")


_Away = Mapping[int, tuple[nn.Parameter, int, Read]]


def _check_made_without_base(config: Any, away: _Away, adapter: Adapter) -> None:
    start = str(getattr(config, "init_lora_weights", None)).lower()
    if away and (start.startswith(_FROM_BASE) or getattr(config, "kasa_config", None)):
        start = start if start.startswith(_FROM_BASE) else "kasa"
        raise _needs_base(adapter, f"which began as '{start}' from them")


def _left_alone(model: PreTrainedModel, away: _Away, adapter: Adapter) -> Reads:
    """How the weights are read that are still away, by their names now.

    Those that the adapter trains, biases as a rule, get memory, into which it is loaded.
    """
    found: Reads = {}
    named = {name: p for name, p in model.named_parameters() if id(p) in away}
    for name, p in named.items():
        _, stand_in, read = away[id(p)]
        if p.data_ptr() != stand_in:
            raise _needs_base(adapter, f"of which it changes {name}")
        if p.requires_grad:
            p.data = torch.full_like(p, torch.nan, memory_format=torch.contiguous_format)
        else:
            found[name] = read
    if len(named) < len(away):
        raise _needs_base(adapter, "some of which it replaces")
    return found


def _needs_base(adapter: Adapter, why: str) -> UsageError:
    what = f"'{adapter.id}' needs its base model's weights in memory, {why}"
    return UsageError("device_map", what, f"map every part to a device, or {_MERGE}")


def _weights(adapter: Adapter) -> dict[str, torch.Tensor]:
    """By the names that they have in a model without PEFT's own wrapper around it."""
    (file,) = adapter.weights.files
    found = _pickled(file, id=adapter.id, device="cpu") if adapter.weights.pickled else load_file(file)
    # With embeddings of another size PEFT saves a module that is saved whole by two names.
    names = sorted(found, key=lambda name: _WHOLE not in name)
    return {_plain(name): found[name] for name in names}


def _plain(name: str) -> str:
    """A weight's name without PEFT's wrapper around the model, and without that of a module that is saved whole."""
    return name.removeprefix("base_model.model.").replace(f"{_WHOLE}{_NAME}.", ".").replace(_WHOLE, ".")


def _pickled(file: Path, *, id: str, device: str) -> dict[str, torch.Tensor]:
    try:
        found: dict[str, torch.Tensor] = torch.load(file, map_location=device, weights_only=True)
    except Exception as error:  # a pickle fails in many ways
        which = f"{file.name} of '{id}'"
        raise unsound_pickle(which) from error
    return found


def _read(file: Path, *, id: str) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = f"{ADAPTER_CONFIG} of '{id}' cannot be read ({in_short(error)})"
        raise UnavailableError("model", what, "fetch or save it again") from error
    if not isinstance(raw, dict):
        raise UnavailableError("model", f"{ADAPTER_CONFIG} of '{id}' is not a JSON object", "fetch or save it again")
    return raw
