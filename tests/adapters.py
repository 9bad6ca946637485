"""Random adapters of PEFT beside tiny models, saved as their trainers save them."""

import torch
from peft import get_peft_model
from tiny import tiny_model


def save_adapter(folder, base, config, *, name="qwen3", fresh=False):
    """A random adapter of this kind in `folder` for the tiny model `name`, saved in `base`.

    Nothing of it is zero, unless it is to be `fresh`, as it is before its first step.
    """
    torch.manual_seed(1)
    model = get_peft_model(tiny_model(name), config)
    for p in (p for p in model.parameters() if p.requires_grad and not fresh):
        torch.nn.init.normal_(p, std=0.3)
    config.base_model_name_or_path = str(base)
    model.save_pretrained(folder)
