"""Every product of one model: seconds, memory, and the distance from the layered one."""

import torch

from gpu.meter import gib
from gpu.model import SHAPES, batch_of, distance, model_on, risk_of, unit
from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.stack import find_stack
from hesscli.curvature.risk import LOOKED_AT

COLUMNS = ["model", "dtype", "product", "seconds", "gradients", "peak GiB", "relative difference"]
LEGEND = [
    "one row of {length} tokens, all parameters; the median of {repeats} runs, for several vectors at once each",
    "peak: what is allocated at the worst moment, weights and vectors in it; of a kept graph what its making takes",
    "relative difference from the layered product in the same dtype; vectors are float32 beside bfloat16 weights",
]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOGETHER = (4, 8)


def product_rows(meter, shape, repeats, *, say):
    """A table's rows for both dtypes."""
    rows = []
    for name, dtype in DTYPES.items():
        if meter.left < 0:
            rows.append([shape, name, "all", "not begun: the time is up", "", "", ""])
            continue
        rows += _rows(meter, shape, name, dtype, repeats, say)
        meter.clear()
    return rows


def _rows(meter, shape, dtype_name, dtype, repeats, say):
    model = model_on(meter.device, shape, dtype)
    risk = risk_of(model, batch_of(shape), meter.device)
    v = unit(risk.space)
    known = [*risk.parameters, *risk.model.buffers(), *v]
    risk.loss()  # finds the layers
    truth, gradient, rows = None, None, []
    for what, (make, count) in _work(risk, v).items():
        say(f"{shape} {dtype_name}: {what}")
        found = meter.measured(make, repeats=repeats, known=known)
        cells = [shape, dtype_name, what]
        if found.reason:
            rows.append([*cells, found.reason, "", "", ""])
            continue
        seconds = found.seconds / count
        gradient = gradient or seconds
        difference = ""
        if what != "gradient":
            difference = "" if truth is None else f"{distance(found.result, truth):.1e}"
            truth = truth or [part.cpu() for part in found.result]
        rows.append([*cells, f"{seconds:.3f}", f"{seconds / gradient:.2f}", gib(found.peak), difference])
        del found
    return rows


def _work(risk, v):
    """Name -> (what makes it ready, vectors at once); the layered one first, for it needs the least."""

    def layered(count):
        def make():
            operator = LayeredOperator(risk, find_stack(risk.first_row(most=LOOKED_AT)))
            vs = [v, *(unit(risk.space, index) for index in range(1, count))]
            return lambda: operator.matvecs(vs)[0]

        return make, count

    def one(operator):
        def make():
            ready = operator()
            return lambda: ready.matvec(v)

        return make, 1

    work = {"gradient": (lambda: risk.gradient, 1), "layered": layered(1)}
    work |= {f"layered, {count} at once, each": layered(count) for count in TOGETHER}
    return work | {
        "double backward": one(lambda: HessianOperator(risk, keep_graph=False)),
        "graph kept": one(lambda: HessianOperator(risk, keep_graph=True)),
        "central differences": one(lambda: FiniteDifferenceOperator(risk, scheme="central")),
        "forward differences": one(lambda: FiniteDifferenceOperator(risk, scheme="forward")),
    }


def legend(shape, repeats):
    """The lines under the table."""
    return [line.format(length=SHAPES[shape][1], repeats=repeats) for line in LEGEND]
