"""A checkpoint that is sound comes back ready for second derivatives."""

import json
import logging
import os
import socket

import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)
from transformers.utils import logging as transformers_logging

from hesscli.checkpoint.quiet import in_short, quiet
from hesscli.demo import REVISIONS
from hesscli.events import Warned


def loss_of(checkpoint, ids):
    logits = checkpoint.model(input_ids=ids).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def second_derivative_norm(checkpoint):
    ids = torch.arange(8).reshape(1, 8)
    parameters = list(checkpoint.model.parameters())
    first = torch.autograd.grad(loss_of(checkpoint, ids), parameters, create_graph=True, allow_unused=True)
    inner = sum((g * g.detach()).sum() for g in first if g is not None)
    second = torch.autograd.grad(inner, parameters, allow_unused=True)
    return sum(float(g.norm()) for g in second if g is not None)


def test_the_weights_are_those_of_the_file_and_the_model_is_ready(load, made_once):
    checkpoint = load(made_once / "plain")
    plain = AutoModelForCausalLM.from_pretrained(made_once / "plain", dtype=torch.float32)
    for (name, ours), (_, theirs) in zip(checkpoint.model.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        assert ours.requires_grad
    assert not any(module.training for module in checkpoint.model.modules())
    assert checkpoint.model.config.use_cache is False
    assert (checkpoint.vocab_size, checkpoint.max_positions) == (64, 32)
    assert checkpoint.input_device == next(checkpoint.model.parameters()).device
    assert checkpoint.placement == "single"


@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_attention_is_eager_unless_told_and_has_a_second_derivative(load, made_once, attention):
    checkpoint = load(made_once / "plain", attention=attention)
    assert checkpoint.identity.attention == "eager"
    assert second_derivative_norm(checkpoint) > 0


def test_sdpa_is_taken_where_asked(load, made_once):
    assert load(made_once / "plain", attention="sdpa").identity.attention == "sdpa"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_dtype_is_the_one_asked_for(load, made_once, dtype):
    checkpoint = load(made_once / "plain", dtype=dtype)
    assert checkpoint.identity.dtype == dtype
    assert {p.dtype for p in checkpoint.model.parameters()} == {getattr(torch, dtype)}


def test_dtype_auto_is_the_one_stored(load, made_once, tmp_path):
    AutoModelForCausalLM.from_pretrained(made_once / "plain", dtype=torch.bfloat16).save_pretrained(tmp_path / "b")
    assert load(tmp_path / "b", dtype="auto").identity.dtype == "bfloat16"
    assert load(tmp_path / "b").identity.dtype == "float32"


def test_tied_embeddings_are_one_parameter_counted_once(load, made_once):
    tied, untied = load(made_once / "tied"), load(made_once / "plain")
    assert tied.identity.tied
    assert not untied.identity.tied
    assert untied.identity.num_parameters - tied.identity.num_parameters == 64 * 16


def test_experts_run_eagerly_and_have_forward_and_second_derivatives(load, tmp_path):
    config = MixtralConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        num_local_experts=4, vocab_size=64, max_position_embeddings=32,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path / "moe")
    checkpoint = load(tmp_path / "moe", dtype="float64")  # grouped_mm refuses float64
    assert checkpoint.model.config._experts_implementation == "eager"
    assert second_derivative_norm(checkpoint) > 0


def test_positions_are_unlimited_where_the_architecture_has_none(load, tmp_path):
    MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=64, state_size=4)).save_pretrained(
        tmp_path / "mamba"
    )
    falcon = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
    FalconForCausalLM(FalconConfig(**falcon, alibi=True)).save_pretrained(tmp_path / "alibi")
    FalconForCausalLM(FalconConfig(**falcon, max_position_embeddings=48)).save_pretrained(tmp_path / "rotary")
    GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=64, n_positions=24, bos_token_id=0, eos_token_id=0)
    ).save_pretrained(tmp_path / "gpt2")
    assert load(tmp_path / "mamba").max_positions is None
    assert load(tmp_path / "alibi").max_positions is None
    assert load(tmp_path / "rotary").max_positions == 48
    assert load(tmp_path / "gpt2").max_positions == 24


def test_sdpa_is_refused_where_the_architecture_has_none(load, tmp_path, monkeypatch):
    config = Gemma3TextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, vocab_size=64, max_position_embeddings=32,
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(tmp_path / "gemma")
    assert load(tmp_path / "gemma").identity.tied
    monkeypatch.setattr(Gemma3ForCausalLM, "_supports_sdpa", False)
    with pytest.raises(Exception, match=r"^attn: 'sdpa' is not supported by .*; use --attn eager$") as caught:
        load(tmp_path / "gemma", attention="sdpa")
    assert caught.value.exit_code == 2


