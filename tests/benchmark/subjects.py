"""What is measured: a model with one batch, and the vector that every product is taken along."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from hesscli.checkpoint import load_checkpoint
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.data import IGNORED, Batch, load_slice
from hesscli.demo import slice_file
from hesscli.run.slices import requirements


@dataclass(frozen=True)
class Subject:
    """A model in eval mode with eager attention, and one batch whose rows are all of one length."""

    name: str
    model: nn.Module
    batch: Batch

    def __post_init__(self):
        # torch leaves an embedding's padding_idx out of every gradient, real tokens of that id included. The
        # double backward then holds that row fixed and a finite difference does not: two different matrices.
        for module in self.model.modules():
            if isinstance(module, nn.Embedding):
                module.padding_idx = None

    def own_model(self):
        """A copy: finite differences change weights in place, which voids a graph kept over them."""
        return deepcopy(self.model)

    def risk(self):
        """The risk over all parameters, on a copy of the model."""
        model = self.own_model()
        named = dict(model.named_parameters())
        return EmpiricalRisk(
            model,
            [self.batch],
            names=list(named),
            parameters=list(named.values()),
            input_device=torch.device("cpu"),
        )

    def direction(self):
        """One random unit vector, part by part."""
        space = self.risk().space
        v = space.random("gaussian", seed=0, index=0)
        space.scale(1.0 / space.norm(v), v)
        return v

    def __str__(self):
        rows, length = self.batch.targets.shape
        parameters = sum(p.numel() for p in self.model.parameters())
        return f"{self.name}, {parameters / 1e6:.2f}M parameters, {rows} x {length} tokens"


def demo():
    """The embedded checkpoint and the first rows of its slice."""
    checkpoint = load_checkpoint(
        "demo",
        revision=None,
        task="auto",
        dtype="float32",
        attention="auto",
        placement="auto",
        device_map={"": "cpu"},
        max_memory=None,
        offload_dir=None,
        trust_remote_code=False,
        allow_pickle=False,
        offline=True,
        on_event=_ignore,
    )
    data = load_slice(
        str(slice_file()),
        name="demo",
        config_name=None,
        split="train",
        column=None,
        revision=None,
        limit=8,
        max_length=128,
        pack=True,
        target_column=None,
        mask_prompt=None,
        seed=0,
        model=requirements(checkpoint),
        offline=True,
        on_event=_ignore,
    )
    (batch,) = data.batches(8)
    return Subject("demo", checkpoint.model, batch)


def llama():
    """A random model of 8M parameters on random tokens."""
    torch.manual_seed(0)
    vocab = 8192
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    ids = torch.randint(vocab, (4, 256))
    targets = torch.cat([ids[:, 1:], torch.full((4, 1), IGNORED)], dim=1)
    return Subject("8m", model, Batch({"input_ids": ids}, targets))


SUBJECTS = {"demo": demo, "8m": llama}


def _ignore(event):
    """Progress is not shown."""
