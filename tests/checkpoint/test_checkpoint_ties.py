"""Weights that a config ties: one parameter where the file has one, and a refusal where it has two that differ."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5ForConditionalGeneration, T5GemmaConfig, T5GemmaForConditionalGeneration

from hesscli.errors import UnavailableError

GEMMA = {
    "vocab_size": 24,
    "hidden_size": 8,
    "intermediate_size": 10,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "query_pre_attn_scalar": 4,
}


def test_a_head_that_is_tied_to_the_decoder_alone_is_no_broken_tie(load, tmp_path):
    # Its input embedding by name is the encoder's, which is another one in every such checkpoint.
    config = T5GemmaConfig(encoder=GEMMA, decoder={**GEMMA, "cross_attention_hidden_size": 8}, vocab_size=24)
    model = T5GemmaForConditionalGeneration(config)
    model.save_pretrained(tmp_path / "t5gemma")
    found = load(tmp_path / "t5gemma")
    assert found.identity.tied
    assert found.identity.num_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"])
def test_a_tie_between_embeddings_that_is_broken_in_the_file_is_refused(load, tmp_path, name):
    config = T5Config(vocab_size=24, d_model=8, d_kv=4, d_ff=10, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    file = tmp_path / "t5" / "model.safetensors"
    save_file({**load_file(file), name: torch.ones(24, 8)}, file, metadata={"format": "pt"})
    with pytest.raises(UnavailableError, match=f"ties {name} to shared.weight, but they are two different weights"):
        load(tmp_path / "t5")
