"""The layers that a model runs one after the other: what may be fetched, gathered or differentiated by itself."""

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def marked_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that transformers marks, or what stands in lists of modules where a model marks none."""
    marked: list[nn.Module] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    return marked or list(dict.fromkeys(layer for one in lists for layer in one))


def outermost_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The marked layers that lie in no other, by name."""
    marked = {id(layer) for layer in marked_layers(model)}
    names = [name for name, module in model.named_modules() if id(module) in marked]
    inside = {name for name in names for other in names if name.startswith(f"{other}.")}
    return {name: model.get_submodule(name) for name in names if name not in inside}
