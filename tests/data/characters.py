"""A tokenizer of one character, one token, and `load_slice` with the options that a test does not vary."""

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hesscli.data import Requirements, Slice, load_slice
from hesscli.events import ignore

EOS, UNKNOWN, PAD, BEGIN = 0, 1, 2, 3
VOCAB_SIZE = 4 + 95


def spell(text: str) -> list[int]:
    """The ids of `text`, told without the tokenizer."""
    return [ord(c) - 32 + 4 if 32 <= ord(c) < 127 else UNKNOWN for c in text]


def make_tokenizer(*, eos: bool = True, specials: bool = False) -> PreTrainedTokenizerFast:
    """With `specials`, a row of text is framed by a begin and an eos token."""
    words = ["<eos>", "<unk>", "<pad>", "<s>", *map(chr, range(32, 127))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if specials:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A <eos>", special_tokens=[("<s>", BEGIN), ("<eos>", EOS)]
        )
    ends = {"eos_token": "<eos>"} if eos else {}
    # A short model_max_length: a tokenizer that warns or cuts by itself would show.
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", model_max_length=8, **ends
    )


def load(dataset: object, **options: Any) -> Slice:
    """`load_slice` of a local data set with small defaults; what the model takes is named among the options."""
    requirements: dict[str, Any] = {
        "task": "causal-lm",
        "vocab_size": VOCAB_SIZE,
        "max_positions": None,
        "pad_token_id": None,
        "num_token_types": 0,
        "num_labels": 2,
        "label2id": {"LABEL_0": 0, "LABEL_1": 1},
        "num_channels": 3,
        "tokenizer": make_tokenizer,
        "image_processor": no_processor,
        "decoder_input_ids": lambda labels: torch.cat([torch.tensor([PAD]), labels[:-1]]),
    }
    defaults: dict[str, Any] = {
        "name": None,
        "config_name": None,
        "split": "train",
        "column": None,
        "revision": None,
        "limit": 64,
        "max_length": 8,
        "pack": True,
        "target_column": None,
        "mask_prompt": None,
        "seed": 0,
        "offline": False,
        "on_event": ignore,
    }
    model = Requirements(**{name: options.pop(name, value) for name, value in requirements.items()})
    return load_slice(str(dataset), model=model, **(defaults | options))


def no_tokenizer() -> PreTrainedTokenizerFast:
    """For data that must not be tokenised."""
    message = "the tokenizer was asked for"
    raise AssertionError(message)


def no_processor() -> Any:
    """For data that holds no images."""
    message = "the image processor was asked for"
    raise AssertionError(message)


def ids_of(found: Slice) -> list[list[int]]:
    """The tokens of every row."""
    return [s.inputs["input_ids"].tolist() for s in found.sequences]


def codes(found: Slice) -> list[str]:
    """The codes of the slice's notes."""
    return [code for code, _ in found.notes]
