"""A model without weights: its config, and its modules on the `meta` device, which take no memory."""

import copy
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hesscli.checkpoint import hub
from hesscli.checkpoint.adapter import (
    attach_again,
    attach_bare,
    base_of,
    brought_by,
    find_base,
    saves_modules,
    stored_shapes,
)
from hesscli.checkpoint.architecture import read_architecture
from hesscli.checkpoint.head import Brought
from hesscli.checkpoint.listing import CONFIG, is_adapter, names_in, weights_entry
from hesscli.checkpoint.quiet import in_short, quiet
from hesscli.checkpoint.source import DEMO, Reference, Source, parse
from hesscli.checkpoint.tasks import Task
from hesscli.checkpoint.weights import check_weights
from hesscli.demo import checkpoint_folder
from hesscli.errors import UnavailableError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
# What configs call the number of experts of a layer, and how many of them a token goes through.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")


@dataclass(frozen=True, slots=True)
class BareModel:
    """A model's modules on `meta`, in eval mode, and what its config says of experts and positions."""

    id: str
    model: PreTrainedModel
    task: str
    dtype: str
    num_experts: int
    """1 where there is no mixture."""
    experts_per_token: int
    max_positions: int | None
    stored_elements: int | None
    """Numbers in the safetensors files, by their headers; None where there are none, or pickles."""
    adapter_parameters: tuple[str, ...] = ()
    """The names of what an adapter trains, none for a whole model."""

    @property
    def num_parameters(self) -> int:
        """Tied parameters count once."""
        return sum(p.numel() for p in self.model.parameters())


def bare_model(
    model: str,
    *,
    revision: str | None,
    task: str,
    dtype: str,
    attention: str,
    trust_remote_code: bool,
    allow_pickle: bool,
    offline: bool,
) -> BareModel:
    """The model that `model` names, a config file, a folder, a hub id or `demo`, without its weights.

    Takes no memory and less than a second. Of a hub id the config alone is fetched; of a folder the headers of the
    weight files are read, and of an adapter on the hub that saves modules whole.

    An adapter's layers are put into the base model that it names, of which the same is true.

    Raises:
        UsageError: the checkpoint is for another task, or for one that hess does not know.
        UnavailableError: the config cannot be had, or its architecture is not known.
    """
    file = Path(model).expanduser()
    elements, adapter = None, None
    if file.is_file() and file.suffix == ".json":
        name = file.stem
        with tempfile.TemporaryDirectory() as folder:  # transformers reads a config by its one name
            shutil.copyfile(file, Path(folder) / CONFIG)
            config, found = read_architecture(Path(folder), id=name, task=task, trust_remote_code=trust_remote_code)
    else:
        reference = parse(model, revision=revision)
        name, where, elements, adapter = _located(reference, allow_pickle=allow_pickle, offline=offline)
        brought = None
        if adapter is not None:
            brought = _brought(adapter, reference, id=name, allow_pickle=allow_pickle, offline=offline)
        config, found = read_architecture(
            where, id=name, task=task, trust_remote_code=trust_remote_code, brought=brought
        )
    width = _dtype(config, dtype)
    net = _built(config, found, width, attention, id=name, trust_remote_code=trust_remote_code)
    trained = () if adapter is None else attach_bare(adapter, net, id=name)
    text = config.get_text_config(decoder=True)
    experts = _first(text, _EXPERTS)
    positions = getattr(text, "max_position_embeddings", None)
    return BareModel(
        name,
        net,
        found.name,
        str(width).removeprefix("torch."),
        experts,
        min(experts, _first(text, _CHOSEN)),
        positions if isinstance(positions, int) and positions > 0 else None,
        elements,
        trained,
    )


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """The same model without weights, with its adapter's layers: of its class, config and dtypes, on `meta`.

    Raises UnavailableError where its class cannot be built from its config.
    """
    try:
        with torch.device("meta"), quiet():
            bare: Any = type(model)(copy.deepcopy(model.config)).to(model.dtype)
            for adapter in (getattr(model, "peft_config", None) or {}).values():
                attach_again(copy.deepcopy(adapter), bare)
    except Exception as error:  # any of 400 architectures, or the checkpoint's own code
        what = f"{type(model).__name__} cannot be built without weights: {in_short(error)}"
        raise UnavailableError("model", what, "give a checkpoint that transformers builds from its config") from error
    built: PreTrainedModel = bare.eval()
    return built


