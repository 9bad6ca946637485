import json
import random

import pytest
import torch
from characters import codes, ids_of, load, no_tokenizer

from hesscli.data import IGNORED


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def expected_targets(row):
    """The rules in loops: the next label, unless either end of the step is masked."""
    ids = row["input_ids"]
    labels, mask = row.get("labels", ids), row.get("attention_mask", [1] * len(ids))
    targets = [IGNORED] * len(ids)
    for t in range(len(ids) - 1):
        if mask[t] == 1 and mask[t + 1] == 1:
            targets[t] = labels[t + 1]
    return targets


def random_row(draw, *, labels, mask):
    ids = [draw.randrange(50) for _ in range(draw.randint(1, 12))]
    row = {"input_ids": ids}
    if labels:
        row["labels"] = [i if draw.random() < 0.6 else IGNORED for i in ids]
    if mask:
        row["attention_mask"] = [int(draw.random() < 0.7) for _ in ids]
    return row


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("mask", [False, True])
def test_terms_are_those_of_the_rules_in_loops(tmp_path, labels, mask):
    draw = random.Random(f"{labels}{mask}")
    rows = [random_row(draw, labels=labels, mask=mask) for _ in range(40)]
    kept = [row for row in rows if any(t != IGNORED for t in expected_targets(row))]
    found = load(write(tmp_path / "rows.jsonl", rows), tokenizer=no_tokenizer, vocab_size=50)
    assert len(kept) < len(rows)
    assert len(found.sequences) == len(kept)
    for sequence, row in zip(found.sequences, kept, strict=True):
        own = row.get("attention_mask", [1] * len(row["input_ids"]))
        end = max(t for t, m in enumerate(own) if m) + 1
        assert sequence.inputs["input_ids"].tolist() == row["input_ids"][:end]
        assert sequence.targets.tolist() == expected_targets(row)[:end]
        seen = sequence.inputs.get("attention_mask")
        assert (own[:end] if seen is None else seen.tolist()) == own[:end]
    assert found.num_terms == sum(t != IGNORED for row in kept for t in expected_targets(row))
    assert found.num_tokens == sum(sum(row.get("attention_mask", [1] * len(row["input_ids"]))) for row in kept)


def test_rows_are_used_as_they_stand(tmp_path):
    rows = [{"input_ids": list(range(n))} for n in (3, 30, 5)]
    found = load(write(tmp_path / "rows.jsonl", rows), max_length=4, tokenizer=no_tokenizer, pack=True)
    assert ids_of(found) == [row["input_ids"] for row in rows]
    assert not found.packed
    assert found.max_length == 30
    assert found.column == "input_ids"
    assert found.pad_token_id == 0


def test_input_ids_come_before_text_unless_text_is_named(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"text": "abcdefgh", "input_ids": [1, 2, 3]}])
    assert load(path, tokenizer=no_tokenizer).column == "input_ids"
    assert load(path, column="text").num_tokens == 8


def test_padding_on_the_right_is_cut_off_and_leaves_the_same_slice(tmp_path):
    padded = [{"input_ids": [5, 6, 7, 0, 0], "attention_mask": [1, 1, 1, 0, 0]}]
    bare = [{"input_ids": [5, 6, 7]}]
    first, second = (load(write(tmp_path / f"{i}.jsonl", rows)) for i, rows in enumerate((padded, bare)))
    assert first.fingerprint == second.fingerprint
    assert set(first.sequences[0].inputs) == {"input_ids"}


def test_padding_on_the_left_stays_masked_and_predicts_nothing(tmp_path):
    row = {"input_ids": [0, 0, 5, 6, 7], "attention_mask": [0, 0, 1, 1, 1]}
    (sequence,) = load(write(tmp_path / "rows.jsonl", [row])).sequences
    assert sequence.inputs["attention_mask"].tolist() == [0, 0, 1, 1, 1]
    assert sequence.targets.tolist() == [IGNORED, IGNORED, 6, 7, IGNORED]


