"""Tiny random checkpoints of eight architectures, ragged rows, and the dense Hessian by other code."""

from functools import cache

import numpy as np
import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Qwen3Config,
)

from hesscli.curvature.risk import EmpiricalRisk
from hesscli.data import IGNORED, Sequence, Slice

VOCAB = 19
_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GATED = {**_COMMON, "intermediate_size": 8, "num_key_value_heads": 1, "head_dim": 4}
CONFIGS = {
    "llama": lambda: LlamaConfig(**_GATED, tie_word_embeddings=False),
    "qwen3": lambda: Qwen3Config(**_GATED, tie_word_embeddings=True),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB,
        n_embd=8,
        n_layer=2,
        n_head=2,
        n_positions=16,
        n_inner=10,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**_COMMON, intermediate_size=10),
    "gemma3": lambda: Gemma3TextConfig(**_GATED, sliding_window=4, query_pre_attn_scalar=4),
    "phi3": lambda: Phi3Config(**{k: v for k, v in _GATED.items() if k != "head_dim"}),
    "olmo2": lambda: Olmo2Config(**{k: v for k, v in _GATED.items() if k != "head_dim"}),
    "mixtral": lambda: MixtralConfig(**_GATED, num_local_experts=3, num_experts_per_tok=2),
}


def tiny_model(name, *, attention="eager"):
    """A random model in eval mode; the same weights at each call."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(
        CONFIGS[name](), attn_implementation=attention, experts_implementation="eager"
    )
    with torch.no_grad():  # zeros, which no trained row is: the norm behind it would have a curvature of 1e9
        model.get_input_embeddings().weight[0].normal_(0, 0.3)
    return model.float().eval()


def deep_llama(num_hidden_layers):
    """A Llama most of whose weights are in its layers; the same ones at each call."""
    torch.manual_seed(0)
    wide = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=VOCAB, **wide, num_hidden_layers=num_hidden_layers, initializer_range=0.1)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def tiny_opt(activation, *, ffn_dim=64, num_hidden_layers=2):
    """An OPT wide enough that a step of a difference crosses kinks, where its activation has any."""
    torch.manual_seed(0)
    kept = {k: v for k, v in _COMMON.items() if k not in ("num_hidden_layers", "hidden_size", "initializer_range")}
    config = OPTConfig(
        **{**kept, "max_position_embeddings": 64},
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=ffn_dim,
        num_hidden_layers=num_hidden_layers,
        activation_function=activation,
        init_std=0.3,
    )
    return OPTForCausalLM(config).eval()


def rows_of(ids):
    """A slice of rows of one length, (rows, tokens): the next token at each place."""
    rows = [Sequence({"input_ids": row}, torch.cat([row[1:], torch.tensor([IGNORED])])) for row in ids]
    return Slice(tuple(rows), id="rows")


def ragged_slice(lengths=(5, 11, 3, 9, 7), *, seed=3):
    """Rows of different lengths, one of them with masked labels."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number, length in enumerate(lengths):
        ids = torch.randint(0, VOCAB, (length,), generator=generator)
        ids[-2] = 0  # the pad token as a real one, as the end of text is in packed rows
        targets = torch.cat([ids[1:], torch.tensor([IGNORED])])
        if number == 1:
            targets[:4] = IGNORED
        rows.append(Sequence({"input_ids": ids}, targets))
    return Slice(tuple(rows), id="ragged")


def risk_of(model, data, batch_size, only=None):
    """The risk over the parameters whose name `only` accepts."""
    named = {n: p for n, p in model.named_parameters() if only is None or only(n)}
    return EmpiricalRisk(
        model,
        list(data.batches(batch_size)),
        names=list(named),
        parameters=list(named.values()),
        input_device=torch.device("cpu"),
    )


def flat(vector):
    """A vector as one float64 array, for comparison with dense truth."""
    return torch.cat([p.detach().reshape(-1) for p in vector]).double().numpy()


def unflat(array, space):
    """The reverse."""
    parts, start = [], 0
    for shape, numel in zip(space.shapes, space.numels, strict=True):
        parts.append(torch.tensor(array[start : start + numel], dtype=torch.float32).reshape(shape))
        start += numel
    return parts


def plain_loss(model, data):
    """The mean over loss terms, row by row without padding: none of hess's code."""
    total, count = 0.0, 0
    for row in data.sequences:
        logits = model(row.inputs["input_ids"][None], use_cache=False).logits[0]
        keep = row.targets != IGNORED
        total = total + functional.cross_entropy(logits[keep].float(), row.targets[keep], reduction="sum")
        count += int(keep.sum())
    return total / count


@cache
def dense_hessian(name):
    """The dense Hessian of a tiny model on the ragged slice, (n, n) float64, 64 rows at a time."""
    model, data = tiny_model(name), ragged_slice()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None  # torch would leave the pad token's row out of the derivative
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(plain_loss(model, data), parameters, create_graph=True)
    entries = torch.cat([part.reshape(-1) for part in gradient])
    rows = []
    for start in range(0, entries.numel(), 64):  # 64 rows of the Jacobian of the gradient at a time
        units = torch.eye(entries.numel())[start : start + 64]
        parts = torch.autograd.grad(
            entries, parameters, units, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
        shapes = [(len(units), *p.shape) for p in parameters]
        rows.append(
            torch.cat(
                [
                    (torch.zeros(s) if part is None else part).reshape(len(units), -1)
                    for s, part in zip(shapes, parts, strict=True)
                ],
                dim=1,
            )
        )
    return torch.cat(rows).double().numpy()


def spectrum_of(name):
    """The dense Hessian's eigenvalues, rising."""
    dense = dense_hessian(name)
    return np.linalg.eigvalsh((dense + dense.T) / 2)
