"""Makes everything that `demo` ships: `python -m hesscli.demo.make [FOLDER]`.

Generates a corpus and a held-out text with disjoint seeds, trains a tokenizer and a small Qwen3 on the
corpus, keeps three checkpoints of the training, and writes their losses next to what they are judged by.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from hesscli.demo.text import document

TRAINING_SEEDS = range(0, 24_000)
HELD_OUT_SEEDS = range(1_000_000, 1_000_036)
END = "<|endoftext|>"
VOCABULARY = 512
LENGTH, ROWS, STEPS, WARM_UP = 512, 4, 1200, 50
POSITIONS = 128  # declared, not trained: what is measured by default then has rows of 128 tokens and is quick
PEAK_RATE = 4e-3
KEPT = {50: "step50", 200: "step200", STEPS: "final"}
README = """\
# The embedded checkpoint `demo`

A causal language model of the Qwen3 architecture (tied embeddings, 4 layers, {parameters:,} parameters,
float32) with its byte-level BPE tokenizer, at three moments of one training, and `slice.jsonl`: {documents}
documents ({tokens:,} tokens) that it was not trained on. Everything was made by this project:
`text.py` and `program.py` generate the text (stories with people, places and colours that come back later,
arithmetic, programs in a toy language with their right outputs), and `python -m hesscli.demo.make` trains
on {seen:,} tokens of it, each seen once, and writes this folder again, this file included. It needs
a few minutes on two cores; the text is the same bit for bit, the weights up to rounding.

| revision | steps | held-out loss (nats per token) |
|---|---|---|
{rows}

For comparison, the entropy of a unigram model of the same held-out text is {unigram:.3f} nats per token.
The revision `final` is what `demo` means. Rows of 128 tokens were used for the losses.

Licence: MIT, like the rest of the project; text and weights included.
"""


def tokenizer_of(corpus: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the corpus: every text has tokens, and each digit is one, as arithmetic needs."""
    bpe = Tokenizer(models.BPE())
    digits, to_bytes = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, to_bytes])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=END, model_max_length=POSITIONS)


def new_model(end_id: int) -> Qwen3ForCausalLM:
    """An untrained model with every feature of its big relatives: tied, grouped heads, gated MLP."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        max_position_embeddings=POSITIONS,
        attention_dropout=0.0,
        tie_word_embeddings=True,
        eos_token_id=end_id,
        pad_token_id=end_id,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config).to(torch.float32)


def tokens_of(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """All documents as one row of ids, an end-of-text token after each."""
    ends = [tokenizer.eos_token_id]
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return torch.tensor([token for row in rows for token in row + ends])


def rate_at(step: int) -> float:
    """The learning rate: a linear warm-up, then a cosine down to a hundredth of the peak."""
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / WARM_UP
    progress = (step - WARM_UP) / (STEPS - WARM_UP)
    return PEAK_RATE * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def loss_on(model: Qwen3ForCausalLM, tokens: torch.Tensor, length: int = 128) -> float:
    """Mean cross-entropy in nats over all whole rows of `length` tokens."""
    rows = tokens[: len(tokens) // length * length].view(-1, length)
    return float(model(input_ids=rows, labels=rows).loss)


def unigram_entropy(tokens: torch.Tensor) -> float:
    """Entropy in nats of a model that knows nothing but how often each token occurs in this very text."""
    counts = Counter(tokens.tolist()).values()
    return -sum(count / len(tokens) * math.log(count / len(tokens)) for count in counts)


def train(model: Qwen3ForCausalLM, tokens: torch.Tensor) -> Iterator[int]:
    """Train in place; yields the number of steps done, after each. No token is seen twice."""
    batches = tokens[: STEPS * ROWS * LENGTH].view(STEPS, ROWS, LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step)
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield step + 1


def main(folder: Path) -> None:
    """Write the slice, the checkpoints and the README into `folder`."""
    torch.manual_seed(0)
    corpus = [document(seed) for seed in TRAINING_SEEDS]
    # Different seeds can still give the same text: what was trained on is not held out.
    held_out = sorted({document(seed) for seed in HELD_OUT_SEEDS} - set(corpus))
    Random(0).shuffle(held_out)  # sorted only to be the same list every time
    lines = [json.dumps({"text": text}) for text in held_out]
    (folder / "slice.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    tokenizer = tokenizer_of(corpus)
    unseen = tokens_of(tokenizer, held_out)
    model = new_model(tokenizer.eos_token_id)
    losses: dict[int, float] = {}
    for step in train(model, tokens_of(tokenizer, corpus)):
        if step in KEPT:
            losses[step] = loss_on(model, unseen)
            print(f"step {step}: held-out loss {losses[step]:.3f}", flush=True)
            model.save_pretrained(folder / "checkpoints" / KEPT[step])
            tokenizer.save_pretrained(folder / "checkpoints" / KEPT[step])

    rows = [f"| `demo@{KEPT[step]}` | {step} | {loss:.3f} |" for step, loss in losses.items()]
    readme = README.format(
        parameters=sum(p.numel() for p in model.parameters()),
        documents=len(held_out),
        tokens=len(unseen),
        seen=STEPS * ROWS * LENGTH,
        unigram=unigram_entropy(unseen),
        rows="\n".join(rows),
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")
    for weights in folder.glob("checkpoints/*/*.safetensors"):
        weights.chmod(0o644)  # written for their owner alone, but a package is read by everyone


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
