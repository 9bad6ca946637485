"""Adapters of PEFT: a folder with adapter_config.json, which names the base model that the adapter was trained on.

The adapter's layers are put into the base model and not merged, so its own parameters have a curvature. The model
keeps its class, and its parameters keep their names but for `base_layer` in those that an adapter stands beside.
"""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from hesscli.checkpoint.listing import ADAPTER_CONFIG, is_adapter, names_in, weights_entry
from hesscli.checkpoint.quiet import in_short, quiet
from hesscli.checkpoint.source import Reference, Source, parse
from hesscli.checkpoint.weights import Weights, check_weights
from hesscli.errors import HessError, UnavailableError

_NAME = "default"  # PEFT's own name for the one adapter of a model; it stands in its parameters' names
_MERGE = "merge the adapter into its base model and give the merged folder"


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's files, checked; nothing is loaded yet."""

    id: str
    folder: Path
    weights: Weights
    base: str
    """The base model as the adapter names it: a hub id or a folder."""
    base_revision: str | None


def read_adapter(source: Source, *, allow_pickle: bool) -> Adapter | None:
    """The adapter in a folder, None where the folder holds a whole model.

    Raises:
        UnavailableError: its files cannot be used, PEFT is not installed, or it is of a kind whose gradient is not
            the derivative of the loss.
    """
    names = names_in(source.folder, id=source.id)
    if not is_adapter(names):
        return None
    entry = weights_entry(names, id=source.id, allow_pickle=allow_pickle)
    raw = _read(source.folder / ADAPTER_CONFIG, id=source.id)
    base = raw.get("base_model_name_or_path")
    if not isinstance(base, str) or not base.strip():
        what = f"{ADAPTER_CONFIG} of '{source.id}' names no base model"
        raise UnavailableError("model", what, "add base_model_name_or_path to it")
    # Its forward leaves the norm of the weight out of the gradient (PEFT's lora/dora.py, after Liu et al. 2024, 4.3).
    if raw.get("use_dora"):
        what = f"'{source.id}' is a DoRA adapter, whose gradient is not the derivative of the loss"
        raise UnavailableError("model", what, _MERGE)
    if importlib.util.find_spec("peft") is None:
        what = f"'{source.id}' is an adapter, and peft is not installed"
        raise UnavailableError("model", what, "pip install 'hess[peft]'")
    weights = check_weights(source.folder / entry, id=source.id)
    return Adapter(source.id, source.folder, weights, base, raw.get("revision") or None)


def find_base(adapter: Adapter, locate: Callable[[Reference], Source]) -> Source:
    """The folder of the base model, found in the same way as a model that a user names.

    Raises:
        UnavailableError: it cannot be had, or is itself an adapter.
    """
    try:
        base = locate(parse(adapter.base, revision=adapter.base_revision))
    except HessError as error:
        what = f"the base model of '{adapter.id}' cannot be had: {error.what}"
        raise UnavailableError("model", what, f"{error.remedy}, or mend {ADAPTER_CONFIG}") from error
    if is_adapter(names_in(base.folder, id=base.id)):
        what = f"the base model of '{adapter.id}', '{base.id}', is an adapter too"
        raise UnavailableError("model", what, _MERGE)
    return base


def attach(adapter: Adapter, model: PreTrainedModel) -> tuple[str, ...]:
    """Put the adapter's layers with their weights into the model; the names of the parameters that it trains.

    They take the type and the device of the weight that they stand beside.

    Raises:
        UnavailableError: it does not fit the model, weights are missing, or it is of a kind without layers of its own.
    """
    from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict

    try:
        with quiet():
            config: Any = PeftConfig.from_pretrained(str(adapter.folder), local_files_only=True)
            config.inference_mode = False  # what is trained is told apart by requires_grad
            inject_adapter_in_model(config, model, _NAME)
            outcome = set_peft_model_state_dict(model, _weights(adapter), adapter_name=_NAME)
    except Exception as error:  # each kind of adapter fails in its own way
        what = f"the adapter '{adapter.id}' does not go into {type(model).__name__}: {in_short(error)}"
        raise UnavailableError("model", what, f"check its base model, or {_MERGE}") from error
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    missing, unexpected = sorted(trained.keys() & set(outcome.missing_keys)), sorted(outcome.unexpected_keys)
    if missing or unexpected or not trained:
        first = f"no weight for {missing[0]}" if missing else f"no place for {unexpected[0]}" if unexpected else "none"
        what = f"the weights of the adapter '{adapter.id}' are not those that its config asks for ({first})"
        raise UnavailableError("weights", what, "check its base model, or save it again")
    return tuple(trained)


def _weights(adapter: Adapter) -> dict[str, torch.Tensor]:
    (file,) = adapter.weights.files
    if adapter.weights.pickled:
        found: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        return found
    return load_file(file)


def _read(file: Path, *, id: str) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = f"{ADAPTER_CONFIG} of '{id}' cannot be read ({in_short(error)})"
        raise UnavailableError("model", what, "fetch or save it again") from error
    if not isinstance(raw, dict):
        raise UnavailableError("model", f"{ADAPTER_CONFIG} of '{id}' is not a JSON object", "fetch or save it again")
    return raw
