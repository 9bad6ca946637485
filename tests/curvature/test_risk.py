"""The risk: sums over terms, one division, and scores of a large vocabulary taken chunk by chunk."""

import pytest
import torch
from breadth.subjects import SUBJECTS
from live_bytes import peak_of
from tiny import flat, plain_loss, ragged_slice, risk_of, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from hesscli.curvature.risk import EmpiricalRisk
from hesscli.data import Sequence, Slice


@pytest.mark.parametrize("entries", [1, 19 * 4, 1 << 23])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gemma3"])
def test_loss_and_gradient_do_not_depend_on_the_chunks_of_the_head(name, entries, monkeypatch):
    monkeypatch.setattr("hesscli.curvature.losses._CHUNK_ENTRIES", entries)
    model, data = tiny_model(name), ragged_slice()
    risk = risk_of(model, data, 3)
    mean = plain_loss(model, data)
    assert risk.loss().value == pytest.approx(float(mean), rel=1e-6)
    gradient = torch.autograd.grad(mean, risk.parameters)
    torch.testing.assert_close(flat(risk.gradient()), flat(gradient), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "t5", "bart", "marian", "llama/classes", "vit"])
def test_other_tasks_have_the_same_gradient_in_chunks(name, monkeypatch):
    subject = SUBJECTS[name]
    model, batch = subject.build(), subject.batch()
    named = dict(model.named_parameters())
    risk = EmpiricalRisk(
        model, [batch], names=list(named), parameters=list(named.values()), input_device=torch.device("cpu")
    )
    whole, loss = flat(risk.gradient()), risk.loss().value
    monkeypatch.setattr("hesscli.curvature.losses._CHUNK_ENTRIES", 1)
    assert risk.on(risk.batches).loss().value == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(flat(risk.on(risk.batches).gradient()), whole, rtol=1e-4, atol=1e-6)


def test_weights_given_stand_in_for_the_models_own_in_chunks_too(monkeypatch):
    model, data = tiny_model("qwen3"), ragged_slice()
    risk = risk_of(model, data, 5)
    generator = torch.Generator().manual_seed(0)
    moved = [p.detach() + 0.1 * torch.randn(p.shape, generator=generator) for p in risk.parameters]
    weights = dict(zip(risk.space.names, [m.requires_grad_() for m in moved], strict=True))
    whole, chunked = risk.space.zeros(), risk.space.zeros()
    risk.add_gradient(risk.batches[0], moved, whole, weights)
    monkeypatch.setattr("hesscli.curvature.losses._CHUNK_ENTRIES", 1)
    risk.add_gradient(risk.batches[0], moved, chunked, weights)
    torch.testing.assert_close(flat(chunked), flat(whole), rtol=1e-4, atol=1e-6)
    assert risk.space.norm(chunked) != pytest.approx(risk.num_terms * risk.space.norm(risk.gradient()), rel=1e-3)


def test_the_scores_of_a_vocabulary_of_150_thousand_are_never_whole():
    vocabulary, rows, length = 151936, 4, 128
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        attn_implementation="eager",
    )
    ids = torch.randint(0, vocabulary, (rows, length))
    data = [Sequence({"input_ids": r}, torch.cat([r[1:], torch.tensor([-100])])) for r in ids]
    risk = risk_of(LlamaForCausalLM(config).eval(), Slice(tuple(data), id="x"), rows)
    scores = 4 * rows * length * vocabulary
    assert peak_of(risk.loss) < 0.5 * scores
    assert peak_of(risk.gradient) < 0.5 * scores + 4 * risk.space.vector_bytes()