def test_shards_load_like_one_file(load, made_once):
    assert len(list((made_once / "sharded").glob("*.safetensors"))) > 1
    whole, parts = load(made_once / "plain").model, load(made_once / "sharded").model
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_pickle_loads_when_allowed_and_safetensors_win_over_it(load, copy_of):
    folder = copy_of("plain")
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"not read while there are safetensors")
    assert load(folder, allow_pickle=True).identity.num_parameters == model.num_parameters()
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    loaded = load(folder, allow_pickle=True).model
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("device_map", ["cpu", "auto", "balanced", "sequential", {"": "cpu"}, '{"": "cpu"}'])
def test_a_device_map_of_resident_weights_gives_the_same_model(load, made_once, device_map):
    checkpoint = load(made_once / "plain", device_map=device_map)
    reference = load(made_once / "plain")
    ids = torch.arange(8).reshape(1, 8)
    ours = loss_of(checkpoint, ids.to(checkpoint.input_device))
    assert torch.allclose(ours.cpu(), loss_of(reference, ids.to(reference.input_device)).cpu())
    assert not any(p.device.type == "meta" for p in checkpoint.model.parameters())


def test_weights_that_have_no_place_are_a_warning(load, copy_of):
    from safetensors.torch import load_file, save_file

    folder, seen = copy_of("plain"), []
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "value_head.weight": torch.ones(1, 16)}, folder / "model.safetensors", {"format": "pt"})
    load(folder, on_event=seen.append)
    warned = [event for event in seen if isinstance(event, Warned)]
    assert [event.code for event in warned] == ["unexpected_weights"]
    assert "value_head.weight" in warned[0].text


def test_integer_masks_are_not_taken_for_quantised_weights(load, copy_of):
    from safetensors.torch import load_file, save_file

    folder = copy_of("plain")
    tensors = load_file(folder / "model.safetensors")
    old = {"model.layers.0.attn.bias": torch.ones(4, 4, dtype=torch.uint8), "position_ids": torch.arange(32)}
    save_file({**tensors, **old}, folder / "model.safetensors", {"format": "pt"})
    assert load(folder).identity.dtype == "float32"


def test_the_tokenizer_comes_from_the_same_folder(load, made_once):
    assert load(made_once / "tokenized").tokenizer()("w3 w5")["input_ids"] == [3, 5]


def test_without_a_tokenizer_the_error_names_the_way_out(load, made_once):
    with pytest.raises(Exception, match="'plain' has no tokenizer; give a dataset with a column input_ids") as caught:
        load(made_once / "plain").tokenizer()
    assert caught.value.exit_code == 2


def test_a_folder_is_loaded_without_any_connection(load, made_once, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load(made_once / "tokenized").tokenizer()


def test_loading_is_silent_and_leaves_the_libraries_as_they_were(load, made_once, capfd, monkeypatch):
    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    transformers_logging.set_verbosity_info()
    before = logging.getLogger("huggingface_hub").level
    try:
        load(made_once / "sharded")
        assert transformers_logging.get_verbosity() == transformers_logging.INFO
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.set_verbosity_warning()
    assert logging.getLogger("huggingface_hub").level == before
    assert "DISABLE_SAFETENSORS_CONVERSION" not in os.environ
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("bars", [True, False])
def test_quiet_turns_everything_off_and_then_back(bars, request):
    request.addfinalizer(enable_progress_bars)
    (enable_progress_bars if bars else disable_progress_bars)()
    hub = logging.getLogger("huggingface_hub")
    before = (hub.level, transformers_logging.get_verbosity(), are_progress_bars_disabled())
    with quiet():
        assert (hub.level, transformers_logging.get_verbosity()) == (logging.ERROR, transformers_logging.ERROR)
        assert are_progress_bars_disabled()
        assert not transformers_logging.is_progress_bar_enabled()
    assert (hub.level, transformers_logging.get_verbosity(), are_progress_bars_disabled()) == before


def test_the_words_of_a_library_are_quoted_in_one_line_without_addresses():
    error = ValueError("\n  Cannot read https://hub/x?token=hf_secret  here.\nMore. " + "long " * 100)
    assert in_short(error) == "Cannot read (address) here"
    assert in_short(ValueError()) == "ValueError"
    assert len(in_short(ValueError("long " * 100))) <= 160


@pytest.mark.parametrize("revision", [None, *REVISIONS])
def test_demo_loads_with_its_tokenizer(load, revision):
    checkpoint = load("demo", revision=revision)
    assert (checkpoint.identity.id, checkpoint.identity.revision) == ("demo", revision)
    assert checkpoint.identity.commit is None
    tokenizer = checkpoint.tokenizer()
    assert 0 < len(tokenizer) <= checkpoint.vocab_size


def test_a_revision_of_demo_may_stand_behind_an_at(load):
    assert load(f"demo@{REVISIONS[0]}").identity == load("demo", revision=REVISIONS[0]).identity
    assert load(f"demo@{REVISIONS[0]}").identity.weights_sha256 != load("demo").identity.weights_sha256


def test_a_folder_whose_name_holds_an_at_is_a_folder(load, made_once, tmp_path):
    (tmp_path / "run@step5").symlink_to(made_once / "plain")
    assert load(tmp_path / "run@step5").identity.id == "run@step5"


def test_the_checkpoints_own_code_runs_when_trusted(load, copy_of, tmp_path, monkeypatch):
    folder = copy_of("plain")
    (folder / "modeling_own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    assert load(folder, trust_remote_code=True).identity.class_name == "OwnForCausalLM"
