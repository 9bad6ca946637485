"""A slice: a fixed, ordered list of rows with the targets that the loss is taken at."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

IGNORED = -100  # the label that transformers and torch agree to leave out of a loss


@dataclass(frozen=True, slots=True)
class Sequence:
    """One row: inputs by the name that the model's forward gives them, and the target at each position.

    `targets[t]` is what the output at position t is compared with, already shifted: for a causal model the
    next token, for a classifier the class at its one position; `IGNORED` where there is no loss term. A row without
    `attention_mask` attends to all of itself.
    """

    inputs: dict[str, torch.Tensor]  # each (length,) int64, or pixel_values (channels, height, width) float32
    targets: torch.Tensor  # (positions,) int64

    @property
    def num_terms(self) -> int:
        """Loss terms in this row."""
        return int((self.targets != IGNORED).sum())

    @property
    def length(self) -> int:
        """Positions that a model works on: tokens of the longest input, or patches of 16 x 16 pixels, which ViT has."""
        parts = self.inputs.values()
        return max(p.numel() if p.dim() == 1 else -(-p.shape[-1] // 16) * -(-p.shape[-2] // 16) for p in parts)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the right, each input to its own longest.

    Padding is masked in `attention_mask` and `IGNORED` in `targets`; a decoder's has no mask, and is behind every
    position that has a term: that none of them sees it is checked before a run.
    """

    inputs: dict[str, torch.Tensor]  # each (rows, length) int64, or (rows, channels, height, width) float32
    targets: torch.Tensor  # (rows, positions) int64
    first_row: int = 0

    @property
    def num_terms(self) -> int:
        """Loss terms in this batch."""
        return int((self.targets != IGNORED).sum())


@dataclass(frozen=True, slots=True)
class Slice:
    """The data that a curvature matrix is taken on; it never changes during a run."""

    sequences: tuple[Sequence, ...]
    id: str
    split: str | None = None
    config_name: str | None = None
    revision: str | None = None
    column: str | None = None
    max_length: int = 0  # the length that text was packed or cut to; the longest row of token ids; 0 for images
    packed: bool = False
    pad_token_id: int = 0
    notes: tuple[tuple[str, str], ...] = field(default=())  # (code, text) warnings for the report

    @property
    def num_tokens(self) -> int:
        """Tokens that enter the model, those of a decoder too, padding not counted. An image counts as one."""
        return sum(_num_tokens(s.inputs) for s in self.sequences)

    @property
    def num_terms(self) -> int:
        """Loss terms: the divisor of every sum over the slice."""
        return sum(s.num_terms for s in self.sequences)

    @property
    def fingerprint(self) -> str:
        """`sha256:` over every input and target in order: equal slices, equal fingerprints."""
        digest = hashlib.sha256()
        for sequence in self.sequences:
            for name, tensor in [*sorted(sequence.inputs.items()), ("targets", sequence.targets)]:
                # Little-endian whatever the source held, so that jsonl and parquet agree on any host.
                floating = tensor.is_floating_point()
                values = tensor.cpu().numpy().astype("<f4" if floating else "<i8")
                size = "x".join(map(str, values.shape)) if floating else str(values.size)
                digest.update(f"{name}:{size};".encode())
                digest.update(values.tobytes())
        return f"sha256:{digest.hexdigest()}"

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """The rows in order, `batch_size` at a time, padded on the right to the longest row of each batch."""
        for start in range(0, len(self.sequences), batch_size):
            yield self._pad(self.sequences[start : start + batch_size], start)

    def _pad(self, rows: tuple[Sequence, ...], first_row: int) -> Batch:
        # Rows may differ in whether they bring a mask: one without attends to all of itself.
        names = [name for name in rows[0].inputs if name != "attention_mask"]
        fills = {"input_ids": self.pad_token_id, "decoder_input_ids": self.pad_token_id}
        inputs = {name: _stack([row.inputs[name] for row in rows], fills.get(name, 0)) for name in names}
        ids = [row.inputs["input_ids"] for row in rows if "input_ids" in row.inputs]
        if len({len(i) for i in ids}) > 1 or any("attention_mask" in row.inputs for row in rows):
            whole = [row.inputs.get("attention_mask", torch.ones_like(i)) for row, i in zip(rows, ids, strict=True)]
            inputs["attention_mask"] = _stack(whole, 0)
        return Batch(inputs, _stack([row.targets for row in rows], IGNORED), first_row)


def _num_tokens(inputs: dict[str, torch.Tensor]) -> int:
    if "input_ids" not in inputs:
        return 1
    read = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    return int(read.sum()) + (inputs["decoder_input_ids"].numel() if "decoder_input_ids" in inputs else 0)


def _stack(parts: list[torch.Tensor], fill: int) -> torch.Tensor:
    """Rows of one shape as they are; rows of numbers padded on the right to the longest."""
    if parts[0].dim() > 1:
        return torch.stack(parts)
    out = parts[0].new_full((len(parts), max(part.numel() for part in parts)), fill)
    for i, part in enumerate(parts):
        out[i, : part.numel()] = part
    return out
