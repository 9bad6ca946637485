"""A model's weights over several processes: each layer a group of FSDP2's, what is left a group of its own.

The first process alone reads the checkpoint. It sends the others the model without weights, then each layer's weights
in turn, of which each keeps its rows: nobody ever holds more than one group whole, and what lies outside of layers. A
checkpoint that is not stored as it is used is read as a whole first, on that one's host, and let go of on the way.
"""

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from hesscli.checkpoint.layers import outermost_layers
from hesscli.distributed import Ranks
from hesscli.errors import UsageError

M = TypeVar("M", bound=nn.Module)


def without_weights(model: M) -> M:
    """A copy of a model whose parameters have shapes and no numbers; ties and buffers stay as they are."""
    memo = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


def shard(
    model: nn.Module, source: nn.Module | None, ranks: Ranks, *, reads: Mapping[str, Callable[[], torch.Tensor]]
) -> None:
    """Give a model without weights its shards of `source`'s weights, which the first rank alone has.

    In place: its parameters become DTensors, split along their first dimension, and gradients sums over ranks. Weights
    that `source` has no memory for come from `reads`, by name; those that it has it loses on the way. A layer that
    shares a parameter with anything else goes with what is outside of layers, tied embeddings too: FSDP2 has every use
    of a parameter in one group.

    Raises UsageError for a parameter without dimensions, which cannot be split, and for two dtypes in one group.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    for p in model.parameters():
        if p.dim() == 0:
            what = f"'fsdp' cannot split {names[id(p)]!r}, a single number without a dimension"
            raise UsageError("model.placement", what, "use --placement layerwise, without torchrun")
    weights: dict[str, Callable[[], torch.Tensor]] = {}
    if source is not None:
        weights = {**{name: partial(_taken, p) for name, p in source.named_parameters()}, **reads}
    device = ranks.device or torch.device("cpu")
    mesh = init_device_mesh(device.type, (ranks.size,))
    for module in (*_alone(model), model):
        _fill(module, names, weights, device, first=ranks.rank == 0)
        dtypes = {p.dtype for p in module.parameters() if not isinstance(p, DTensor)}
        if len(dtypes) > 1:
            both = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
            what = f"'fsdp' gathers a layer in one dtype, and one here has {both}"
            raise UsageError("model.placement", what, "use --dtype float32")
        # Narrow gradients are summed over ranks in float32, as one process sums them over its batches.
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float64 if torch.float64 in dtypes else torch.float32)
        sharded = fully_shard(module, mesh=mesh, mp_policy=policy)
        # FSDP2 takes means over ranks; loss terms are summed and divided once. gloo has no other way to a sum.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
        if hasattr(sharded, "set_reduce_scatter_unused_params"):  # torch 2.13: experts without tokens on some rank
            sharded.set_reduce_scatter_unused_params(True, recurse=False)
    to_device(model, ranks)


def to_device(model: nn.Module, ranks: Ranks) -> None:
    """Put a model's buffers where this rank computes; its parameters stay where they are."""
    for buffers in (m._buffers for m in model.modules()):
        buffers.update({name: None if b is None else b.to(ranks.device) for name, b in buffers.items()})


def _alone(model: nn.Module) -> list[nn.Module]:
    """The outermost layers whose parameters are nobody else's."""
    outermost = list(outermost_layers(model).values())
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    own = [Counter(id(p) for _, p in layer.named_parameters(remove_duplicate=False)) for layer in outermost]
    return [layer for layer, mine in zip(outermost, own, strict=True) if all(uses[key] == n for key, n in mine.items())]


def _taken(p: nn.Parameter) -> torch.Tensor:
    """A parameter's weights, which it has no more."""
    found = p.detach()
    p.data = p.data.new_empty(0)
    return found


def _fill(
    module: nn.Module,
    names: Mapping[int, str],
    weights: Mapping[str, Callable[[], torch.Tensor]],
    device: torch.device,
    *,
    first: bool,
) -> None:
    """Put whole weights into what of a module has none: each is sent by the first rank."""
    filled: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for key, p in list(owner._parameters.items()):
            if p is None or p.device.type != "meta":
                continue
            if id(p) not in filled:
                given = weights[names[id(p)]]().to(device) if first else torch.empty_like(p, device=device)
                given = given.contiguous()
                dist.broadcast(given, src=0)
                filled[id(p)] = nn.Parameter(given, requires_grad=p.requires_grad)
            owner._parameters[key] = filled[id(p)]
