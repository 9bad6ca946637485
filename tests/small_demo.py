"""A stand-in for the embedded checkpoint, for tests of what becomes of a run and not of its figures.

The same names, revisions, tokenizer and text as `demo`, with random weights a hundredth in number: a run of it takes a
third of the time.
"""

import json
import shutil

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from hesscli.demo import REVISIONS, checkpoint_folder, slice_file

_SMALLER = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "layer_types": ["full_attention"] * 2,
    "initializer_range": 0.3,
}


def write_small_demo(folder):
    """Fill a folder with what `hesscli.demo` finds beside itself, and return it."""
    for seed, revision in enumerate(REVISIONS):
        home = folder / "checkpoints" / revision
        shutil.copytree(checkpoint_folder(revision), home, ignore=shutil.ignore_patterns("model.safetensors"))
        config = json.loads((home / "config.json").read_text(encoding="utf-8"))
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(Qwen3Config(**{**config, **_SMALLER})).float().save_pretrained(home)
    shutil.copy(slice_file(), folder)
    return folder
