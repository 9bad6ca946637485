"""Known answers: found without names, confirmed by the loss, true in float64, and never guessed."""

import numpy as np
import pytest
import torch
from tiny import CONFIGS, VOCAB, flat, ragged_slice, risk_of, tiny_model
from transformers import AutoModelForCausalLM, Gemma2Config
from wide import float64_product

from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import EmpiricalFisherOperator, GGNOperator
from hesscli.curvature.symmetries import find_symmetry
from hesscli.curvature.symmetries.axes import Axis
from hesscli.curvature.symmetries.layouts import fused_scores, scores, through
from hesscli.curvature.symmetries.orbit import Orbit
from hesscli.curvature.symmetries.search import Member, Scaling, Shift
from hesscli.data import IGNORED, Sequence, Slice

GATED = {
    "v_proj~o_proj",
    "q_proj~k_proj",
    "up_proj~down_proj",
    "input_layernorm~q_proj~k_proj~v_proj",
    "post_attention_layernorm~gate_proj~up_proj",
}
NORMED = (GATED - {"q_proj~k_proj"}) | {"q_norm~k_norm"}
HEAD = {"norm~lm_head", "shift lm_head"}
KINDS = {
    "llama": GATED | HEAD,
    "qwen3": NORMED,
    "gpt2": {"c_attn~c_proj", "c_attn", "ln_1~c_attn", "ln_2~c_fc"},
    "gpt_neox": {
        "query_key_value~dense",
        "query_key_value",
        "input_layernorm~query_key_value",
        "post_attention_layernorm~dense_h_to_4h",
        "final_layer_norm~lm_head",
        "shift lm_head",
    },
    "gemma3": (NORMED - {"post_attention_layernorm~gate_proj~up_proj"})
    | {"pre_feedforward_layernorm~gate_proj~up_proj"},
    "phi3": {
        "qkv_proj~o_proj",
        "qkv_proj",
        "gate_up_proj~down_proj",
        "input_layernorm~qkv_proj",
        "post_attention_layernorm~gate_up_proj",
    }
    | HEAD,
    "olmo2": {"v_proj~o_proj", "q_norm~k_norm", "up_proj~down_proj"} | HEAD,
    "mixtral": {
        "v_proj~o_proj",
        "q_proj~k_proj",
        "gate_up_proj~down_proj",
        "input_layernorm~q_proj~k_proj~v_proj",
        "post_attention_layernorm~gate~gate_up_proj",
    }
    | HEAD,
}


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def last(name):
    return name.removesuffix(".weight").split(".")[-1]


def kinds(symmetry):
    """What the field is the sum of, by the last part of names; one weight twice stands once."""
    return {
        f"shift {last(c.axis.weight)}"
        if isinstance(c, Shift)
        else "~".join(dict.fromkeys(last(m.axis.weight) for m in c.members))
        for c in symmetry.candidates
    }


def found(risk, seed=0):
    return find_symmetry(risk, risk.gradient(), seed=seed)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_symmetries_of_an_architecture_are_found_without_their_names(name):
    risk = risk_of(tiny_model(name), ragged_slice(), 5)
    symmetry = found(risk)
    assert kinds(symmetry) == KINDS[name]
    for candidate in symmetry.candidates:  # in every layer, or in the head
        assert isinstance(candidate, Shift) or candidate.prefixes == ("",) or len(candidate.prefixes) == 2


@pytest.mark.parametrize("name", CONFIGS)
def test_the_hessian_in_float64_gives_the_known_answer(name):
    risk = risk_of(tiny_model(name), ragged_slice(), 5)
    symmetry = found(risk)
    answer = flat(symmetry.answer(risk, risk.gradient()))
    assert np.linalg.norm(answer) > 0
    assert relative(float64_product(name)(symmetry.direction(risk)), answer) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mixtral"])
def test_bfloat16_has_the_same_symmetries(name):
    assert kinds(found(risk_of(tiny_model(name).bfloat16(), ragged_slice(), 5))) == KINDS[name]


@pytest.mark.parametrize("kind", [GGNOperator, EmpiricalFisherOperator])
def test_semi_definite_matrices_are_zero_along_it(kind):
    risk = risk_of(tiny_model("llama"), ragged_slice(), 5)
    operator, hessian = kind(risk), HessianOperator(risk, keep_graph=True)
    direction = found(risk).direction(risk)
    random = risk.space.random("gaussian", seed=5, index=0)
    risk.space.scale(risk.space.norm(direction) / risk.space.norm(random), random)
    assert risk.space.norm(operator.matvec(direction)) < 1e-5 * risk.space.norm(operator.matvec(random))
    # The Hessian is not: the two must not be mixed up.
    assert risk.space.norm(hessian.matvec(direction)) > 1e3 * risk.space.norm(operator.matvec(direction))


def test_rows_of_an_untied_head_may_be_shifted_together():
    risk = risk_of(tiny_model("llama"), ragged_slice(), 5)
    place = risk.space.names.index("lm_head.weight")
    shift = risk.space.zeros()
    shift[place] += torch.randn(8, generator=torch.Generator().manual_seed(0))
    random = risk.space.random("gaussian", seed=5, index=0)
    product = float64_product("llama")
    assert np.linalg.norm(product(shift)) < 1e-9 * np.linalg.norm(product(random))
    assert abs(risk.space.inner(risk.gradient(), shift)) < 1e-6


