"""The largest model of a family whose exact product fits: from what is predicted up, or down, by layers."""

import torch

from gpu.meter import gib
from gpu.model import batch_of, model_on, risk_of, unit
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.stack import find_stack
from hesscli.curvature.risk import LOOKED_AT
from hesscli.run.planning.counting.working_set import working_set

COLUMNS = ["model", "layers", "parameters", "predicted GiB", "peak GiB", "seconds", "layered product"]
LEGEND = [
    "float32, one vector; the first row is as many layers as the prediction says fit, the others go on from there",
    "predicted: weights, a vector, its product, and what the layered product holds of its own, by hess plan's count",
    "{free} GiB were free at first",
]
_STEPS = (1, 2, 4)  # parts of the prediction's tenth


def largest_rows(meter, shape, *, room=None, say):
    """Rows of the models that were tried. `room` bounds the bytes where the device itself does not."""
    room = meter.free if room is None else room
    few, more = (_needed(shape, layers) for layers in (2, 3))
    layer = more[0] - few[0]
    first = max(1, 2 + (room - few[0]) // layer)
    rows, tried = [], {}
    layers, step = int(first), max(1, int(first) // 20)
    while meter.left > 0 and layers >= 1 and layers not in tried and len(tried) < 5:
        parameters = few[1] + (layers - 2) * (more[1] - few[1])
        predicted = few[0] + (layers - 2) * layer
        say(f"{shape}: {layers} layers, {parameters / 1e9:.3f}B parameters")
        found = _tried(meter, shape, layers, room)
        tried[layers] = not found.reason
        cells = [shape, str(layers), f"{parameters / 1e9:.4g}B", gib(predicted)]
        seconds = "" if found.seconds is None else f"{found.seconds:.3f}"
        rows.append([*cells, gib(found.peak), seconds, found.reason or "fits"])
        layers += step if tried[layers] else -step
    return rows


def legend(free):
    """The lines under the table."""
    return [line.format(free=gib(free)) for line in LEGEND]


def _tried(meter, shape, layers, room):
    def make():
        model = model_on(meter.device, shape, torch.float32, layers=layers)
        risk = risk_of(model, batch_of(shape), meter.device)
        operator = LayeredOperator(risk, find_stack(risk.first_row(most=LOOKED_AT)))
        v = unit(risk.space)
        return lambda: operator.matvec(v)

    found = meter.measured(make, repeats=1)
    found.result = None
    if not found.reason and found.peak > room:
        found.reason = "does not fit"
    return found


def _needed(shape, layers):
    """(bytes of the layered product with all that it needs, parameters), from tensors without data."""
    risk = risk_of(model_on("meta", shape, torch.float32, layers=layers), batch_of(shape), "meta")
    held = working_set(risk, num_experts=1, kinds=("layered",), vectors=1).held["layered"]
    weights = sum(p.nbytes for p in risk.parameters)
    return weights + 2 * risk.space.vector_bytes() + held.own, risk.space.dimension
