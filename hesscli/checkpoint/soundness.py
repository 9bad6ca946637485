"""Checks on a model that was loaded: nothing made up, nothing absent, nothing that is not a number."""

import copy
import importlib.util
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hesscli.checkpoint.quiet import quiet
from hesscli.errors import DoesNotFitError, UnavailableError
from hesscli.events import OnEvent, Warned

# Packages whose kernels a model takes when they are there; they have no second derivative.
_KERNEL_PACKAGES = ("mamba_ssm", "causal_conv1d", "fla")


def constants(model: PreTrainedModel) -> list[nn.Parameter]:
    """Parameters that the model's own code does not train, such as sinusoids of positions.

    Loading makes every parameter one that is trained, so this asks a model without weights.
    """
    try:
        with torch.device("meta"), quiet():
            bare = type(model)(copy.deepcopy(model.config))
    except Exception:  # any of 400 architectures, or the checkpoint's own code
        return []
    names = {name for name, p in bare.named_parameters() if not p.requires_grad}
    return [p for name, p in model.named_parameters() if name in names]


def prepare(model: PreTrainedModel, *, constants: Iterable[nn.Parameter]) -> None:
    """Eval mode, gradients for every parameter but the constants, no key-value cache (it would keep graphs alive)."""
    model.eval()
    model.requires_grad_(True)
    for p in constants:
        p.requires_grad_(False)
    model.config.use_cache = False
    model.config.get_text_config(decoder=True).use_cache = False


def check_complete(model: PreTrainedModel, info: dict[str, Any], *, id: str, on_event: OnEvent) -> None:
    """Every parameter came from the files; what the files hold beyond that is a warning.

    Raises:
        UnavailableError: parameters are missing or of another shape, and would be random numbers.
    """
    name = type(model).__name__
    if info["missing_keys"]:
        what = f"'{id}' lacks {_some(info['missing_keys'])} of {name}, which would be random numbers"
        raise UnavailableError("weights", what, "use the whole checkpoint, saved from that class")
    if info["mismatched_keys"]:
        key, stored, wanted = sorted(info["mismatched_keys"], key=str)[0]
        shapes = f"{key} is {tuple(stored)} in the file and {tuple(wanted)} by config.json"
        what = f"{_count(len(info['mismatched_keys']), 'weight')} of '{id}' of another shape ({shapes})"
        raise UnavailableError("weights", what, "use the config.json that was saved with these weights")
    if info["unexpected_keys"]:
        text = f"{name} has no place for {_some(info['unexpected_keys'])} of '{id}': they are left out"
        on_event(Warned("unexpected_weights", text))


def check_resident(model: PreTrainedModel, *, id: str) -> None:
    """Every parameter is in the memory of a device.

    Raises:
        DoesNotFitError: some were offloaded: their gradients would be None, and their curvature zero in silence.
    """
    offloaded = [name for name, p in model.named_parameters() if p.device.type == "meta"]
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    if not offloaded and any(getattr(hook, "offload", False) for hook in hooks):
        offloaded = ["parts of the model"]
    if offloaded:
        total = sum(1 for _ in model.parameters())
        what = f"{len(offloaded)} of {total} parameters of '{id}' would be offloaded (first: {offloaded[0]})"
        raise DoesNotFitError("device_map", what, "raise --max-memory, use --dtype bfloat16, or add devices")


def check_finite(model: PreTrainedModel, *, id: str, left_out: Mapping[str, Callable[[], torch.Tensor]]) -> None:
    """Every weight is a floating-point number, neither NaN nor Inf. Costs one pass over the weights, no memory.

    Of weights that are not there, `left_out` says how each is read.

    Raises:
        UnavailableError: some are not.
    """
    integer = [name for name, p in model.named_parameters() if not p.is_floating_point() or p.itemsize < 2]
    if integer:
        what = f"'{id}' is quantised ({_some(integer)}), and quantised weights have no exact curvature"
        raise UnavailableError("weights", what, "use the unquantised checkpoint")
    named = [(name, left_out.get(name, p.detach)) for name, p in model.named_parameters() if p.numel()]
    bad = [name for name, read in named if not _is_finite(read())]
    if bad:
        what = f"{_some(bad)} of '{id}' with NaN or Inf"
        raise UnavailableError("weights", what, "use a checkpoint from before it diverged, or --dtype float32")


def _is_finite(tensor: torch.Tensor) -> bool:
    low, high = torch.aminmax(tensor)  # carries NaN through; no mask as large as the tensor, unlike isfinite
    return bool(torch.isfinite(low) & torch.isfinite(high))


def check_ties(model: PreTrainedModel, *, id: str) -> bool:
    """Whether the output embedding is one parameter with an input embedding: a decoder's own, where it has one.

    Raises:
        UnavailableError: config.json says that weights are tied, but they differ. transformers would only log it.
    """
    tied = model.all_tied_weights_keys  # from_pretrained leaves out those that differ
    broken = [pair for pair in model.get_expanded_tied_weights_keys(all_submodels=True).items() if pair[0] not in tied]
    if broken:
        target, source = sorted(broken)[0]
        what = f"config.json of '{id}' ties {target} to {source}, but they are two different weights here"
        raise UnavailableError("weights", what, "set tie_word_embeddings to false in it, or save the model again")
    head = getattr(model.get_output_embeddings(), "weight", None)
    return head is not None and sum(p is head for _, p in model.named_parameters(remove_duplicate=False)) > 1


def dtype_name(model: PreTrainedModel) -> str:
    """The type of most of the parameters' elements."""
    elements: Counter[torch.dtype] = Counter()
    for p in model.parameters():
        elements[p.dtype] += p.numel()
    return str(elements.most_common(1)[0][0]).removeprefix("torch.")


def warn_of_kernels(model: PreTrainedModel, *, on_event: OnEvent) -> None:
    """Say so where installed packages replace parts of this architecture by kernels without second derivatives."""
    module = sys.modules.get(type(model).__module__)
    try:
        source = inspect.getsource(module) if module else ""
    except (OSError, TypeError):
        return
    found = [name for name in _KERNEL_PACKAGES if name in source and importlib.util.find_spec(name)]
    if found:
        text = f"{type(model).__name__} uses kernels of {', '.join(found)}, which may have no second derivative"
        on_event(Warned("fused_kernels", f"{text}; if the product fails, run without them"))


def _some(names: Collection[str]) -> str:
    first = sorted(names)[:3]
    more = len(names) - len(first)
    return f"{_count(len(names), 'weight')} ({', '.join(first)}{f' and {more} more' if more else ''})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
