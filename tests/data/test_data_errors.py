import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from characters import VOCAB_SIZE, load, make_tokenizer

from hesscli.data.failures import Origin, translated
from hesscli.errors import HessError, UsageError


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def ids(*rows):
    return lines(*({"input_ids": row} for row in rows))


TEXT = lines({"text": "abcdefghijkl"}, {"text": "mnop"})
LABELS = {"input_ids": [1, 2, 3]}

# (file, what it holds, options, words of the message)
CASES = {
    "no such file": ("", None, {}, ["dataset: no file or folder", "nowhere.jsonl"]),
    "unsupported extension": ("a.xml", "<a/>", {}, ["dataset: a.xml has an extension", ".parquet"]),
    "no extension": ("corpus", "words", {}, ["dataset: corpus has an extension"]),
    "compressed parquet": ("a.parquet.gz", "x", {}, ["dataset: a.parquet.gz has an extension"]),
    "empty jsonl": ("a.jsonl", "", {}, ["dataset: a.jsonl is empty"]),
    "empty parquet": ("a.parquet", "", {}, ["dataset: a.parquet is empty"]),
    "empty list": ("a.json", "[]", {}, ["dataset: a.json holds no rows"]),
    "header alone": ("a.csv", "text\n", {}, ["dataset: a.csv holds no rows"]),
    "empty gzip": ("a.jsonl.gz", gzip.compress(b""), {}, ["dataset: a.jsonl.gz holds no rows"]),
    "blank lines": ("a.txt", "\n  \n\t\n", {}, ["column: 'text' of a.txt holds only blank text"]),
    "blank text unpacked": ("a.txt", "\n  \n", {"pack": False}, ["column:", "only blank text"]),
    "null text": ("a.jsonl", lines({"text": None}), {}, ["column:", "only blank text"]),
    "one token": ("a.txt", "x\n", {}, ["column: 'text' of a.txt gives no sequence in which a token is predicted"]),
    "one token each": ("a.txt", "x\ny\n", {"pack": False}, ["column:", "no sequence in which a token is predicted"]),
    "missing column": ("a.jsonl", TEXT, {"column": "txet"}, ["column: 'txet'", "it has: text", "did you mean 'text'"]),
    "no text column": ("a.jsonl", lines({"Text": "a", "n": 1}), {}, ["column: 'text'", "Text, n", "mean 'Text'"]),
    "nothing like it": ("a.jsonl", lines({"body": "a"}), {}, ["column: 'text'", "body", "name one with --column"]),
    "text is numbers": ("a.jsonl", lines({"text": 3}), {}, ["column: 'text'", "holds integers in row 0"]),
    "text is lists": ("a.jsonl", lines({"text": [1, 2]}), {}, ["column: 'text'", "lists of integers", "input_ids"]),
    "numbers in a csv": ("a.csv", "text\n12\n13\n", {}, ["column: 'text' of a.csv holds integers"]),
    "ids are text": ("a.jsonl", ids("abc"), {}, ["input_ids: row 0 holds strings"]),
    "ids are strings": ("a.jsonl", ids(["a", "b"]), {}, ["input_ids: row 0 holds strings"]),
    "ids are floats": ("a.jsonl", ids([1, 2], [1.5, 2]), {}, ["input_ids: row ", "holds floats"]),
    "ids are nested": ("a.jsonl", ids([[1, 2], [3, 4]]), {}, ["input_ids: row 0 holds lists of integers"]),
    "ids are ragged": ("a.jsonl", ids([[1, 2], [3]]), {}, ["input_ids: row 0 holds lists of integers"]),
    "ids are booleans": ("a.jsonl", ids([True, False]), {}, ["input_ids: row 0 holds booleans"]),
    "ids hold null": ("a.jsonl", ids([1, 2], [1, None]), {}, ["input_ids: row 1 holds nulls"]),
    "ids in a csv": ("a.csv", 'input_ids\n"[1, 2]"\n', {}, ["input_ids: row 0 holds strings"]),
    "negative id": ("a.jsonl", ids([1, 2], [3, -1]), {}, ["input_ids: row 1 holds -1", f"vocabulary of {VOCAB_SIZE}"]),
    "id too large": ("a.jsonl", ids([1, VOCAB_SIZE]), {}, [f"input_ids: row 0 holds {VOCAB_SIZE}", "outside"]),
    "label too large": (
        "a.jsonl",
        lines(LABELS | {"labels": [1, 2, 999]}),
        {},
        ["labels: row 0 holds 999", f"vocabulary of {VOCAB_SIZE}", "-100"],
    ),
    "label negative": ("a.jsonl", lines(LABELS | {"labels": [1, -1, 2]}), {}, ["labels: row 0 holds -1"]),
    "labels short": ("a.jsonl", lines(LABELS | {"labels": [1, 2]}), {}, ["labels: row 0 has 2", "3 input_ids"]),
    "labels absent": ("a.jsonl", lines(LABELS | {"labels": [1, 2, 3]}, LABELS), {}, ["labels: row 1 has none"]),
    "mask short": ("a.jsonl", lines(LABELS | {"attention_mask": [1]}), {}, ["attention_mask: row 0 has 1"]),
    "mask of twos": ("a.jsonl", lines(LABELS | {"attention_mask": [1, 2, 1]}), {}, ["attention_mask: row 0 holds 2"]),
    "every label masked": (
        "a.jsonl",
        lines(LABELS | {"labels": [5, -100, -100]}),
        {},
        ["labels: none of the 1 rows", "no", "-100"],
    ),
    "rows of one token": (
        "a.jsonl",
        ids([1], [2], []),
        {},
        ["input_ids: none of the 3 rows of a.jsonl", "no token is predicted"],
    ),
    "row above positions": (
        "a.jsonl",
        ids([1, 2], [1, 2, 3, 4]),
        {"max_positions": 3},
        ["input_ids: row 1 has 4 tokens", "the model's 3 positions"],
    ),
    "length above positions": (
        "a.jsonl",
        TEXT,
        {"max_length": 4096, "max_positions": 512},
        ["max_length: 4096 is above the model's 512 positions", "lower it to 512"],
    ),
    "length of one": ("a.jsonl", TEXT, {"max_length": 1}, ["max_length: 1 is below 2"]),
    "no sequences": ("a.jsonl", TEXT, {"limit": 0}, ["limit: 0 is below 1"]),
    "unknown split": ("a.jsonl", TEXT, {"split": "tset"}, ["split: 'tset'", "it has: train"]),
    "slice of a split": ("a.jsonl", TEXT, {"split": "train[:9]"}, ["split: 'train[:9]'", "it has: train"]),
    "revision of a file": ("a.jsonl", TEXT, {"revision": "main"}, ["dataset_revision: 'main'", "a.jsonl"]),
    "config of a file": ("a.jsonl", TEXT, {"config_name": "en"}, ["config_name: 'en'", "a.jsonl"]),
    "malformed jsonl": ("a.jsonl", TEXT + '{"text": oops\n', {}, ["dataset: a.jsonl cannot be read as json", "mend"]),
    "truncated json": ("a.json", '[{"text": "a"},', {}, ["dataset: a.json cannot be read as json"]),
    "malformed csv": ("a.csv", 'text\n"open\n', {}, ["dataset: a.csv cannot be read as csv"]),
    "malformed parquet": (
        "a.parquet",
        "PAR1 but not really PAR1",
        {},
        ["dataset: a.parquet cannot be read as parquet"],
    ),
    "not UTF-8": ("a.txt", b"abc\xff\xfe\n", {}, ["dataset: a.txt is not UTF-8 text"]),
    "not gzip": ("a.jsonl.gz", TEXT, {}, ["dataset: a.jsonl.gz cannot be read as json"]),
    "truncated gzip": ("a.jsonl.gz", gzip.compress(TEXT.encode() * 9)[:-9], {}, ["dataset: a.jsonl.gz cannot be read"]),
    "tokenizer too large": (
        "a.jsonl",
        TEXT,
        {"vocab_size": 60},
        ["tokenizer: id 69 ('a') is outside the model's vocabulary of 60"],
    ),
    "eos outside the model": (
        "a.txt",
        "abcd\nefgh\n",
        {"tokenizer": lambda: with_new_eos()},
        [f"tokenizer: id {VOCAB_SIZE} ('<end>') is outside"],
    ),
}


