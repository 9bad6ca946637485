"""Kinds of adapters on a tiny model whose head is its embedding, and what they are by other code: merged, and dense."""

import re

import torch
from peft import IA3Config, LoraConfig, TrainableTokensConfig
from tiny import ragged_slice, tiny_model
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from hesscli.curvature.trust.wide import float64_throughout
from hesscli.data import IGNORED

RANK, ALPHA, TOKENS = 2, 6, [0, 3, 18]
QV = {"r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj", "v_proj"]}
# All of them in a model whose head is its embedding.
KINDS = {
    "queries and values": LoraConfig(**QV, lora_dropout=0.5),
    "of rank one": LoraConfig(**{**QV, "r": 1, "lora_alpha": ALPHA // RANK}),
    "every linear module": LoraConfig(**{**QV, "target_modules": "all-linear"}, use_rslora=True),
    "the embedding": LoraConfig(**{**QV, "target_modules": ["embed_tokens", "q_proj"]}),
    "the head": LoraConfig(**{**QV, "target_modules": ["lm_head", "v_proj"]}),
    "single tokens": LoraConfig(**QV, trainable_token_indices={"embed_tokens": TOKENS}),
    "single tokens alone": TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=TOKENS),
    "an embedding of its own": LoraConfig(**QV, modules_to_save=["embed_tokens"]),
    "ia3": IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"]),
}


def merged(base, own, scale):
    """The weights of a model without an adapter that computes the same; `own` by the names that they have in hess."""
    out = dict(base)
    for name, part in own.items():
        weight = re.split(r"\.(?:lora_|ia3_|token_adapter|trainable_tokens|modules_to_save)", name)[0] + ".weight"
        if ".lora_A." in name:
            out[weight] = out[weight] + scale * own[name.replace("lora_A", "lora_B")] @ part
        elif ".lora_embedding_A." in name:
            out[weight] = out[weight] + scale * (own[name.replace("embedding_A", "embedding_B")] @ part).T
        elif "ia3" in name:
            out[weight] = out[weight] * part
        elif "trainable_tokens" in name:
            for tied in (weight, "lm_head.weight"):
                out[tied] = out[tied].index_put((torch.tensor(TOKENS),), part)
        elif "modules_to_save" in name:
            out[weight] = part
    return out


class Dense:
    """Hessian and GGN of a merged model over the parts of an adapter, (n, n) float64, by autograd alone."""

    def __init__(self, kind, own):
        model = tiny_model("qwen3").double()
        model.get_input_embeddings().padding_idx = None  # torch would leave the pad token's row out of the derivative
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        base = {name: p.detach() for name, p in model.named_parameters()}
        scale = ALPHA / (RANK**0.5 if kind == "every linear module" else RANK)
        self._parts = [part.double().detach().requires_grad_() for part in own.values()]
        with float64_throughout():
            weights = merged(base, dict(zip(own, self._parts, strict=True)), scale)
            rows = []
            for row in ragged_slice().sequences:
                given = {"input_ids": row.inputs["input_ids"][None], "use_cache": False}
                found = functional_call(model, weights, kwargs=given).logits[0]
                rows.append((found[row.targets != IGNORED], row.targets[row.targets != IGNORED]))
            logits, targets = (torch.cat(parts) for parts in zip(*rows, strict=True))
            loss = functional.cross_entropy(logits, targets)
            gradient = self._rows(loss[None], create_graph=True)[0]
            self.loss, self.gradient = loss.item(), gradient.detach()
            self.hessian = self._rows(gradient)
            jacobian = self._rows(logits.flatten()).view(*logits.shape, -1)
        p = logits.detach().softmax(dim=-1)
        middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        self.ggn = torch.einsum("tci,tcd,tdj->ij", jacobian, middle, jacobian) / len(p)

    def _rows(self, entries, *, create_graph=False):
        """The Jacobian of some numbers with respect to the parts, (numbers, n)."""
        rows = []
        for start in range(0, len(entries), 128):
            units = torch.eye(len(entries), dtype=entries.dtype)[start : start + 128]
            parts = torch.autograd.grad(
                entries, self._parts, units, is_grads_batched=True, retain_graph=True, create_graph=create_graph,
                allow_unused=True, materialize_grads=True,
            )  # fmt: skip
            rows.append(torch.cat([part.reshape(len(units), -1) for part in parts], dim=1))
        return torch.cat(rows)
