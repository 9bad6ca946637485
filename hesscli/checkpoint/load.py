"""Loading: find, check, place, read, check again."""

import copy
import pickle
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from hesscli.checkpoint import soundness
from hesscli.checkpoint.adapter import Adapter, Attached, attach, find_base, read_adapter
from hesscli.checkpoint.architecture import read_architecture
from hesscli.checkpoint.checkpoint import Checkpoint
from hesscli.checkpoint.head import check_given, excuse
from hesscli.checkpoint.identity import Identity, weights_sha256
from hesscli.checkpoint.listing import has_tokenizer, names_in, weights_entry
from hesscli.checkpoint.offload import Reads, arrange, bring_inputs, leave_out, undispatched
from hesscli.checkpoint.placement import Plan, as_a_whole, check_map, decide, run_at_weights, settle
from hesscli.checkpoint.quiet import in_short, quiet
from hesscli.checkpoint.source import locate, parse
from hesscli.checkpoint.tasks import Task
from hesscli.checkpoint.weights import Weights, check_weights, unsound_pickle
from hesscli.errors import DoesNotFitError, HessError, UnavailableError, UsageError
from hesscli.events import Event, OnEvent

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64, "auto": None}
# Eager everywhere has a second derivative; sdpa has one under its MATH backend, fused kernels have none.
_ATTENTION = {"auto": "eager", "eager": "eager", "sdpa": "sdpa"}


def load_checkpoint(
    model: str,
    *,
    revision: str | None,
    task: str,
    dtype: str,
    attention: str,
    placement: str,
    device_map: str | Mapping[str, Any] | None,
    max_memory: Mapping[Any, int | str] | None,
    offload_dir: str | None,
    trust_remote_code: bool,
    allow_pickle: bool,
    offline: bool,
    on_event: OnEvent,
) -> Checkpoint:
    """The model that `model` names, with the head for its `task` (`auto`: its own), ready for second derivatives.

    An adapter is put into the base model that it names, and not merged.

    The weights are in `dtype`, finite and complete, and resident but for the layers that the placement leaves on disk
    or on the host, which are read when they run; the model is in eval mode without a cache, with
    attention and experts that can be differentiated twice. Files are checked and hashed before they are loaded,
    and loading itself reads the local folder only: no request is made after the files were fetched.

    Raises:
        UsageError: an option is wrong, or the checkpoint is for another task, or for one that hess does not know.
        UnavailableError: the checkpoint cannot be had, is damaged, unsafe, quantised or of an unknown architecture.
        DoesNotFitError: it does not fit.
    """
    for field, value, allowed in (("dtype", dtype, _DTYPES), ("attn", attention, _ATTENTION)):
        if value not in allowed:
            raise _unknown(field, value, list(allowed))
    plan = decide(placement, device_map=device_map, max_memory=max_memory, offload_dir=offload_dir)
    reach = partial(
        locate,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        offline=offline,
        on_event=on_event,
    )
    source = reach(parse(model, revision=revision))
    adapter = read_adapter(source, allow_pickle=allow_pickle)
    base = source
    if adapter is not None:
        base = find_base(adapter.base, adapter.base_revision, reach, id=adapter.id)
    entry = weights_entry(names_in(base.folder, id=base.id), id=base.id, allow_pickle=allow_pickle)
    config, found = read_architecture(
        base.folder,
        id=base.id,
        task=task,
        trust_remote_code=trust_remote_code,
        brought=None if adapter is None else adapter.brought,
    )
    weights = check_weights(base.folder / entry, id=base.id)
    parts = [weights] if adapter is None else [weights, adapter.weights]
    needed = sum(_bytes_needed(part, _DTYPES[dtype]) for part in parts)
    plan = settle(plan, needed=needed, id=base.id)
    digest = weights_sha256([file for part in parts for file in part.files], on_event=on_event)
    read = partial(
        _read,
        base.folder,
        task=found,
        config=config,
        id=base.id,
        dtype=_DTYPES[dtype],
        attention=_ATTENTION[attention],
        pickled=weights.pickled,
        trust_remote_code=trust_remote_code,
        beside=0 if adapter is None else _bytes_needed(adapter.weights, _DTYPES[dtype]),
    )
    made = partial(_made, read, adapter, id=source.id, base=base.id)
    try:
        (net, copies), tied, attached = made(plan, on_event=(events := list[Event]()).append)
    except UsageError:  # weights are not stored as they are used, or an adapter is made from them
        if not plan.sent:
            raise
        plan = as_a_whole(plan, needed=needed, id=base.id)
        (net, copies), tied, attached = made(plan, on_event=(events := list[Event]()).append)
    for event in events:
        on_event(event)
    identity = Identity(
        id=source.id,
        revision=source.revision,
        commit=source.commit,
        weights_sha256=digest,
        class_name=type(net).__name__,
        task=found.name,
        num_parameters=sum(p.numel() for p in net.parameters()),
        dtype=soundness.dtype_name(net),
        attention=str(net.config._attn_implementation),
        tied=tied,
        base=None if adapter is None else base.id if base.commit is None else f"{base.id}@{base.commit}",
    )
    # The tokenizer of an adapter lies beside it only where tokens were added.
    own = adapter is None or has_tokenizer(names_in(source.folder, id=source.id))
    folder = (source if own else base).folder
    return Checkpoint(net, identity, folder, trust_remote_code, attached.trained, attached.reads, plan.folder, copies)