def with_new_eos():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    return tokenizer


def refused(dataset, **options):
    with pytest.raises(HessError) as caught:
        load(dataset, **options)
    return caught.value


def assert_one_line(error, words, folder):
    message = str(error)
    assert message.startswith(words[0])
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert "; " in message
    assert message.split(": ")[0] == error.field
    assert str(folder) not in message or "nowhere" in message


@pytest.mark.parametrize("case", CASES)
def test_a_bad_input_is_one_line_and_exit_2(tmp_path, capfd, case):
    name, content, options, words = CASES[case]
    path = tmp_path / (name or "nowhere.jsonl")
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    error = refused(path, **options)
    assert isinstance(error, UsageError)
    assert error.exit_code == 2
    assert_one_line(error, words, tmp_path)
    assert capfd.readouterr() == ("", "")


def save(folder, **files):
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["dataset: folder corpus is empty"]),
        ({"a__xml": "<a/>", "b__py": "1"}, ["dataset: folder corpus holds no data, only .py, .xml"]),
        (
            {"a__txt": "a", "b__txt": "b", "c__csv": "text\na\n"},
            ["dataset: folder corpus mixes kinds of files (1 csv, 2 text)"],
        ),
        ({"a__txt": "", "b__txt": ""}, ["dataset: every file of folder corpus is empty"]),
        ({"state__json": "{}", "data__arrow": "x"}, ["dataset: corpus was written by save_to_disk", "to_parquet"]),
    ],
)
def test_a_folder_that_is_not_of_one_kind_is_exit_2(tmp_path, files, words):
    folder = tmp_path / "corpus"
    folder.mkdir()
    save(folder, **files)
    error = refused(folder)
    assert error.exit_code == 2
    assert_one_line(error, words, tmp_path)