def test_a_soft_cap_takes_the_shift_of_the_head_away():
    torch.manual_seed(3)
    config = Gemma2Config(
        vocab_size=VOCAB,
        hidden_size=8,
        intermediate_size=10,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        initializer_range=0.3,
        tie_word_embeddings=False,
        final_logit_softcapping=2.0,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    assert kinds(found(risk_of(model, ragged_slice(), 5))) >= {"norm~lm_head"}
    assert "shift lm_head" not in kinds(found(risk_of(model, ragged_slice(), 5)))


def planted(risk, first, second, layout, prefixes=("model.layers.0.", "model.layers.1.")):
    members = (Member(Axis(first, (0,)), layout.first, 1.0), Member(second, layout.second, -1.0))
    return Scaling(prefixes, members, layout.num_channels)


def test_planted_candidates_are_refused_and_true_ones_change_no_bit(monkeypatch):
    monkeypatch.setattr("hesscli.curvature.symmetries.orbit._SAME", 0.0)
    for model in (tiny_model("llama"), tiny_model("llama").bfloat16()):
        risk = risk_of(model, ragged_slice(), 5)
        weights = {n: p.detach() for n, p in zip(risk.space.names, risk.parameters, strict=True)}
        orbit = Orbit(risk.first_row(), weights, seed=0)
        reader = Axis("self_attn.o_proj.weight", (1,))
        # Four values, read by two heads: of widths 1, 2 and 4, which is the one that this model has.
        values = [planted(risk, "self_attn.v_proj.weight", reader, layout) for layout in through(4, 8)]
        assert [orbit.unchanged([candidate]) for candidate in values[:3]] == [False, False, True]
        # A channel for itself, halves of widths 2 and 4, whole heads of widths 2 and 4: rotated are halves of 4.
        key = Axis("self_attn.k_proj.weight", (0,))
        meeting = {
            (layout.num_channels, tuple(layout.second)): planted(risk, "self_attn.q_proj.weight", key, layout)
            for layout in scores(8, 4)
        }
        kept = [channels for channels, candidate in meeting.items() if orbit.unchanged([candidate])]
        assert (2, (0, 1, 0, 1)) in kept
        assert (2, (0, 0, 1, 1)) not in kept
        assert not any(channels[0] == 4 for channels in kept)
        gate = planted(risk, "mlp.gate_proj.weight", Axis("mlp.down_proj.weight", (1,)), next(through(8, 8)))
        assert not orbit.unchanged([gate])
        up = planted(risk, "mlp.up_proj.weight", Axis("mlp.down_proj.weight", (1,)), next(through(8, 8)))
        assert orbit.unchanged([values[2], up])
        assert not orbit.unchanged([values[2], up, gate])
        # One that fails takes none with it, and of alternatives the first that holds is taken.
        assert orbit.confirmed([[gate], [values[0], values[2]], [up]]) == [values[2], up]


def test_queries_keys_and_values_in_one_axis():
    # Two groups of two query heads with a key and a value each, width 3: q q k v | q q k v.
    values = {tuple(layout.first.tolist()) for layout in through(24, 12)}
    assert (*[-1] * 9, 0, 1, 2, *[-1] * 9, 3, 4, 5) in values  # group by group
    assert (*[-1] * 18, 0, 1, 2, 3, 4, 5) in values  # in blocks
    heads = {(tuple(s.first.tolist()), tuple(s.second.tolist())) for s in fused_scores(24, 12)}
    first = (*[0] * 6, *[-1] * 6, *[1] * 6, *[-1] * 6)
    second = (*[-1] * 6, 0, 0, 0, *[-1] * 9, 1, 1, 1, *[-1] * 3)
    assert (first, second) in heads


def bent(model):
    """The same model with something that is not linear between up and down projections."""
    for layer in model.model.layers:
        layer.mlp.up_proj.register_forward_hook(lambda _m, _i, out: torch.tanh(out))
    return model


def test_a_direction_along_which_the_loss_changes_is_not_used():
    expected = KINDS["llama"] - {"up_proj~down_proj"}
    assert kinds(found(risk_of(bent(tiny_model("llama")), ragged_slice(), 5))) == expected


def test_all_weights_that_take_part_must_be_selected():
    model = tiny_model("llama")
    assert found(risk_of(model, ragged_slice(), 5, only=lambda n: "up_proj" in n)) is None
    assert found(risk_of(model, ragged_slice(), 5, only=lambda n: "layernorm" in n or "gate_proj" in n)) is None
    one = found(risk_of(model, ragged_slice(), 5, only=lambda n: "layers.1.mlp" in n))
    assert kinds(one) == {"up_proj~down_proj"}
    assert {name.split(".")[2] for name in one.fields} == {"1"}


def test_a_first_row_without_a_term_confirms_nothing():
    # Its loss is zero along every direction, symmetry or not: here one that the other rows' gradient proposes.
    data = ragged_slice()
    first = Sequence(data.sequences[0].inputs, torch.full_like(data.sequences[0].targets, IGNORED))
    risk = risk_of(tiny_model("llama"), Slice((first, *data.sequences[1:]), id="masked first"), 5)
    weights = {n: p.detach() for n, p in zip(risk.space.names, risk.parameters, strict=True)}
    gate = planted(risk, "mlp.gate_proj.weight", Axis("mlp.down_proj.weight", (1,)), next(through(8, 8)))
    assert not Orbit(risk.first_row(), weights, seed=0).unchanged([gate])
    assert kinds(found(risk)) == KINDS["llama"]