def test_a_mask_may_hold_booleans(tmp_path):
    numbers = {"input_ids": [5, 6, 7, 8], "attention_mask": [1, 0, 1, 1]}
    truths = numbers | {"attention_mask": [True, False, True, True]}
    first, second = (load(write(tmp_path / f"{i}.jsonl", [row])) for i, row in enumerate((numbers, truths)))
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_rows_with_and_without_a_mask_share_a_batch(tmp_path, order):
    rows = [
        {"input_ids": [1, 2, 3, 4], "attention_mask": [1, 1, 1, 1]},
        {"input_ids": [0, 5, 6, 7], "attention_mask": [0, 1, 1, 1]},
    ]
    found = load(write(tmp_path / "rows.jsonl", [rows[i] for i in order]))
    (batch,) = found.batches(2)
    assert batch.inputs["attention_mask"].tolist() == [rows[i]["attention_mask"] for i in order]
    assert batch.num_terms == found.num_terms == 5


def test_the_limit_counts_sequences_with_a_loss_term(tmp_path):
    rows = [{"input_ids": ids} for ids in ([1], None, [1, 2], [], [4, 5, 6], [7, 8])]
    found = load(write(tmp_path / "rows.jsonl", rows), limit=2)
    assert ids_of(found) == [[1, 2], [4, 5, 6]]
    assert dict(found.notes) == {"rows-without-loss": "3 rows without a loss term took no part"}
    assert codes(load(tmp_path / "rows.jsonl", limit=3)) == ["rows-without-loss"]
    assert codes(load(tmp_path / "rows.jsonl", limit=4)) == ["fewer-sequences", "rows-without-loss"]


def test_position_ids_that_are_not_used_are_noted(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"input_ids": [1, 2], "position_ids": [0, 0]}])
    assert "unused-column" in codes(load(path))


def test_a_row_as_long_as_the_model_has_positions_is_taken(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"input_ids": [1, 2, 3, 4]}])
    # max_length is for text: rows of token ids neither obey it nor are refused for it.
    assert load(path, max_positions=4, max_length=512).num_tokens == 4


def test_the_fingerprint_knows_order_targets_masks_and_borders(tmp_path):
    variants = {
        "base": [{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5]}],
        "order": [{"input_ids": [4, 5]}, {"input_ids": [1, 2, 3]}],
        "token": [{"input_ids": [1, 2, 4]}, {"input_ids": [4, 5]}],
        "border": [{"input_ids": [1, 2]}, {"input_ids": [3, 4, 5]}],
        "labels": [{"input_ids": [1, 2, 3], "labels": [1, -100, 3]}, {"input_ids": [4, 5], "labels": [4, 5]}],
        "mask": [
            {"input_ids": [1, 2, 3], "attention_mask": [0, 1, 1]},
            {"input_ids": [4, 5], "attention_mask": [1, 1]},
        ],
    }
    found = {name: load(write(tmp_path / f"{name}.jsonl", rows)).fingerprint for name, rows in variants.items()}
    assert len(set(found.values())) == len(variants)
    assert load(tmp_path / "base.jsonl").fingerprint == found["base"]
    assert all(value.startswith("sha256:") and len(value) == 7 + 64 for value in found.values())


def test_batches_of_any_size_hold_the_same_terms_in_order(tmp_path):
    draw = random.Random(0)
    rows = [random_row(draw, labels=True, mask=True) for _ in range(30)]
    found = load(write(tmp_path / "rows.jsonl", rows))
    streams = []
    for size in (1, 2, 3, 7, 100):
        batches = list(found.batches(size))
        assert all(len(b.targets) <= size for b in batches)
        streams.append(torch.cat([b.targets[b.targets != IGNORED] for b in batches]).tolist())
    assert all(stream == streams[0] for stream in streams)
    assert len(streams[0]) == found.num_terms
