"""What the tests of this folder measure on each rank; it comes back as arrays."""

import torch
from breadth.subjects import SUBJECTS
from models import sharded_risk, shared, whole_vector
from traffic import Traffic

from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.score_curvature import LabelCurvature, SampledLabelCurvature, SoftmaxCurvature
from hesscli.curvature.sharded.layered import ShardedLayeredOperator

SEED = 5
CURVATURES = {
    "hessian": None,
    "ggn": SoftmaxCurvature(),
    "fisher": SampledLabelCurvature(seed=SEED),
    "empirical-fisher": LabelCurvature(),
}


# Keywords of `sharded_risk`. Tied embeddings, a parameter of one number, experts, a selection; 19 rows of embeddings
# over 2 and 4; rows that do not divide, and three rows over four ranks.
CASES = {
    2: [{"name": "qwen3"}, {"name": "gained", "lengths": (5, 11, 3)}, {"name": "mixtral", "batch_size": 5}],
    4: [{"name": "gpt2", "lengths": (5, 11, 3)}, {"name": "llama", "only": "layers.1"}],
}


# An encoder-decoder, one layer that runs twice, a class for each row, images.
OTHERS = {2: ["t5", "albert", "llama/classes", "vit"], 4: []}


def everything(ranks, size):
    """For each case: loss, gradient, vectors and products, whole; and what products send."""
    return {
        "cases": [_one(sharded_risk(ranks, **case)) for case in CASES[size]],
        "others": {name: _other(ranks, SUBJECTS[name]) for name in OTHERS[size]},
        "traffic": _traffic(ranks, "llama"),
    }


def _one(risk):
    space = risk.space
    vs = [space.random("gaussian", seed=1, index=i) for i in range(2)]
    stack = risk.swept.find_stack()
    before = [p.clone() for p in risk.parameters]
    found = FiniteDifferenceOperator(risk, scheme="central").difference(vs[0])
    loss, basis = risk.loss(), space.basis()
    for v in vs:
        basis.append(v)
    return {
        "batches": [len(b.targets) if b.num_terms else 0 for b in risk.passes],
        "local": [tuple(p.shape) for p in risk.parameters],
        "loss": (loss.value, loss.stderr),
        "gradient": whole_vector(space, risk.gradient()),
        "gaussian": whole_vector(space, vs[0]),
        "signs": whole_vector(space, space.random("rademacher", seed=2, index=3)),
        "inner": (space.inner(vs[0], vs[1]), space.norm(vs[0]), basis.inner(vs[0]).tolist()),
        "products": {
            kind: [whole_vector(space, p) for p in ShardedLayeredOperator(risk, stack, c).matvecs(vs)]
            for kind, c in CURVATURES.items()
        },
        "single": whole_vector(space, ShardedLayeredOperator(risk, stack).matvec(vs[1])),
        "difference": (whole_vector(space, found.product), found.error),
        "along": _loss_after_a_forward_pass(risk, vs[0]),
        "restored": all(torch.equal(a, b) for a, b in zip(before, risk.parameters, strict=True)),
    }


def _other(ranks, subject):
    risk = shared(ranks, subject.build(), [subject.batch()])
    v = risk.space.random("gaussian", seed=1, index=0)
    exact = ShardedLayeredOperator(risk, risk.swept.find_stack())
    return whole_vector(risk.space, risk.gradient()), whole_vector(risk.space, exact.matvec(v))


def _loss_after_a_forward_pass(risk, v):
    """The loss along v where a pass without a backward has left FSDP2's outermost group whole."""
    with torch.no_grad():
        risk.model(**risk.inputs(risk.passes[0]))
    return risk.loss_along(v, 0.01)


def _traffic(ranks, name):
    """What a gradient, a difference and an exact product send, for a slice that is one batch on each rank."""
    risk = sharded_risk(ranks, name, batch_size=4, lengths=(5, 11, 3, 9))
    space = risk.space
    v, w = (space.random("gaussian", seed=1, index=i) for i in range(2))
    differences = FiniteDifferenceOperator(risk, scheme="central")
    differences.matvec(v)  # calibrates
    exact = ShardedLayeredOperator(risk, risk.swept.find_stack())
    sent = {}
    for what, do in {
        "gradient": risk.gradient,
        "difference": lambda: differences.matvec(v),
        "exact": lambda: exact.matvec(v),
        "two vectors": lambda: exact.matvecs([v, w]),
    }.items():
        with Traffic() as seen:
            do()
        sent[what] = dict(seen.bytes)
    padded = sum(
        -(-s[0] // ranks.size) * ranks.size * (n // s[0]) for s, n in zip(space.shapes, space.numels, strict=True)
    )
    return sent, 4 * padded
