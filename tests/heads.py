"""Tiny random checkpoints of every task, saved with their tokenizer or image processor, and rows for them."""

import json

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<mask>", *"abcdefghijklmnop"]
PAD, BEGIN, END, UNKNOWN, MASK = range(5)
VOCAB = len(WORDS)
LABELS = {"cat": 0, "dog": 1, "owl": 2}
SIZE = 16  # pixels

_TOKENS = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END}
_WIDTHS = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
_ENCODER = {**_TOKENS, **_WIDTHS, "max_position_embeddings": 24, "type_vocab_size": 2, "initializer_range": 0.4}
_LLAMA = {**_TOKENS, **_WIDTHS, "num_key_value_heads": 1, "max_position_embeddings": 24, "initializer_range": 0.4}
_GPT2 = {"vocab_size": VOCAB, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 24, "initializer_range": 0.4}
_NAMED = {"label2id": LABELS, "id2label": {number: name for name, number in LABELS.items()}}
_CONVOLUTIONS = {"hidden_sizes": [6, 8], "depths": [1, 1], "num_channels": 3, **_NAMED}


def _t5():
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2}
    ids = {"vocab_size": VOCAB, "pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": PAD}
    return T5ForConditionalGeneration(T5Config(**sizes, **ids, initializer_factor=1.0))


def _bart():
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 12, "decoder_ffn_dim": 12}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 24}
    config = BartConfig(**sizes, **heads, **_TOKENS, decoder_start_token_id=END, init_std=0.4)
    return BartForConditionalGeneration(config)


def _vit():
    sizes = {"image_size": SIZE, "patch_size": 8, "initializer_range": 0.3}
    return ViTForImageClassification(ViTConfig(**_WIDTHS, **sizes, **_NAMED))


MAKERS = {
    "causal": lambda: LlamaForCausalLM(LlamaConfig(**_LLAMA)),
    "bert-mlm": lambda: BertForMaskedLM(BertConfig(**_ENCODER)),
    "roberta-mlm": lambda: RobertaForMaskedLM(RobertaConfig(**{**_ENCODER, "pad_token_id": 1})),
    "t5": _t5,
    "bart": _bart,
    "bert-cls": lambda: BertForSequenceClassification(BertConfig(**_ENCODER, **_NAMED)),
    "llama-cls": lambda: LlamaForSequenceClassification(LlamaConfig(**_LLAMA, **_NAMED)),
    # Without a pad token, as GPT-2 is; and with the end of text for one, which also stands in the text.
    "gpt2-cls": lambda: GPT2ForSequenceClassification(GPT2Config(**_GPT2, **_NAMED)),
    "gpt2-cls-eos": lambda: GPT2ForSequenceClassification(GPT2Config(**_GPT2, **_NAMED, pad_token_id=END)),
    "vit": _vit,
    "resnet": lambda: ResNetForImageClassification(
        ResNetConfig(**_CONVOLUTIONS, embedding_size=6, layer_type="basic", hidden_act="silu")
    ),
    "convnext": lambda: ConvNextForImageClassification(ConvNextConfig(**_CONVOLUTIONS, num_stages=2)),
}
IMAGES = ("vit", "resnet", "convnext")


def tokenizer():
    """One letter, one token, framed by `<s>` and `</s>`."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    frame = [("<s>", BEGIN), ("</s>", END)]
    core.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=frame)
    names = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **{f"{name}_token": word for name, word in names.items()})


def spell(text):
    """The ids of a text without its frame, told without the tokenizer."""
    return [WORDS.index(letter) for letter in text]


def save(name, folder):
    """The checkpoint in `folder`: the same weights at each call."""
    torch.manual_seed(3)
    model = MAKERS[name]().float().eval()
    for p in model.parameters():  # norms at one and biases at zero would hide what depends on them
        p.data.add_(0.05 * torch.randn_like(p))
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    if name in IMAGES:
        ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    else:
        tokenizer().save_pretrained(folder)
    return folder


def write(path, rows):
    """Rows as a jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_images(root, per_class=2, *, split=""):
    """A folder of class folders of random images of several sizes, and the images by class."""
    draw = np.random.default_rng(5)
    made = {}
    for name in LABELS:
        place = root / split / name
        place.mkdir(parents=True)
        for i in range(per_class):
            picture = Image.fromarray(draw.integers(0, 256, (20 + i, 24, 3), dtype=np.uint8))
            picture.save(place / f"{i}.png")
            made.setdefault(name, []).append(picture)
    return made
