import random
from itertools import chain

import pytest
import torch
from characters import BEGIN, EOS, PAD, codes, ids_of, load, make_tokenizer, spell

from hesscli.data import IGNORED
from hesscli.data.tokens import causal, pack_documents
from hesscli.events import Advanced, Finished, Started, Warned

DOCUMENTS = ["the first one", "b", "", "   ", "a third that is longer than the rest of them"]
STREAM = [*spell(DOCUMENTS[0]), EOS, *spell("b"), EOS, *spell(DOCUMENTS[4])]


def join(rows):
    return list(chain.from_iterable(rows))


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(DOCUMENTS) + "\n")
    return path


def test_packed_sequences_are_the_stream_of_documents_joined_by_eos(corpus):
    found = load(corpus, max_length=8)
    rows = ids_of(found)
    assert [len(row) for row in rows] == [8] * (len(STREAM) // 8)
    assert join(rows) == STREAM[: 8 * len(rows)]
    assert found.packed
    assert found.column == "text"


@pytest.mark.parametrize("seed", range(5))
def test_packing_loses_and_repeats_no_token_for_any_documents(seed):
    draw = random.Random(seed)
    texts = ["".join(draw.choices("abc xyz", k=draw.randint(1, 30))) for _ in range(draw.randint(1, 12))]
    length, limit = draw.randint(2, 9), draw.randint(1, 12)
    stream = spell(texts[0]) + [token for text in texts[1:] for token in [EOS, *spell(text)]]
    packed = pack_documents(texts, make_tokenizer(), length=length, limit=limit, framed=False, finish=causal)
    rows = [s.inputs["input_ids"].tolist() for s in packed.sequences]
    full = min(limit, len(stream) // length)
    assert join(rows) == (stream[: full * length] if full else stream)
    assert {len(row) for row in rows} == {length if full else len(stream)}
    assert packed.num_left_over == (len(stream) % length if 0 < full < limit else 0)


def test_targets_are_the_next_token_and_the_last_has_none(corpus):
    for sequence in load(corpus, max_length=8).sequences:
        ids = sequence.inputs["input_ids"].tolist()
        assert sequence.targets.tolist() == [*ids[1:], IGNORED]
        assert sequence.num_terms == 7
        assert sequence.targets.dtype == sequence.inputs["input_ids"].dtype == torch.int64


def test_nothing_is_read_once_the_sequences_are_full():
    read = []

    def texts():
        for text in ("abcd", "efgh", "ijkl", "mnop"):
            read.append(text)
            yield text

    packed = pack_documents(texts(), make_tokenizer(), length=4, limit=2, framed=False, finish=causal)
    assert len(packed.sequences) == 2
    assert read == ["abcd", "efgh"]


def test_a_document_without_a_token_leaves_no_eos():
    class Consonants:
        eos_token_id = 9

        def __call__(self, text, **_options):
            return {"input_ids": [1 for c in text if c not in "aeiou"]}

    packed = pack_documents(["xx", "aeiou", "yy"], Consonants(), length=5, limit=9, framed=False, finish=causal)
    assert [s.inputs["input_ids"].tolist() for s in packed.sequences] == [[1, 1, 9, 1, 1]]


def test_a_limit_gives_the_first_sequences_and_no_note(corpus):
    whole, first = load(corpus, max_length=8), load(corpus, max_length=8, limit=2)
    assert ids_of(first) == ids_of(whole)[:2]
    assert "fewer-sequences" in codes(whole)
    assert "fewer-sequences" not in codes(first)


def test_fewer_sequences_than_asked_for_are_counted_in_a_note(corpus):
    text = dict(load(corpus, max_length=8, limit=64).notes)["fewer-sequences"]
    assert (
        text
        == f"corpus.txt holds 7 sequences, fewer than the limit of 64; {len(STREAM) % 8} tokens at its end left over"
    )


def test_a_text_shorter_than_one_sequence_is_kept(corpus):
    found = load(corpus, max_length=512)
    assert ids_of(found) == [STREAM]
    assert dict(found.notes)["short-sequence"].startswith(f"the text holds {len(STREAM)} tokens")


def test_documents_that_share_rows_are_noted_and_one_document_is_not(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abcdefgh\n\nijklmnop\n")
    assert "packed-documents" in codes(load(path, max_length=4))
    # The first eight tokens are the first document's own.
    assert "packed-documents" not in codes(load(path, max_length=4, limit=2))
    # Of the second document nothing is in the row but the eos token before it.
    path.write_text("abc\nefgh\n")
    assert "packed-documents" not in codes(load(path, max_length=4, limit=1))


def test_a_tokenizer_without_eos_joins_documents_bare_and_says_so(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abcd\nefgh\n")
    found = load(path, max_length=4, tokenizer=lambda: make_tokenizer(eos=False))
    assert join(ids_of(found)) == spell("abcdefgh")
    assert "no-eos-token" in codes(found)
    assert "no-eos-token" not in codes(load(path, max_length=4))


def test_packing_adds_no_special_tokens_and_single_rows_bring_their_own(corpus):
    special = {"tokenizer": lambda: make_tokenizer(specials=True)}
    assert BEGIN not in join(ids_of(load(corpus, **special)))
    rows = ids_of(load(corpus, pack=False, max_length=64, **special))
    assert rows == [[BEGIN, *spell(text), EOS] for text in DOCUMENTS if text.strip()]


def test_a_row_that_is_cut_keeps_its_closing_token_and_is_noted(corpus):
    found = load(corpus, pack=False, max_length=6, tokenizer=lambda: make_tokenizer(specials=True))
    assert ids_of(found) == [[BEGIN, *spell("the "), EOS], [BEGIN, *spell("b"), EOS], [BEGIN, *spell("a th"), EOS]]
    assert dict(found.notes)["truncated-rows"] == "2 rows of text cut to 6 tokens"
    assert not found.packed


def test_single_rows_of_one_token_take_no_part(corpus):
    found = load(corpus, pack=False, max_length=64)
    assert ids_of(found) == [spell(DOCUMENTS[0]), spell(DOCUMENTS[4])]
    assert dict(found.notes)["rows-without-loss"] == "1 row without a loss term took no part"


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_padding_never_counts(corpus, batch_size):
    words = make_tokenizer(specials=True)
    found = load(corpus, pack=False, max_length=20, tokenizer=lambda: words, pad_token_id=PAD)
    terms, row = 0, 0
    for batch in found.batches(batch_size):
        assert batch.first_row == row
        for i in range(len(batch.targets)):
            own = found.sequences[row]
            length, longest = len(own.targets), batch.targets.shape[1]
            assert batch.inputs["input_ids"][i].tolist() == own.inputs["input_ids"].tolist() + [PAD] * (
                longest - length
            )
            assert batch.targets[i].tolist() == own.targets.tolist() + [IGNORED] * (longest - length)
            if "attention_mask" in batch.inputs:
                assert batch.inputs["attention_mask"][i].tolist() == [1] * length + [0] * (longest - length)
            else:
                assert length == longest
            row += 1
        terms += batch.num_terms
    assert row == len(found.sequences)
    assert terms == found.num_terms == sum(len(s.targets) - 1 for s in found.sequences)
    assert found.num_tokens == sum(len(s.targets) for s in found.sequences)


@pytest.mark.parametrize("pack", [True, False])
def test_events_tell_the_stage_and_each_note_once(corpus, pack):
    events = []
    found = load(corpus, max_length=8, pack=pack, on_event=events.append)
    assert events[0] == Started("data", 64, "sequences")
    assert Finished("data") in events
    assert max(e.done for e in events if isinstance(e, Advanced)) == len(found.sequences)
    assert [(e.code, e.text) for e in events if isinstance(e, Warned)] == list(found.notes)


def test_a_document_longer_than_the_tokenizer_expects_is_no_warning(tmp_path, spoken):
    path = tmp_path / "a.txt"
    path.write_text("x" * 500)
    load(path, max_length=100)
    load(path, max_length=100, pack=False)
    assert spoken == []
