"""Random adapters of PEFT beside tiny models, saved as their trainers save them."""

import json

import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from tiny import tiny_model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


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


def edit(folder, **changes):
    """Change these keys of an adapter's config."""
    file = folder / CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def restore(folder, change):
    """Save an adapter's weights again as `change` leaves them, a dictionary by name."""
    stored = load_file(folder / WEIGHTS)
    change(stored)
    save_file(stored, folder / WEIGHTS)