def test_a_folder_named_like_a_pattern_is_exit_2(tmp_path):
    folder = tmp_path / "part[1]"
    folder.mkdir()
    save(folder, a__txt="abcdefgh\n")
    assert_one_line(refused(folder), ["dataset: the path of folder part[1]", "rename it"], tmp_path)


def test_a_split_that_a_folder_lacks_names_those_it_has(tmp_path):
    save(tmp_path, train__jsonl=TEXT, test__jsonl=TEXT)
    assert_one_line(refused(tmp_path, split="dev"), ["split: 'dev'", "train, test"], tmp_path)


def test_a_configuration_that_a_folder_lacks_names_those_it_has(tmp_path):
    save(tmp_path, train__jsonl=TEXT)
    error = refused(tmp_path, config_name="en")
    assert error.field == "config_name"
    assert "'default'" in str(error)


def test_the_nearest_file_is_named(tmp_path):
    save(tmp_path, corpus__jsonl=TEXT)
    assert "did you mean 'corpus.jsonl'?" in str(refused(tmp_path / "corpse.jsonl"))


@pytest.mark.parametrize("dataset", ["data/train.jsonl", "../data", "/data", "a/b/c", "corpus/", "x.csv.gz"])
def test_what_is_written_like_a_path_never_goes_to_the_hub(dataset):
    error = refused(dataset)
    assert error.exit_code == 2
    assert str(error).startswith(f"dataset: no file or folder {dataset!r}; ")


@pytest.mark.parametrize(
    ("dataset", "words"), [("json", "a kind of file"), ("two words", "no hub id"), ("", "no hub id")]
)
def test_what_can_be_no_hub_id_is_exit_2(dataset, words):
    error = refused(dataset)
    assert error.exit_code == 2
    assert words in str(error)


def test_a_bad_row_late_in_a_file_is_found_and_one_past_the_limit_is_not(tmp_path):
    save(tmp_path, a__jsonl=ids(*([[1, 2]] * 20), [1, 999]))
    assert "row 20 holds 999" in str(refused(tmp_path / "a.jsonl"))
    assert len(load(tmp_path / "a.jsonl", limit=20).sequences) == 20


def test_integers_beyond_64_bits_are_exit_2(tmp_path):
    table = pa.table({"input_ids": pa.array([[1, 2**63]], type=pa.list_(pa.uint64()))})
    pq.write_table(table, tmp_path / "a.parquet")
    assert "input_ids: row 0 holds integers beyond 64 bits" in str(refused(tmp_path / "a.parquet"))


def test_a_data_set_without_end_and_without_loss_terms_is_given_up(monkeypatch):
    from hesscli.data import load as loading
    from hesscli.data.checks import PATIENCE
    from hesscli.data.source import Source

    read = []

    def endless():
        while True:
            read.append(1)
            yield {"input_ids": [1]}

    monkeypatch.setattr(loading, "open_source", lambda *_a, **_k: Source(endless(), ("input_ids",), "big"))
    assert refused("org/big").field == "input_ids"
    assert len(read) == PATIENCE


def test_messages_of_third_parties_lose_their_paths_and_their_further_lines(tmp_path):
    raised = OSError(f"{tmp_path}/a.csv: row 3 is broken\nand more")
    with pytest.raises(UsageError) as caught, translated(Origin("a.csv", kind="csv", root=str(tmp_path))):
        raise raised
    what = "dataset: a.csv cannot be read as csv: a.csv: row 3 is broken; mend the file at that place"
    assert str(caught.value) == what
    assert caught.value.__cause__ is raised


def test_a_failure_of_the_tokenizer_is_passed_on(tmp_path):
    save(tmp_path, a__txt="abcdefgh\n")

    def missing():
        raise UsageError("model", "no tokenizer", "give one")

    assert refused(tmp_path / "a.txt", tokenizer=missing).field == "model"
