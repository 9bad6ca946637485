"""Choices of experts that change within a step are counted: as many as the routers' own outputs show."""

from functools import cache

import numpy as np
import pytest
import torch
from breadth.subjects import SUBJECTS
from breadth.test_breadth import risk_on
from tiny import flat, ragged_slice, risk_of, tiny_model
from torch.overrides import TorchFunctionMode

from hesscli.curvature.differences.displaced import DisplacedGradient
from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.differences.routing import Choices
from hesscli.curvature.double_backward import HessianOperator


def random(space, index=0):
    return space.random("gaussian", seed=0, index=index)


def experts_at(risk, v, alpha):
    """The experts of each real token in each layer at theta + alpha v, by hooks on the routers; weights are moved."""
    found, model = [], risk.model
    routers = [m for n, m in model.named_modules() if n.endswith("mlp.gate")]
    assert len(routers) == 2
    kept = [p.detach().clone() for p in risk.parameters]
    with torch.no_grad():
        for p, part in zip(risk.parameters, v, strict=True):
            p.add_(part, alpha=alpha)
        for batch in risk.batches:
            seen = []
            hooks = [r.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out[-1])) for r in routers]
            model(**batch.inputs, use_cache=False)
            for hook in hooks:
                hook.remove()
            mask = batch.inputs["attention_mask"].flatten().bool() if "attention_mask" in batch.inputs else ...
            found += [{i.item() for i in row} for experts in seen for row in experts[mask]]
        for p, w in zip(risk.parameters, kept, strict=True):
            p.copy_(w)
    return found


def switched(risk, v, alphas):
    still = experts_at(risk, v, 0.0)
    sides = [experts_at(risk, v, alpha) for alpha in alphas]
    return sum(any(side[i] != chosen for side in sides) for i, chosen in enumerate(still))


@cache
def mixture(near):
    """A tiny mixture of experts; `near`: by how little its first two experts differ for every token."""
    model = tiny_model("mixtral")
    if near is not None:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for layer in model.model.layers:
                gate = layer.mlp.gate.weight
                gate[1] = gate[0] + near * torch.randn(gate.shape[1], generator=generator)
    return risk_of(model, ragged_slice(), 3)


@pytest.mark.parametrize("alpha", [1e-5, -0.02, 0.1, 0.4])
def test_a_displacement_switches_as_many_tokens_as_the_routers_show(alpha):
    risk = mixture(None)
    gradient, v = DisplacedGradient(risk), random(risk.space)
    gradient.change(v, alpha)
    tokens = sum(int(b.inputs["attention_mask"].sum()) for b in risk.batches)
    assert gradient.num_choices == 2 * tokens
    truth = switched(risk, v, [alpha])
    assert int(gradient.switched.sum()) == truth
    assert (truth > 0) == (abs(alpha) > 0.01)


@pytest.mark.parametrize(("near", "codes"), [(1e-3, ["routing"]), (None, [])])
def test_a_planted_tie_is_counted_and_said_with_its_number(near, codes):
    risk = mixture(near)
    operator = FiniteDifferenceOperator(risk, scheme="central")
    found = [operator.difference(random(risk.space, i)) for i in range(3)]
    counts = []
    for i, one in enumerate(found):
        v = random(risk.space, i)
        alpha = one.step / risk.space.norm(v)
        counts.append(switched(risk, v, [alpha, -alpha]))
        assert one.switched == counts[-1]
    assert operator.switched == (max(counts), sum(count > 0 for count in counts))
    warnings = [w for w in operator.warnings(noise=1.0) if w.code == "routing"]
    assert [w.code for w in warnings] == codes
    if near is not None:
        assert max(counts) > 0
        assert f"of {operator.num_choices} choices" in warnings[0].text
        assert f"up to {max(counts)} change" in warnings[0].text
        other = FiniteDifferenceOperator(risk, scheme="central")
        other.recall(operator.memory)
        assert other.switched == operator.switched


def test_a_switch_is_a_jump_that_the_product_holds():
    # What is counted is what spoils the product: it is far from the exact one, and right where nothing switches.
    for near in (1e-3, None):
        risk = mixture(near)
        operator, v = FiniteDifferenceOperator(risk, scheme="central"), random(risk.space)
        found = operator.difference(v)
        truth = flat(HessianOperator(risk, keep_graph=False).matvec(v))
        error = np.linalg.norm(flat(found.product) - truth) / np.linalg.norm(truth)
        assert (error > 0.05) == (found.switched > 0)


def test_without_a_choice_nothing_is_watched(monkeypatch):
    operator = FiniteDifferenceOperator(risk_of(tiny_model("llama"), ragged_slice(), 3), scheme="central")
    operator.matvec(random(operator.space))
    assert operator.switched is operator.num_choices is None
    monkeypatch.setattr(TorchFunctionMode, "__enter__", lambda *_: pytest.fail("it is watched"))
    operator.matvec(random(operator.space, 1))


@pytest.mark.parametrize(
    ("name", "routers"),
    [("qwen3_moe", 2), ("deepseek_v3", 2), ("phimoe", 4), ("jetmoe", 4), ("gpt_oss", 2), ("switch_transformers", None)],
)
def test_choices_are_found_in_other_mixtures(name, routers):
    subject = SUBJECTS[name]
    risk = risk_on(subject.build(), subject.batch())
    with Choices() as seen, torch.no_grad():
        risk.terms(risk.batches[0])
    (batch,) = risk.batches
    calls = [len(sets) for sets in seen.taken(None)]
    positions = batch.targets.numel()
    if routers is None:
        assert calls
    else:
        assert calls.count(positions) >= routers


def test_a_maximum_whose_place_is_not_used_is_no_choice():
    x = torch.tensor([[1.0, 3.0, 2.0], [5.0, 4.0, 0.0]])
    with Choices() as seen:
        (x - x.max(dim=-1, keepdim=True).values).exp().sum()
        x.max()
        torch.topk(x, 2).values.sum()
        torch.arange(5).argmax()
    assert seen.taken(None) == []
    with Choices() as seen:
        x.gather(1, torch.topk(x, 2).indices)
        x.gather(1, x.max(dim=1, keepdim=True)[1])
        torch.nn.functional.one_hot(torch.argmax(x, dim=0))
    sets = [one.tolist() for one in seen.taken(None)]
    assert sets == [[[1, 2], [0, 1]], [[1], [0]], [[1], [1], [0]]]
    assert [one.tolist() for one in seen.taken(torch.tensor([True, False]))] == [[[1, 2]], [[1]], [[1], [1], [0]]]
