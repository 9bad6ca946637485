"""What the tests of this folder measure on each rank; it comes back as arrays."""

from contextlib import contextmanager
from math import prod
from unittest import mock

import torch
from breadth.subjects import SUBJECTS
from live_bytes import peak_of
from models import sharded_risk, shared, whole_vector
from once import Once
from tiny import ragged_slice, rows_of, tiny_model
from traffic import Traffic
from transformers import LlamaConfig, LlamaForCausalLM

from hesscli.curvature import losses
from hesscli.curvature.choice import choose_operator
from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.layers.stack import Stack
from hesscli.curvature.score_curvature import LabelCurvature, SampledLabelCurvature, SoftmaxCurvature
from hesscli.curvature.sharded.layered import ShardedLayeredOperator
from hesscli.curvature.sharded.residence import ShardedResidence
from hesscli.curvature.trust.rounding import Float32Errors
from hesscli.curvature.trust.soundness import gathered_stack
from hesscli.distributed import Ranks

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
        "on the way": _on_the_way(*_plain(ranks)),
        "narrow": _narrow(ranks) if size == 2 else None,
        "once": _once(ranks) if size == 2 else None,
        "peak": _gradient_peaks(ranks) if size == 2 else None,
    }


def _one(risk):
    space = risk.space
    vs = [space.random("gaussian", seed=1, index=i) for i in range(2)]
    stack = gathered_stack(risk.swept)
    before = [p.clone() for p in risk.parameters]
    differences = FiniteDifferenceOperator(risk, scheme="central")
    found = differences.difference(vs[0])
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
        "choices": (differences.num_choices, found.switched),
        "along": _loss_after_a_forward_pass(risk, vs[0]),
        "chunks": _in_chunks(risk, vs[0]),
        "restored": all(torch.equal(a, b) for a, b in zip(before, risk.parameters, strict=True)),
    }


def _other(ranks, subject):
    risk = shared(ranks, subject.build(), [subject.batch()])
    v = risk.space.random("gaussian", seed=1, index=0)
    exact = ShardedLayeredOperator(risk, gathered_stack(risk.swept))
    return whole_vector(risk.space, risk.gradient()), whole_vector(risk.space, exact.matvec(v))


def _loss_after_a_forward_pass(risk, v):
    """The loss along v where a pass without a backward has left FSDP2's outermost group whole."""
    with torch.no_grad():
        risk.model(**risk.inputs(risk.passes[0]))
    return risk.loss_along(v, 0.01)


@contextmanager
def _chunks(positions):
    """For the block the head takes so many positions at a time."""
    kept, losses._CHUNK = losses._CHUNK, positions
    try:
        yield
    finally:
        losses._CHUNK = kept


def _in_chunks(risk, v):
    """What passes with two positions at a time give, and how many the head had at the most."""
    seen = []

    def head(self, hidden, weights=None, given=Stack.head):
        seen.append(len(hidden))
        return given(self, hidden, weights)

    with _chunks(2), mock.patch.object(Stack, "head", head):
        loss, gradient, along = risk.loss(), whole_vector(risk.space, risk.gradient()), risk.loss_along(v, 0.01)
    return {"loss": (loss.value, loss.stderr), "gradient": gradient, "along": along, "most": max(seen)}


def _gradient_peaks(ranks):
    """Live bytes of a gradient with all scores at once and by 16 positions, and the bytes of all scores."""
    config = LlamaConfig(
        vocab_size=4096, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2
    )
    torch.manual_seed(0)
    ids = torch.randint(0, 4096, (8, 65), generator=torch.Generator().manual_seed(1))
    risk = shared(ranks, LlamaForCausalLM(config).eval(), list(rows_of(ids).batches(8)))
    risk.gradient()
    found = []
    for positions in (4096, 16):
        with _chunks(positions):
            found.append(peak_of(risk.gradient))
    return *found, risk.passes[0].targets.numel() * 4096 * 4


def _plain(ranks):
    """A risk of one batch on each rank that no product was made with, and a vector."""
    risk = sharded_risk(ranks, "llama", batch_size=4, lengths=(5, 11, 3, 9))
    return risk, risk.space.random("gaussian", seed=1, index=0)


def _narrow(ranks):
    """By kind of matrix, what bfloat16 does to a product, as one process and as these see it."""
    model = tiny_model("qwen3").bfloat16()
    batches = list(ragged_slice().batches(2))
    risk = shared(ranks, model, batches)
    found = {}
    for kind in CURVATURES:
        chosen = choose_operator(risk, kind=kind, product="auto", seed=SEED)
        found[kind] = Float32Errors(chosen.operator, risk, kind, SEED).sampled().largest
    return found


def _once(ranks):
    """What is chosen for a model with a function that is marked once_differentiable."""
    model = tiny_model("llama")
    model.model.layers[1].mlp.register_forward_hook(lambda _module, _args, out: out + 0.03 * Once.apply(out))
    return choose_operator(
        shared(ranks, model, list(ragged_slice().batches(2))), kind="hessian", product="auto", seed=SEED
    ).why


def _traffic(ranks, name):
    """What a gradient, a difference and an exact product send, for a slice that is one batch on each rank."""
    risk = sharded_risk(ranks, name, batch_size=4, lengths=(5, 11, 3, 9))
    space = risk.space
    v, w = (space.random("gaussian", seed=1, index=i) for i in range(2))
    differences = FiniteDifferenceOperator(risk, scheme="central")
    differences.matvec(v)  # calibrates
    exact = ShardedLayeredOperator(risk, risk.swept.find_stack())
    for vs in ([v], [v, w]):
        exact.matvecs(vs)  # the order of layers is known after
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
    with _chunks(2), Traffic() as seen:
        risk.gradient()
    sent["gradient in chunks"] = dict(seen.bytes)
    sizes = {
        name: 4 * -(-shape[0] // ranks.size) * ranks.size * prod(shape[1:])
        for name, shape in zip(space.names, space.shapes, strict=True)
    }
    last = sum(size for name, size in sizes.items() if "layers.1." in name)
    outside = sum(size for name, size in sizes.items() if "layers." not in name)
    return {"sent": sent, "whole": sum(sizes.values()), "last layer": last, "outside": outside}


def _on_the_way(risk, v):
    """What is on its way where a layer closes, as (gathers, sends), in a first product and in one after it."""
    begun, ended, found = [0, 0], [0, 0], []

    def counted(place, given):
        def begin(self, *args):
            begun[place] += 1
            coming = given(self, *args)

            def arrived():
                ended[place] += 1
                return coming()

            return arrived

        return begin

    @contextmanager
    def opened(self, names, gathered, given=ShardedResidence._opened):
        with given(self, names, gathered) as leaves:
            yield leaves
            found.append((begun[0] - ended[0], begun[1] - ended[1]))

    operator = ShardedLayeredOperator(risk, risk.swept.find_stack())
    both, products = [], []
    with (
        mock.patch.object(Ranks, "gather", counted(0, Ranks.gather)),
        mock.patch.object(Ranks, "sum_shards", counted(1, Ranks.sum_shards)),
        mock.patch.object(ShardedResidence, "_opened", opened),
    ):
        for _ in range(2):
            products.append(operator.matvec(v))
            both.append(list(found))
            found.clear()
    return both, all(torch.equal(a, b) for a, b in zip(*products, strict=True))
