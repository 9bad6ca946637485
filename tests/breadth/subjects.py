"""Tiny random models of many architectures, each with a batch for its task: the rows of the breadth table."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from breadth.classifiers import CLASSIFIERS, IMAGES
from breadth.decoders import DECODERS
from breadth.encoders import ENCODER_DECODERS, ENCODERS
from breadth.mixtures import EXPERTS, RECURRENT
from breadth.sizes import NOT_SMOOTH, VOCAB
from transformers import AutoConfig

from hesscli.data.slice import IGNORED, Batch

_CLASSES = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
}
_TABLES = {
    "causal-lm": {**DECODERS, **EXPERTS, **RECURRENT},
    "masked-lm": ENCODERS,
    "seq2seq-lm": ENCODER_DECODERS,
    "sequence-classification": CLASSIFIERS,
    "image-classification": IMAGES,
}
_PAD = 0
_LABELS = 3


@dataclass(frozen=True, slots=True)
class Subject:
    """One architecture, tiny and random."""

    name: str
    task: str
    build: Callable[[], transformers.PreTrainedModel]
    """The model in float32 and eval mode, the same weights at each call."""
    batch: Callable[[], Batch]
    """Ragged rows for its task."""
    smooth: bool
    """Whether the Hessian is continuous: no ReLU, no choice among experts."""
    slow: bool
    """Whether its table is left out of a quick round."""


def _build(task: str, model_type: str, settings: dict[str, object]) -> transformers.PreTrainedModel:
    torch.manual_seed(11)
    # Not all configs take each of these; those that do not keep them as plain attributes.
    tokens = {"pad_token_id": _PAD, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(model_type, **{**({} if task.startswith("image") else tokens), **settings})
    config.num_labels = _LABELS
    auto = getattr(transformers, _CLASSES[task])
    model = auto.from_config(config, attn_implementation="eager", experts_implementation="eager")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        # As made, biases are zero, norms one and weights so small that the curvature is nearly the embedding's alone.
        for p in model.parameters():
            p.add_(0.15 * torch.randn(p.shape, generator=generator))
    return model.float().eval()


def _tokens(rows: int, length: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and their mask; the last row is two tokens shorter. The top ids are left to the tests' special tokens."""
    ids = torch.randint(3, VOCAB - 2, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    ids[-1, -2:], mask[-1, -2:] = _PAD, 0
    return ids, mask


def causal_batch() -> Batch:
    """Two rows of 6 tokens, one padded; the next token at each position. A real pad token stands in it."""
    ids, mask = _tokens(2, 6, seed=1)
    ids[0, 2] = _PAD
    targets = torch.cat([ids[:, 1:], ids.new_full((2, 1), IGNORED)], dim=1)
    targets[-1, -3:] = IGNORED
    return Batch({"input_ids": ids, "attention_mask": mask}, targets)


def masked_batch() -> Batch:
    """Two rows of 6 tokens, one padded; terms at positions that hold the mask token."""
    ids, mask = _tokens(2, 6, seed=2)
    chosen = torch.tensor([[0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0]], dtype=torch.bool)
    targets = torch.where(chosen, ids, IGNORED)
    return Batch({"input_ids": ids.masked_fill(chosen, VOCAB - 1), "attention_mask": mask}, targets)


def pair_batch() -> Batch:
    """Two rows of 6 tokens to read, one padded, and 4 to write, one of them cut."""
    ids, mask = _tokens(2, 6, seed=3)
    targets, _ = _tokens(2, 4, seed=4)
    given = torch.cat([targets.new_full((2, 1), 1), targets[:, :-1]], dim=1)  # not the pad token: some mask it
    targets[-1, -1] = IGNORED
    return Batch({"input_ids": ids, "attention_mask": mask, "decoder_input_ids": given}, targets)


def sentence_batch() -> Batch:
    """Three rows of 6 tokens, one padded, each with a class."""
    ids, mask = _tokens(3, 6, seed=5)
    ids[:-1, -1] = ids[-1, -3] = 2  # the end of text, which some heads read the row at
    return Batch({"input_ids": ids, "attention_mask": mask}, torch.tensor([[2], [0], [1]]))


def image_batch() -> Batch:
    """Three pictures of 16 x 16 in three channels, each with a class."""
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(6))
    return Batch({"pixel_values": pixels}, torch.tensor([[2], [0], [1]]))


_BATCHES = {
    "causal-lm": causal_batch,
    "masked-lm": masked_batch,
    "seq2seq-lm": pair_batch,
    "sequence-classification": sentence_batch,
    "image-classification": image_batch,
}


def _subject(name: str, task: str, settings: dict[str, object]) -> Subject:
    # "llama" under several tasks or settings is "llama/something"; what is before the stroke is the model type.
    model_type = name.partition("/")[0]
    return Subject(
        name,
        task,
        lambda: _build(task, model_type, settings),
        _BATCHES[task],
        smooth=name not in NOT_SMOOTH and name not in EXPERTS,
        slow=name in {**EXPERTS, **RECURRENT, **ENCODER_DECODERS},
    )


SUBJECTS = {name: _subject(name, task, settings) for task, table in _TABLES.items() for name, settings in table.items()}
