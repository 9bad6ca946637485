"""What a plan predicts, from tensors without data, against what the same work holds with them, within 20 %."""

import gc
from dataclasses import replace

import pytest
import torch
from live_bytes import LiveBytes
from tiny import VOCAB, risk_of, tiny_model
from transformers import AutoModelForCausalLM, BartConfig, BartForConditionalGeneration, Qwen3Config

from hesscli.checkpoint.bare import experts_of, twin
from hesscli.checkpoint.spread import at_home
from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import GGNOperator
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.stack import find_stack
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.score_curvature import SoftmaxCurvature
from hesscli.data import IGNORED, Sequence, Slice
from hesscli.events import ignore
from hesscli.linalg.space import ParameterSpace
from hesscli.probes.density import density
from hesscli.probes.topk import topk
from hesscli.recipe.document import resolve
from hesscli.run.planning.counting import working_set as working
from hesscli.run.planning.counting.inputs import full_batch
from hesscli.run.planning.counting.meta_bytes import MetaBytes
from hesscli.run.planning.counting.shallow import shallow_models
from hesscli.run.planning.counting.sites import Sites
from hesscli.run.planning.counting.working_set import Held, working_set
from hesscli.run.planning.probe_cost import demands

KINDS = ("gradient", "graph-kept", "double-backward", "layered", "finite-difference", "jacobian", "layered-ggn")
SHAPES = {"qwen3": (4, 16), "gpt2": (3, 16), "gemma3": (2, 24), "mixtral": (4, 16), "8m": (2, 96)}


def model_of(name):
    if name != "8m":
        return tiny_model(name), VOCAB
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval(), 2048


def full_slice(rows, length, vocab):
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(rows):
        ids = torch.randint(1, vocab, (length,), generator=generator)
        made.append(Sequence({"input_ids": ids}, torch.cat([ids[1:], torch.tensor([IGNORED])])))
    return Slice(tuple(made), id="full")


def peak_beside(known, work):
    """The peak of what is made by the work; views of tensors that were there before are not."""
    gc.collect()
    with LiveBytes(known) as count:
        work()
    return count.peak


def real_work(risk, v):
    stack = find_stack(risk.first_row(most=32))
    return {
        "gradient": risk.gradient,
        "graph-kept": lambda: HessianOperator(risk, keep_graph=True).matvec(v),
        "double-backward": lambda: HessianOperator(risk, keep_graph=False).matvec(v),
        "layered": lambda: LayeredOperator(risk, stack).matvec(v),
        "finite-difference": lambda: FiniteDifferenceOperator(risk, scheme="central").matvec(v),
        "jacobian": lambda: GGNOperator(risk).matvec(v),
        "layered-ggn": lambda: LayeredOperator(risk, stack, SoftmaxCurvature()).matvec(v),
    }


def shadow_of(model, risk):
    bare = twin(model)
    named = dict(bare.named_parameters())
    device = torch.device("meta")
    return EmpiricalRisk(bare, risk.batches, names=list(named), parameters=list(named.values()), input_device=device)


@pytest.fixture(scope="module", params=SHAPES)
def compared(request):
    model, vocab = model_of(request.param)
    rows, length = SHAPES[request.param]
    risk = risk_of(model, full_slice(rows, length, vocab), rows)
    found = working_set(shadow_of(model, risk), num_experts=experts_of(model), kinds=KINDS[1:], vectors=3)
    return risk, found


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_of_a_product_is_predicted(compared, kind):
    risk, found = compared
    v = risk.space.random("gaussian", seed=0, index=0)
    risk.loss()  # finds the layers
    measured = peak_beside([*risk.model.parameters(), *risk.model.buffers(), *v], real_work(risk, v)[kind])
    assert found.held[kind].own + risk.space.vector_bytes() == pytest.approx(measured, rel=0.2)


def test_several_vectors_at_once_are_predicted(compared):
    risk, found = compared
    vs = [risk.space.random("gaussian", seed=0, index=i) for i in range(3)]
    operator = LayeredOperator(risk, find_stack(risk.first_row(most=32)))
    known = [*risk.model.parameters(), *risk.model.buffers(), *(part for v in vs for part in v)]
    measured = peak_beside(known, lambda: operator.matvecs(vs))
    held = found.held["layered"]
    assert held.own + 2 * held.further + 3 * risk.space.vector_bytes() == pytest.approx(measured, rel=0.2)


def test_a_count_takes_no_memory(compared):
    _, found = compared
    assert not found.reasons
    assert found.activations > found.scores >= found.score_chunk > 0


