"""Tiny models over ranks, and the same ones in one process."""

import torch
from tiny import CONFIGS, ragged_slice, tiny_model
from torch import nn
from transformers import LlamaForCausalLM

from hesscli.checkpoint.sharding import shard, to_device, without_weights
from hesscli.curvature.sharded.risk import ShardedRisk


class GainedLlama(LlamaForCausalLM):
    """With one number more, which a second rank has nothing of."""

    def __init__(self, config):
        super().__init__(config)
        self.gain = nn.Parameter(torch.tensor([1.3]))

    def forward(self, input_ids=None, attention_mask=None, **given):
        out = super().forward(input_ids=input_ids, attention_mask=attention_mask, **given)
        out.logits = out.logits * self.gain
        return out


def model_of(name):
    """One of `tiny.CONFIGS`, or `gained`."""
    if name != "gained":
        return tiny_model(name)
    torch.manual_seed(7)
    config = CONFIGS["llama"]()
    config._attn_implementation = "eager"
    model = GainedLlama(config).float().eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[0].normal_(0, 0.3)
    return model


def sharded_risk(ranks, name, batch_size=2, lengths=(5, 11, 3, 9, 7), only=None):
    """The risk of `tiny.risk_of` over ranks, with the first rank's weights."""
    return shared(ranks, model_of(name), list(ragged_slice(lengths).batches(batch_size)), only or "")


def shared(ranks, whole, batches, only=""):
    """The risk of a model on batches over ranks, with the first rank's weights."""
    model = without_weights(whole)
    bare = without_weights(model)
    to_device(bare, ranks)
    shard(model, whole if ranks.rank == 0 else None, ranks, reads={})
    named = {n: p for n, p in model.named_parameters() if only in n}
    return ShardedRisk(
        model,
        batches,
        names=list(named),
        parameters=list(named.values()),
        input_device=torch.device("cpu"),
        ranks=ranks,
        bare=bare,
    )


def whole_vector(space, v):
    """A vector's parts, whole, as one list of arrays."""
    return [space.whole(i, part).double().numpy() for i, part in enumerate(v)]
