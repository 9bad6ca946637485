# ruff: noqa: E501 - one kind, one row
"""Kinds and settings of adapters: logits and what is trained are those of PEFT's own model, which loads them again."""

import copy

import pytest
import torch
from adapters import save_adapter
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    FourierFTConfig,
    HRAConfig,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    RandLoraConfig,
)
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from hesscli.errors import UnavailableError

QV = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
LORA = {**QV, "lora_alpha": 6}
GPT2 = {"r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True}
KINDS = {
    "biases of its layers": ("gpt2", LoraConfig(**GPT2, bias="lora_only")),
    "all biases": ("gpt2", LoraConfig(**GPT2, bias="all")),
    "biases of low ranks": ("gpt2", LoraConfig(**GPT2, lora_bias=True)),
    "ranks and scales by name": (
        "llama",
        LoraConfig(**LORA, rank_pattern={"layers.0.self_attn.q_proj": 3}, alpha_pattern={"v_proj": 11}),
    ),
    "some modules left out": ("llama", LoraConfig(r=2, target_modules="all-linear", exclude_modules=["down_proj"])),
    "scaled by the root of the rank": ("llama", LoraConfig(**LORA, use_rslora=True)),
    "some layers": ("llama", LoraConfig(**LORA, layers_to_transform=[1], layers_pattern="layers")),
    "some tokens of an untied embedding": ("llama", LoraConfig(**LORA, trainable_token_indices=[1, 3])),
    "a low rank of a tied head too": (
        "qwen3",
        LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True),
    ),
    "embedding and tied head saved as one": (
        "qwen3",
        LoraConfig(**LORA, modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=True),
    ),
    "embedding and tied head saved as two": (
        "qwen3",
        LoraConfig(**LORA, modules_to_save=["embed_tokens", "lm_head"]),
    ),
    "from a principal part of the base": ("llama", LoraConfig(**LORA, init_lora_weights="pissa")),
    "LoHa": ("llama", LoHaConfig(**QV, alpha=6)),
    "LoKr": ("llama", LoKrConfig(**QV, alpha=6)),
    "OFT": ("llama", OFTConfig(r=2, oft_block_size=0, target_modules=["q_proj"])),
    "BOFT": ("llama", BOFTConfig(boft_block_size=2, target_modules=["q_proj"])),
    "HRA": ("llama", HRAConfig(r=2, target_modules=["q_proj"])),
    "FourierFT": ("llama", FourierFTConfig(n_frequency=5, target_modules=["q_proj"])),
    "AdaLoRA": ("llama", AdaLoraConfig(init_r=2, target_r=2, total_step=9, tinit=1, tfinal=2, target_modules=["q_proj"])),
    "RandLoRA with bases by seed": ("llama", RandLoraConfig(r=2, target_modules=["q_proj"], save_projection=False)),
    "norms": ("llama", LNTuningConfig(target_modules=["input_layernorm", "norm"])),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a tiny model."""
    folder = tmp_path_factory.mktemp("bases")

    def saved(name):
        if not (folder / name).exists():
            tiny_model(name).save_pretrained(folder / name)
        return folder / name

    return saved


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_computes_what_it_does_for_its_trainer(load, base, kind, tmp_path):
    name, config = copy.deepcopy(KINDS[kind])
    save_adapter(tmp_path / "adapter", base(name), config, name=name)
    ours = load(tmp_path / "adapter")
    fresh = AutoModelForCausalLM.from_pretrained(base(name), attn_implementation="eager")
    theirs = PeftModel.from_pretrained(fresh, tmp_path / "adapter", is_trainable=True).eval()
    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    with torch.no_grad():
        wanted = theirs(input_ids=ids).logits
        assert torch.allclose(ours.model(input_ids=ids).logits, wanted, atol=1e-6)
        with theirs.disable_adapter():  # which an adapter that was put nowhere would give
            assert not torch.allclose(theirs(input_ids=ids).logits, wanted, atol=1e-2)
    trained = {name.removeprefix("base_model.model.") for name, p in theirs.named_parameters() if p.requires_grad}
    assert set(ours.adapter_parameters) == trained


def test_bases_that_were_saved_apart_from_layers_are_refused(load, base, tmp_path):
    save_adapter(tmp_path / "adapter", base("llama"), RandLoraConfig(r=2, target_modules=["q_proj"]), name="llama")
    with pytest.raises(UnavailableError, match=r"no place for base_model.randlora_A"):
        load(tmp_path / "adapter")
