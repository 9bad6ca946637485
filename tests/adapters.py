"""Random adapters of PEFT beside tiny models, saved as their trainers save them."""

import torch
from peft import get_peft_model
from tiny import tiny_model


def save_adapter(folder, base, config, *, name="qwen3"):
    """A random adapter of this kind in `folder` for the tiny model `name`, saved in `base`; nothing of it is zero."""
    torch.manual_seed(1)
    model = get_peft_model(tiny_model(name), config)
    for p in (p for p in model.parameters() if p.requires_grad):
        torch.nn.init.normal_(p, std=0.3)
    config.base_model_name_or_path = str(base)
    model.save_pretrained(folder)