def experts_of(model: PreTrainedModel) -> int:
    """The number of experts of a layer, 1 where there is no mixture."""
    return _first(model.config.get_text_config(decoder=True), _EXPERTS)


def _located(reference: Reference, *, allow_pickle: bool, offline: bool) -> tuple[str, Path, int | None, Path | None]:
    """The name, where the config lies, the numbers in the weight files beside it, and an adapter's folder if it is one.

    Of an adapter the config is its base model's, and the numbers are those of both.
    """
    counts: list[int | None] = []

    def place(reference: Reference) -> Source:
        if reference.folder is None and reference.name != DEMO:
            where = hub.fetch_config(reference.name, revision=reference.revision, offline=offline)
            counts.append(None)
            return Source(reference.name, reference.revision, None, where)
        name = reference.name if reference.folder is None else reference.folder.resolve().name
        source = Source(name, reference.revision, None, reference.folder or checkpoint_folder(reference.revision))
        counts.append(_stored(source, allow_pickle=allow_pickle))
        return source

    here = base = place(reference)
    adapter = is_adapter(names_in(here.folder, id=here.id))
    if adapter:
        base = find_base(*base_of(here.folder, id=here.id), place, id=here.id)
    known = [count for count in counts if count is not None]
    elements = sum(known) if len(known) == len(counts) else None
    return here.id, base.folder, elements, here.folder if adapter else None


def _brought(folder: Path, reference: Reference, *, id: str, allow_pickle: bool, offline: bool) -> Brought:
    names, shapes = names_in(folder, id=id), None
    if any(name.startswith("adapter_model.") for name in names):
        entry = weights_entry(names, id=id, allow_pickle=allow_pickle)
        shapes = stored_shapes(check_weights(folder / entry, id=id), id=id)
    elif reference.folder is None and saves_modules(folder, id=id):
        shapes = hub.fetch_shapes(id, "adapter_model.safetensors", commit=folder.name, offline=offline)
    return brought_by(folder, shapes, id=id)


def _stored(source: Source, *, allow_pickle: bool) -> int | None:
    names = names_in(source.folder, id=source.id)
    if not any(name.endswith((".safetensors", ".bin", ".index.json")) for name in names):
        return None  # a folder with a config alone
    entry = weights_entry(names, id=source.id, allow_pickle=allow_pickle)
    return check_weights(source.folder / entry, id=source.id).elements


def _dtype(config: PreTrainedConfig, asked: str) -> torch.dtype:
    if asked != "auto":
        return _DTYPES[asked]
    stored = getattr(config, "dtype", None)
    return stored if isinstance(stored, torch.dtype) else torch.float32


def _built(
    config: PreTrainedConfig, task: Task, dtype: torch.dtype, attention: str, *, id: str, trust_remote_code: bool
) -> PreTrainedModel:
    own = {"trust_remote_code": True} if trust_remote_code else {}
    try:
        with torch.device("meta"), quiet():
            net: Any = task.loader.from_config(
                config,
                dtype=dtype,
                attn_implementation="eager" if attention == "auto" else attention,
                experts_implementation="eager",
                **own,
            )
    except Exception as error:  # any of 400 architectures, or the checkpoint's own code
        what = f"'{id}' cannot be built without weights: {in_short(error)}"
        raise UnavailableError("model", what, "check the config, or try another version of transformers") from error
    net.config.use_cache = False
    built: PreTrainedModel = net.eval()
    return built


def _first(config: PreTrainedConfig, names: tuple[str, ...]) -> int:
    found = (getattr(config, name, None) for name in names)
    return next((n for n in found if isinstance(n, int) and n > 1), 1)
