"""Models of the shapes of a family by their configs, with random weights that are made where they stay."""

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from hesscli.curvature.risk import EmpiricalRisk
from hesscli.data import IGNORED, Batch

# Qwen3-1.7B's config.json, and one that a test runs on the host.
SHAPES = {
    "qwen3-1.7b": (
        {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151_936,
        },
        1024,
    ),
    "tiny": (
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "vocab_size": 256,
        },
        16,
    ),
}


def model_on(device, shape, dtype, *, layers=None):
    """A random model in eval mode with eager attention and tied embeddings; `meta` makes none of its weights."""
    config, _ = SHAPES[shape]
    changed = config if layers is None else {**config, "num_hidden_layers": layers}
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            Qwen3Config(**changed, tie_word_embeddings=True), attn_implementation="eager", dtype=dtype
        )
    return model.eval()


def batch_of(shape):
    """One row of random tokens, on the host."""
    config, length = SHAPES[shape]
    ids = torch.randint(config["vocab_size"], (1, length), generator=torch.Generator().manual_seed(0))
    targets = torch.cat([ids[:, 1:], torch.full((1, 1), IGNORED)], dim=1)
    return Batch({"input_ids": ids}, targets)


def risk_of(model, batch, device):
    """The risk over all parameters."""
    named = dict(model.named_parameters())
    return EmpiricalRisk(
        model, [batch], names=list(named), parameters=list(named.values()), input_device=torch.device(device)
    )


def unit(space, index=0):
    """A random unit vector."""
    v = space.random("gaussian", seed=0, index=index)
    space.scale(1.0 / space.norm(v), v)
    return v


def distance(parts, truth):
    """||parts - truth|| / ||truth||, part by part where the first ones are."""
    squares = whole = 0.0
    for part, t in zip(parts, truth, strict=True):
        t = t.to(part.device)
        squares += float((part - t).double().square().sum())
        whole += float(t.double().square().sum())
    return (squares / whole) ** 0.5
