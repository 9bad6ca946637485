"""The layered product: exact, below a gradient's memory, and it gives way where it does not understand."""

import gc
import weakref

import numpy as np
import pytest
import torch
from tiny import CONFIGS, dense_hessian, flat, ragged_slice, risk_of, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM

from hesscli.curvature.choice import choose_product
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.layered import LayeredHessianOperator
from hesscli.curvature.stack import UnknownStructureError, find_stack
from hesscli.data import Sequence, Slice


def layered(risk):
    return LayeredHessianOperator(risk, find_stack(risk.model, risk.batches[0]))


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_product_is_the_dense_hessian_times_the_vector(name, batch_size):
    risk = risk_of(tiny_model(name), ragged_slice(), batch_size)
    v = risk.space.random("gaussian", seed=0, index=0)
    assert relative(flat(layered(risk).matvec(v)), dense_hessian(name) @ flat(v)) < 1e-5


@pytest.mark.parametrize("only", [".mlp.", "embed_tokens", "layers.1", "norm"])
def test_selected_parameters_give_the_diagonal_block(only):
    risk = risk_of(tiny_model("qwen3"), ragged_slice(), 2, only=lambda n: only in n)
    v = risk.space.random("gaussian", seed=0, index=0)
    truth = flat(HessianOperator(risk, keep_graph=False).matvec(v))
    assert relative(flat(layered(risk).matvec(v)), truth) < 1e-5


def test_the_head_in_chunks_of_one_token_gives_the_same_product(monkeypatch):
    monkeypatch.setattr("hesscli.curvature.layered._CHUNK_TOKENS", 1)
    risk = risk_of(tiny_model("gemma3"), ragged_slice(), 2)
    v = risk.space.random("gaussian", seed=0, index=0)
    assert relative(flat(layered(risk).matvec(v)), dense_hessian("gemma3") @ flat(v)) < 1e-5


def test_the_model_is_left_as_it_was():
    model = tiny_model("llama")
    risk = risk_of(model, ragged_slice(), 2)
    before = [p.detach().clone() for p in model.parameters()]
    layered(risk).matvec(risk.space.random("gaussian", seed=0, index=0))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all("forward" not in layer.__dict__ for layer in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_custom_function_without_a_forward_derivative_gives_way_with_a_reason():
    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=19, hidden_size=8, n_layer=2, n_head=2)).eval()
    risk = risk_of(model, ragged_slice(), 2)
    choice = choose_product(risk, product="layered")
    assert choice.product == "double-backward"
    assert "layered is not possible" in choice.why


def test_a_layer_that_runs_twice_is_refused():
    model = tiny_model("llama")
    model.model.layers[1] = model.model.layers[0]
    with pytest.raises(UnknownStructureError, match="twice"):
        find_stack(model, next(ragged_slice().batches(1)))


def test_something_between_layers_is_refused():
    model = tiny_model("llama")
    forward = model.model.layers[1].forward
    model.model.layers[1].forward = lambda h, **rest: forward(h * 1.0, **rest)
    find_stack(model, next(ragged_slice().batches(1)))  # inside the layer it is the layer's own business
    original = model.model.layers[0].__class__.__call__
    try:
        model.model.layers[0].__class__.__call__ = lambda self, h, **rest: original(self, h * 1.0, **rest)
        with pytest.raises(UnknownStructureError, match="between"):
            find_stack(model, next(ragged_slice().batches(1)))
    finally:
        model.model.layers[0].__class__.__call__ = original


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages made under it and still alive, and their peak."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage):
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key, size):
        self._seen.discard(key)
        self.live -= size


def peak_of(work):
    gc.collect()
    with LiveBytes() as count:
        work()
    return count.peak


@pytest.mark.slow
def test_a_product_needs_less_memory_than_a_gradient():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 8192, (8, 256))
    rows = [Sequence({"input_ids": r}, torch.cat([r[1:], torch.tensor([-100])])) for r in ids]
    risk = risk_of(model, Slice(tuple(rows), id="x"), 8)
    v = risk.space.random("gaussian", seed=0, index=0)
    operator, result = layered(risk), risk.space.vector_bytes()
    gradient = peak_of(risk.gradient) - result
    product = peak_of(lambda: operator.matvec(v)) - result
    assert product <= 0.75 * gradient
