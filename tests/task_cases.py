# ruff: noqa: E501 - one case, one row
"""A case for each task: a tiny checkpoint, its rows, and the same rows by transformers alone."""

import json

import torch
from heads import BEGIN, END, LABELS, PAD, spell
from transformers import AutoImageProcessor

from hesscli.data import IGNORED

# Texts of several lengths; the end of text stands inside one of them.
TEXTS = ["abcab", "k", "mnopdeca", "fedgj"]
CLASSES = ["dog", "owl", "cat", "dog"]
TARGETS = ["ba", "acegi", "p", "jgde"]


def framed(text):
    return torch.tensor([[BEGIN, *spell(text), END]])


def solution_labels(prompt, text):
    return torch.tensor([[*[IGNORED] * (1 + len(prompt)), *spell(text), END]])


def causal(model, _folder):
    return [(model, {"input_ids": framed(t), "labels": framed(t)}, len(t) + 1) for t in TEXTS]


def prompted(model, _folder):
    for prompt, text in zip(TARGETS, TEXTS, strict=True):
        inputs = {"input_ids": framed(prompt + text), "labels": solution_labels(prompt, text)}
        yield model, inputs, len(text) + 1


def masked(model, folder):
    for row in map(json.loads, (folder / "rows.jsonl").read_text().splitlines()):
        inputs = {name: torch.tensor([row[name]]) for name in ("input_ids", "labels", "token_type_ids") if name in row}
        yield model, inputs, sum(label != IGNORED for label in row["labels"])


def decoded(model, _folder):
    for text, target in zip(TEXTS, TARGETS, strict=True):
        yield model, {"input_ids": framed(text), "labels": framed(target)}, len(target) + 2


def classified(model, _folder):
    return [
        (model, {"input_ids": framed(t), "labels": torch.tensor([LABELS[c]])}, 1)
        for t, c in zip(TEXTS, CLASSES, strict=True)
    ]


def pictured(model, folder):
    processor = AutoImageProcessor.from_pretrained(folder / "model", backend="pil")
    for turn in range(2):
        for name, pictures in PICTURES.items():
            pixels = processor(images=pictures[turn], return_tensors="pt")["pixel_values"]
            yield model, {"pixel_values": pixels, "labels": torch.tensor([LABELS[name]])}, 1


PICTURES = {}
MASKED_ROWS = [
    {"input_ids": [1, 5, 4, 7, 2], "labels": [IGNORED, IGNORED, 6, IGNORED, IGNORED], "token_type_ids": [0, 0, 0, 1, 1]},
    {"input_ids": [1, 9, 2], "labels": [IGNORED, 8, IGNORED], "token_type_ids": [0, 1, 1]},
    {"input_ids": [1, 4, 11, 4, 5, 9, 2], "labels": [IGNORED, 10, IGNORED, 12, IGNORED, 9, IGNORED],
     "token_type_ids": [0, 0, 0, 0, 1, 1, 1]},
]  # fmt: skip


def texts(**columns):
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


# checkpoint; the task; rows of the data set; what is typed beside; the same rows by transformers alone
CASES = {
    "causal-lm": ("causal", "causal-lm", texts(text=TEXTS), {"data.pack": False}, causal),
    "causal-lm with a prompt": ("causal", "causal-lm", texts(text=TEXTS, prompt=TARGETS), {"data.mask_prompt": "prompt"}, prompted),
    "masked-lm": ("bert-mlm", "masked-lm", MASKED_ROWS, {}, masked),
    "masked-lm, positions behind the pad token": ("roberta-mlm", "masked-lm", MASKED_ROWS[1:], {}, masked),
    "seq2seq-lm, T5": ("t5", "seq2seq-lm", texts(text=TEXTS, target=TARGETS), {}, decoded),
    "seq2seq-lm, BART": ("bart", "seq2seq-lm", texts(text=TEXTS, short=TARGETS), {"data.target_column": "short"}, decoded),
    "seq2seq-lm, rows of ids": (
        "t5", "seq2seq-lm",
        [{"input_ids": framed(t)[0].tolist(), "labels": [*framed(s)[0].tolist(), IGNORED]} for t, s in zip(TEXTS, TARGETS, strict=True)],
        {}, decoded,
    ),
    "classes, BERT": ("bert-cls", "sequence-classification", texts(text=TEXTS, label=CLASSES), {}, classified),
    "classes, Llama": ("llama-cls", "sequence-classification", texts(text=TEXTS, label=[LABELS[c] for c in CLASSES]), {}, classified),
    "classes, GPT-2 without a pad token": ("gpt2-cls", "sequence-classification", texts(text=TEXTS, label=CLASSES), {}, classified),
    "classes, GPT-2 padded with the end of text": ("gpt2-cls-eos", "sequence-classification", texts(text=TEXTS, label=CLASSES), {}, classified),
    "classes, rows of ids": (
        "llama-cls", "sequence-classification",
        [{"input_ids": [PAD, *framed(t)[0].tolist(), PAD], "attention_mask": [0, *[1] * (len(t) + 2), 0], "label": c} for t, c in zip(TEXTS, CLASSES, strict=True)],
        {}, classified,
    ),
    "images, ViT": ("vit", "image-classification", None, {}, pictured),
    "images, ResNet": ("resnet", "image-classification", None, {}, pictured),
    "images, ConvNeXT": ("convnext", "image-classification", None, {}, pictured),
}  # fmt: skip
