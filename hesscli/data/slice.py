"""A slice: a fixed, ordered list of sequences with the targets that the loss is taken at."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

IGNORED = -100  # the label that transformers and torch agree to leave out of a loss


@dataclass(frozen=True, slots=True)
class Sequence:
    """One row: inputs by the name that the model's forward gives them, and the target at each position.

    `targets[t]` is what the output at position t is compared with, already shifted: for a causal model the
    next token; `IGNORED` where there is no loss term. A row without `attention_mask` attends to all of itself.
    """

    inputs: dict[str, torch.Tensor]  # each (length,) int64
    targets: torch.Tensor  # (length,) int64

    @property
    def num_terms(self) -> int:
        """Loss terms in this row."""
        return int((self.targets != IGNORED).sum())


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded to one length. Padding is masked in `attention_mask` and `IGNORED` in `targets`."""

    inputs: dict[str, torch.Tensor]  # each (rows, length) int64
    targets: torch.Tensor  # (rows, length) int64
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
    max_length: int = 0  # the length that text was packed or cut to; the longest row of token ids
    packed: bool = False
    pad_token_id: int = 0
    notes: tuple[tuple[str, str], ...] = field(default=())  # (code, text) warnings for the report

    @property
    def num_tokens(self) -> int:
        """Tokens that enter the model, padding not counted."""
        masks = (s.inputs.get("attention_mask") for s in self.sequences)
        return sum(
            s.targets.numel() if mask is None else int(mask.sum())
            for s, mask in zip(self.sequences, masks, strict=True)
        )

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
                # Little-endian int64 whatever the source held, so that jsonl and parquet agree on any host.
                values = tensor.cpu().numpy().astype("<i8")
                digest.update(f"{name}:{values.size};".encode())
                digest.update(values.tobytes())
        return f"sha256:{digest.hexdigest()}"

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """The rows in order, `batch_size` at a time, padded on the right to the longest row of each batch."""
        for start in range(0, len(self.sequences), batch_size):
            yield self._pad(self.sequences[start : start + batch_size], start)

    def _pad(self, rows: tuple[Sequence, ...], first_row: int) -> Batch:
        longest = max(row.targets.numel() for row in rows)
        ragged = any(row.targets.numel() != longest for row in rows)

        def stack(parts: list[torch.Tensor], fill: int) -> torch.Tensor:
            out = parts[0].new_full((len(parts), longest), fill)
            for i, part in enumerate(parts):
                out[i, : part.numel()] = part
            return out

        # Rows may differ in whether they bring a mask: one without attends to all of itself.
        masked = ragged or any("attention_mask" in row.inputs for row in rows)
        inputs = {
            name: stack([row.inputs[name] for row in rows], self.pad_token_id if name == "input_ids" else 0)
            for name in rows[0].inputs
            if name != "attention_mask"
        }
        if masked:
            whole = [row.inputs.get("attention_mask", torch.ones_like(row.targets)) for row in rows]
            inputs["attention_mask"] = stack(whole, 0)
        return Batch(inputs, stack([row.targets for row in rows], IGNORED), first_row)