def _unknown(field: str, value: str, allowed: list[str]) -> UsageError:
    if field == "attn" and ("flash" in value or "flex" in value):
        return UsageError("attn", f"'{value}' has no second derivative", "use --attn eager")
    return UsageError(field, f"'{value}' is not supported", f"use one of {', '.join(allowed)}")


def _bytes_needed(weights: Weights, dtype: torch.dtype | None) -> int:
    if weights.elements is None or dtype is None:
        return weights.stored_bytes
    return weights.elements * dtype.itemsize


def _made(
    read: Callable[..., "_Read"], adapter: Adapter | None, plan: Plan, *, id: str, base: str, on_event: OnEvent
) -> tuple[tuple[PreTrainedModel, object | None], bool, Attached]:
    """The model with its adapter, checked, and the folder of its copies; whether it is tied; what was attached."""
    found = read(plan=plan)
    net = found.model
    check_map(plan, [name for name, _ in net.named_parameters()], id=base)
    run_at_weights(net)
    given = {} if adapter is None else excuse(net, found.info, adapter.brought, base=base)
    soundness.check_complete(net, found.info, id=base, on_event=on_event)
    soundness.check_resident(net, id=base)
    tied = soundness.check_ties(net, id=base)
    constants = soundness.constants(net)
    attached = Attached((), found.reads) if adapter is None else attach(adapter, net, found.reads)
    if adapter is not None:
        check_given(net, given, adapter.brought, base=base)
    soundness.check_finite(net, id=id, left_out=attached.reads)
    soundness.prepare(net, constants=constants)
    soundness.warn_of_kernels(net, on_event=on_event)
    if attached.reads:
        bring_inputs(net)
    return (net, found.copies), tied, attached


@dataclass(frozen=True, slots=True)
class _Read:
    """What `from_pretrained` made of the files."""

    model: PreTrainedModel
    info: dict[str, Any]
    reads: Reads
    copies: TemporaryDirectory[str] | None


def _read(
    folder: Path,
    *,
    task: Task,
    config: PreTrainedConfig,
    id: str,
    dtype: torch.dtype | None,
    attention: str,
    plan: Plan,
    pickled: bool,
    trust_remote_code: bool,
    beside: int,
) -> _Read:
    index: dict[str, Any] = {}
    copies = None
    try:
        with quiet():
            arrangement = None
            if plan.device is None or plan.sent:
                with torch.device("meta"):
                    bare = task.loader.from_config(
                        copy.deepcopy(config), dtype=dtype or config.dtype, trust_remote_code=trust_remote_code
                    )
                arrangement = arrange(plan, bare, id=id, beside=beside)
            if arrangement is not None and plan.folder is not None:
                copies = TemporaryDirectory(prefix="hess-weights-", dir=plan.folder)
            with undispatched(index) if arrangement is not None else nullcontext():
                model, info = task.loader.from_pretrained(
                    folder,
                    config=config,
                    dtype=dtype or "auto",
                    attn_implementation=attention,
                    # The default, grouped_mm, has no forward derivative and no float64.
                    experts_implementation="eager",
                    device_map=plan.device_map if arrangement is None else arrangement.device_map,
                    max_memory=plan.max_memory,
                    offload_folder=None if copies is None else copies.name,
                    use_safetensors=not pickled,
                    weights_only=True,
                    trust_remote_code=trust_remote_code,
                    local_files_only=True,
                    ignore_mismatched_sizes=True,  # reported by name below, where the default prints a table and raises
                    output_loading_info=True,
                )
    except HessError:
        raise
    except Exception as error:  # any of 400 architectures, or the checkpoint's own code
        raise _explain(error, id=id, attention=attention, plan=plan) from error
    reads = {} if arrangement is None else leave_out(model, index, arrangement)
    return _Read(model, info, reads, copies)


def _explain(error: Exception, *, id: str, attention: str, plan: Plan) -> HessError:
    text = str(error).lower()
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text:
        return DoesNotFitError(
            "placement", f"no memory left while loading '{id}'", "use --dtype bfloat16 or more devices"
        )
    if isinstance(error, pickle.UnpicklingError):
        return unsound_pickle(f"the pickle of '{id}'")
    if attention != "eager" and ("attn_implementation" in text or "scaled_dot_product_attention" in text):
        return UsageError("attn", f"'{attention}' is not supported by the architecture of '{id}'", "use --attn eager")
    if "offload_folder" in text:
        what = f"'{id}' is not stored as it is used, so what stays on disk needs a place for a copy"
        return UsageError("offload_dir", what, "add --offload-dir DIR")
    if plan.device is None and "offload" in text:
        what = f"'{id}' would be offloaded from the devices given"
        return DoesNotFitError("device_map", what, "raise --max-memory, use --dtype bfloat16, or add devices")
    if plan.device is None and "device_map" in text:
        return UsageError("device_map", f"it does not suit '{id}': {in_short(error)}", "use --device-map auto")
    what = f"transformers {transformers.__version__} cannot load '{id}': {in_short(error)}"
    return UnavailableError("model", what, "check the checkpoint, or try another version of transformers")
