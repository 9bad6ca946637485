"""Products in float64 from end to end: the truth that rounding is read against."""

import torch
from tiny import flat, ragged_slice, risk_of, tiny_model

from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.trust.wide import float64_throughout


def float64_product(name, *, dtype=torch.float32):
    """v -> H v of a tiny model on the ragged slice, with weights as rounded to `dtype`, (n,) float64."""
    model = tiny_model(name).to(dtype).double()
    with float64_throughout():
        operator = HessianOperator(risk_of(model, ragged_slice(), 5), keep_graph=True)

    def product(v):
        with float64_throughout():
            return flat(operator.matvec([part.double() for part in v]))

    return product