def test_encoder_and_decoder_are_each_counted_with_a_few_of_their_layers(monkeypatch):
    sizes = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 32, "encoder_layers": 6}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_layers": 5}
    with torch.device("meta"):
        model = BartForConditionalGeneration(BartConfig(**sizes, **heads)).eval()
    deepest = max(len(found.layers) for found in shallow_models(model, homes=at_home(model), ends=1))
    assert deepest == 5  # the first and the last of either, and one more
    named = dict(model.named_parameters())
    batches = [full_batch(model.config, "seq2seq-lm", rows=2, length=8)]
    given = {"names": list(named), "parameters": list(named.values()), "input_device": torch.device("meta")}
    counts, kinds = [], ("double-backward", "layered")
    for ends in (1, 0):  # a few layers, and all of them
        monkeypatch.setattr(working, "Sites", lambda *g, ends=ends, **n: Sites(*g, **n | {"ends": ends}))
        counts.append(working_set(EmpiricalRisk(model, batches, **given), num_experts=1, kinds=kinds, vectors=1))
    few, whole = counts
    assert {kind: few.held[kind].own for kind in kinds} == pytest.approx(
        {kind: whole.held[kind].own for kind in kinds}, rel=0.02
    )


def test_the_memory_of_topk_is_its_basis_and_the_product_s_own():
    model, vocab = model_of("8m")
    risk = risk_of(model, full_slice(1, 16, vocab), 1)
    operator = LayeredOperator(risk, find_stack(risk.first_row(most=32)))
    recipe, _ = resolve([("test", {"probe": "topk", "estimator.steps": 14, "estimator.k": 1})])
    demand = demands(recipe, dimension=risk.space.dimension, num_blocks=1, narrow=False)[0]
    held = working_set(shadow_of(model, risk), num_experts=1, kinds=("layered",), vectors=demand.together)
    known = [*model.parameters(), *model.buffers()]
    measured = peak_beside(
        known,
        lambda: topk(operator, k=1, which="both", max_steps=14, tolerance=1e-3, seed=0, on_event=ignore),
    )
    early = replace(demand, phases=demand.phases[:-1])  # so few steps do not converge: nothing is searched for
    predicted = predicted_bytes(early, risk.space.vector_bytes(), held.held["layered"])
    assert predicted == pytest.approx(measured, rel=0.2)


class DiagonalOperator:
    """Eight outliers above a narrow bulk; its product holds its result and nothing besides."""

    def __init__(self, dimension):
        self.space = ParameterSpace(["all"], [torch.empty(dimension)])
        self._diagonal = torch.cat([8 * 1.4 ** torch.arange(8.0), torch.linspace(-1, 1, dimension - 8)])

    def matvec(self, v):
        return [self._diagonal * v[0]]

    def matvecs(self, vs):
        return [self.matvec(v) for v in vs]


@pytest.mark.parametrize("words", ["full", "none"])
def test_the_memory_of_density_is_its_bases(words, monkeypatch):
    # What is read of a basis and drawn of a vector at a time is bounded: beside so small a space as small.
    monkeypatch.setattr("hesscli.linalg.basis._COLUMNS", 512)
    monkeypatch.setattr("hesscli.linalg.random._CHUNK", 512)
    operator = DiagonalOperator(20_000)
    given = {"estimator.probes": 4, "estimator.steps": 30, "estimator.reorthogonalise": words}
    recipe, _ = resolve([("test", {"probe": "density", **given})])
    demand = demands(recipe, dimension=20_000, num_blocks=1, narrow=False)[0]
    measured = peak_beside(
        [],
        lambda: density(
            operator,
            probes=4,
            steps=30,
            deflate=True,
            window=None if words == "full" else 0,
            semi_definite=False,
            noise=0.0,
            seed=0,
            on_event=ignore,
        ),
    )
    assert predicted_bytes(demand, operator.space.vector_bytes(), Held(0)) == pytest.approx(measured, rel=0.2)


def predicted_bytes(demand, vector, held):
    stages = [phase for phase in demand.phases if phase.name not in ("self-test", "data error")]
    return max(
        (phase.vectors + phase.together + phase.basis) * vector + held.own + held.further * (phase.together - 1)
        for phase in stages
    )


def test_a_view_of_a_weight_is_no_memory_and_a_copy_is():
    weight = torch.empty(64, 32, device="meta")
    with MetaBytes(num_experts=1, num_hit=1, most_positions=1) as count:
        weight.t()
        assert count.peak == 0
        copy = weight.t().contiguous()
        assert count.live == count.peak == 64 * 32 * 4
        del copy
        assert count.live == 0


def test_an_operation_that_was_seen_before_is_counted_again():
    with MetaBytes(num_experts=1, num_hit=1, most_positions=1) as count:
        x = torch.empty(8, 4, device="meta")
        made = [x.exp() for _ in range(3)]
        assert [y.shape for y in made] == [x.shape] * 3
        assert count.live == 4 * 8 * 4 * 4
        assert bool(x.any())
        assert len(x.nonzero()) == 1
