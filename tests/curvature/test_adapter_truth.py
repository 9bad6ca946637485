"""Products over adapters against dense matrices of the merged model in float64, which PEFT has no part in."""

import copy

import numpy as np
import pytest
import torch
from adapted import KINDS, RANK, Dense
from adapters import save_adapter
from test_offload_adapter import fetched_risk, load
from tiny import flat, ragged_slice, risk_of, tiny_model

from hesscli.curvature.choice import choose_operator
from hesscli.curvature.symmetries import find_symmetry
from hesscli.curvature.symmetries.axes import Axis
from hesscli.curvature.symmetries.orbit import Orbit
from hesscli.curvature.symmetries.search import Member, Scaling


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of an adapter of a kind: random, or as it is before its first step."""
    made = {}

    def make(kind, *, fresh=False):
        if (kind, fresh) not in made:
            folder = tmp_path_factory.mktemp("adapter")
            tiny_model("qwen3").save_pretrained(folder / "base")
            save_adapter(folder / "adapter", folder / "base", copy.deepcopy(KINDS[kind]), fresh=fresh)
            made[kind, fresh] = folder / "adapter"
        return made[kind, fresh]

    return make


def relative(found, truth):
    return float((torch.as_tensor(flat(found)) - truth).norm() / truth.norm())


def products(risk, fetched):
    """Every way to a Hessian or GGN product over the adapter: with all weights in memory, and with layers fetched."""
    yield risk, {"kind": "hessian", "product": "double-backward"}
    yield risk, {"kind": "hessian", "product": "layered"}
    yield fetched, {"kind": "hessian", "product": "layered"}
    yield risk, {"kind": "ggn", "product": "auto"}
    yield risk, {"kind": "ggn", "product": "layered"}
    yield fetched, {"kind": "ggn", "product": "layered"}


def loaded(folder):
    """(checkpoint, what the adapter trains by name, the risk over it)"""
    checkpoint = load(folder, None)
    named = dict(checkpoint.model.named_parameters())
    own = {name: named[name] for name in checkpoint.adapter_parameters}
    return checkpoint, own, risk_of(checkpoint.model, ragged_slice(), 2, only=lambda name: name in own)


@pytest.mark.parametrize(
    ("kind", "fresh"), [*((kind, False) for kind in KINDS), ("every linear module", True), ("the embedding", True)]
)
def test_products_over_an_adapter_are_those_of_the_dense_matrices(saved, tmp_path, kind, fresh):
    folder = saved(kind, fresh=fresh)
    checkpoint, own, risk = loaded(folder)
    truth = Dense(kind, own)
    fetched = fetched_risk(load(folder, {"": "disk"}, str(tmp_path)))
    assert list(risk.space.names) == list(fetched.space.names) == list(own)
    v = risk.space.random("gaussian", seed=0, index=0)
    for over, asked in products(risk, fetched):
        choice = choose_operator(over, **asked, seed=0)
        assert choice.product in (asked["product"], "jacobian"), choice.why
        dense = truth.hessian if asked["kind"] == "hessian" else truth.ggn
        error = relative(choice.operator.matvec(v), dense @ torch.as_tensor(flat(v)))
        assert error < 1e-5, asked
        # Nothing of a product stays behind in the model.
        assert over.loss().value == pytest.approx(truth.loss, rel=1e-5)
        assert relative(over.gradient(), truth.gradient) < 1e-5
    assert {id(p) for p in own.values()} <= {id(p) for p in checkpoint.model.parameters()}


def pairs(symmetry):
    """The weights that are scaled by opposite factors, by their names in each layer."""
    return [
        tuple(prefix + member.axis.weight for member in candidate.members)
        for candidate in symmetry.candidates
        for prefix in candidate.prefixes
    ]


@pytest.mark.parametrize(
    ("kind", "fresh"), [("of rank one", False), ("every linear module", True), ("the embedding", False)]
)
def test_the_factors_of_each_low_rank_give_a_known_answer(saved, kind, fresh):
    _, own, risk = loaded(saved(kind, fresh=fresh))
    symmetry = find_symmetry(risk, risk.gradient(), seed=0)
    firsts = {name for name in own if "_A." in name}
    assert {(a, b) for a, b in pairs(symmetry)} == {(a, a.replace("_A.", "_B.")) for a in firsts}
    truth, d = Dense(kind, own), symmetry.direction(risk)
    answer = symmetry.answer(risk, risk.gradient())
    assert risk.space.norm(answer) > 1e-3 * risk.space.norm(d)
    assert relative(answer, truth.hessian @ torch.as_tensor(flat(d))) < 1e-5
    random = risk.space.random("gaussian", seed=1, index=0)
    along, other = (truth.ggn @ torch.as_tensor(flat(x)) / risk.space.norm(x) for x in (d, random))
    assert along.norm() < 1e-6 * other.norm()


@pytest.mark.parametrize("fresh", [False, True], ids=["trained", "fresh"])
def test_factors_of_two_low_ranks_are_no_pair(saved, fresh):
    _, own, risk = loaded(saved("queries and values", fresh=fresh))
    weights = {name: p.detach() for name, p in own.items()}
    orbit = Orbit(risk.first_row(), weights, seed=0)
    channels = np.arange(RANK)
    for first, second in (("q", "q"), ("q", "v"), ("v", "q")):
        names = (
            (f"self_attn.{first}_proj.lora_A.default.weight", (0,)),
            (f"self_attn.{second}_proj.lora_B.default.weight", (1,)),
        )
        members = [Member(Axis(*name), channels, sign) for name, sign in zip(names, (1.0, -1.0), strict=True)]
        candidate = Scaling(("model.layers.0.", "model.layers.1."), tuple(members), RANK)
        assert orbit.unchanged([candidate]) is (first == second)


def test_before_the_first_step_the_first_factors_have_no_curvature_of_their_own(saved):
    _, own, risk = loaded(saved("queries and values", fresh=True))
    v = risk.space.zeros()
    for part, name in zip(v, own, strict=True):
        part.normal_(generator=torch.Generator().manual_seed(0)) if "lora_A" in name else None
    product = choose_operator(risk, kind="hessian", product="double-backward", seed=0).operator.matvec(v)
    sizes = {name: float(part.norm()) for name, part in zip(own, product, strict=True)}
    assert all((size == 0.0) is ("lora_A" in name) for name, size in sizes.items())
