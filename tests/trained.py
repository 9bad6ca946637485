"""The embedded checkpoint on its own text: a trained model that needs no download."""

import json

import torch
from tiny import risk_of, rows_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from hesscli.demo import checkpoint_folder, slice_file


def trained_risk(rows, length, *, dtype=torch.float32):
    """The risk of the final checkpoint on rows of `length` tokens, weights as rounded to `dtype`."""
    folder = checkpoint_folder("final")
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=dtype, attn_implementation="eager"
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    lines = slice_file().read_text(encoding="utf-8").splitlines()
    tokens = [t for line in lines for t in tokenizer(json.loads(line)["text"])["input_ids"]]
    return risk_of(model.eval(), rows_of(torch.tensor(tokens[: rows * length]).view(rows, length)), rows)
