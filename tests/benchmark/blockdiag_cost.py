"""What the block test costs: a probe over the blocks of a model, in products of the same operator."""

import gc
from statistics import median

from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.stack import find_stack
from hesscli.curvature.selection import partition
from hesscli.events import ignore
from hesscli.probes.blockdiag import blockdiag

COLUMNS = ["model", "product", "blocks B", "product, s", "probe, s", "probe, products", "over B + 1"]
LEGEND = ["probe: one of blockdiag by layer: B + 1 vectors to multiply, each but one of them zero outside its block"]

_TURNS = 2


def blockdiag_rows(subject, *, clock, say):
    """A row for each exact product."""
    rows = []
    for name, make in {"graph kept": _kept, "double backward": _made_again, "layered": _layered}.items():
        say(f"{subject.name}: blockdiag, {name}")
        gc.collect()
        operator, v = make(subject.risk()), subject.direction()
        parts = [block.parts for block in partition(operator.space.names, by="layer")]
        operator.matvec(v)
        seconds = []
        for _ in range(_TURNS):
            start = clock()
            operator.matvec(v)
            seconds.append(clock() - start)
        start = clock()
        blockdiag(operator, blocks=parts, probes=1, seed=0, on_event=ignore)
        probe, product = clock() - start, median(seconds)
        cells = [f"{len(parts)}", f"{product:.2f}", f"{probe:.2f}", f"{probe / product:.2f}"]
        rows.append([subject.name, name, *cells, f"{probe / product / (len(parts) + 1):.2f}"])
    return rows


def _kept(risk):
    return HessianOperator(risk, keep_graph=True)


def _made_again(risk):
    return HessianOperator(risk, keep_graph=False)


def _layered(risk):
    return LayeredOperator(risk, find_stack(risk.first_row()))
