"""Tiny random checkpoints on disk, made once."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hesscli.checkpoint import Checkpoint, load_checkpoint
from hesscli.events import ignore

torch.set_num_threads(1)


def _save_llama(folder: Path, *, tied: bool = False, **save: object) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=64,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).save_pretrained(folder, **save)
    return folder


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `plain`, `tied`, `sharded`, `tokenized`; not to be changed."""
    base = tmp_path_factory.mktemp("checkpoints")
    _save_llama(base / "plain")
    _save_llama(base / "tied", tied=True)
    _save_llama(base / "sharded", max_shard_size="10KB")
    _save_llama(base / "tokenized")
    words = {"[UNK]": 0, **{f"w{i}": i for i in range(1, 60)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    fast.save_pretrained(base / "tokenized")
    return base


@pytest.fixture
def copy_of(made_once: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A checkpoint of `made_once` that a test may damage."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(made_once / name, tmp_path / name))

    return copy


@pytest.fixture
def load() -> Callable[..., Checkpoint]:
    """`load_checkpoint` with the recipe's defaults, so that a test names only what it is about."""

    def call(model: object, **changes: object) -> Checkpoint:
        options: dict[str, object] = {
            "revision": None,
            "task": "auto",
            "dtype": "float32",
            "attention": "auto",
            "placement": "auto",
            "device_map": None,
            "max_memory": None,
            "offload_dir": None,
            "trust_remote_code": False,
            "allow_pickle": False,
            "offline": False,
            "on_event": ignore,
        }
        return load_checkpoint(str(model), **{**options, **changes})

    return call
