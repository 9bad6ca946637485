import csv
import gzip
import json
import os
from dataclasses import fields

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from characters import ids_of, load, no_tokenizer, spell

from hesscli.data.source import quiet
from hesscli.errors import UsageError

# Words that a reader of tables may take for a missing value, and numbers in quotes.
TEXTS = ["first line", "null", "NA", "", 'with, "quotes"', "last one of them"]
ROWS = [{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5]}, {"input_ids": [6, 7, 8, 9]}]


def write(folder, extension, texts=TEXTS, stem="data"):
    path = folder / f"{stem}{extension}"
    if extension == ".txt":
        path.write_text("".join(f"{text}\n" for text in texts))
    elif extension == ".jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    elif extension == ".json":
        path.write_text(json.dumps([{"text": text} for text in texts], indent=1))
    elif extension == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["text"], *([text] for text in texts)])
    elif extension == ".parquet":
        pq.write_table(pa.table({"text": texts}), path)
    else:
        plain = write(folder, extension.removesuffix(".gz"), texts, stem)
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


EXTENSIONS = [".txt", ".jsonl", ".json", ".csv", ".parquet", ".txt.gz", ".jsonl.gz", ".json.gz", ".csv.gz"]


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("pack", [True, False])
def test_every_format_gives_the_same_slice(tmp_path, extension, pack):
    (tmp_path / "base").mkdir()
    base = load(write(tmp_path / "base", ".txt"), pack=pack)
    found = load(write(tmp_path, extension), pack=pack)
    assert found.fingerprint == base.fingerprint
    assert ids_of(found) == ids_of(base)
    assert found.id == f"data{extension}"


def test_every_format_gives_the_documents_as_they_were_written(tmp_path):
    found = load(write(tmp_path, ".csv"), pack=False, max_length=64)
    assert ids_of(found) == [spell(text) for text in TEXTS if text]


@pytest.mark.parametrize("dtype", [pa.int32(), pa.int64(), pa.uint16()])
def test_the_width_of_integers_in_a_file_leaves_the_fingerprint(tmp_path, dtype):
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    table = tmp_path / "rows.parquet"
    column = pa.array([row["input_ids"] for row in ROWS], type=pa.list_(dtype))
    pq.write_table(pa.table({"input_ids": column}), table)
    found = load(table, tokenizer=no_tokenizer)
    assert found.fingerprint == load(lines, tokenizer=no_tokenizer).fingerprint
    assert ids_of(found) == [row["input_ids"] for row in ROWS]


def test_a_folder_gives_the_rows_of_its_files_in_the_order_of_their_names(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "more").mkdir(parents=True)
    write(folder, ".jsonl", ["bb"], "b")
    write(folder, ".jsonl.gz", ["aa"], "a")
    write(folder / "more", ".jsonl", ["cc"], "c")
    (folder / "README.md").write_text("# about\n")
    (folder / "dataset_infos.json").write_text("{}")
    (folder / ".hidden.csv").write_text("text\nno\n")
    found = load(folder, pack=False)
    assert ids_of(found) == [spell("aa"), spell("bb"), spell("cc")]
    assert found.id == "corpus"


def test_a_folder_has_the_splits_that_its_files_are_named_after(tmp_path):
    write(tmp_path, ".jsonl", ["seen"], "train")
    write(tmp_path, ".jsonl", ["held out"], "test")
    assert ids_of(load(tmp_path, pack=False)) == [spell("seen")]
    assert ids_of(load(tmp_path, pack=False, split="test")) == [spell("held out")]


def test_a_folder_of_tables_is_read_like_one_table(tmp_path):
    write(tmp_path, ".csv", ["null", "a b"])
    assert ids_of(load(tmp_path, pack=False)) == [spell("null"), spell("a b")]


def test_the_case_of_an_extension_does_not_matter(tmp_path):
    assert ids_of(load(write(tmp_path, ".jsonl").rename(tmp_path / "DATA.JSONL"), limit=1)) == [spell("first li")]


def test_a_name_with_signs_of_a_pattern_is_one_file(tmp_path):
    write(tmp_path, ".txt", ["other"], "a1")
    assert ids_of(load(write(tmp_path, ".txt", ["mine"], "a[1]*"), pack=False)) == [spell("mine")]


def test_a_relative_path_and_a_home_are_files(tmp_path, monkeypatch):
    write(tmp_path, ".txt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("data.txt").fingerprint == load("./data.txt").fingerprint == load("~/data.txt").fingerprint
    assert load(".").id == tmp_path.name


def test_a_slice_holds_no_path_and_leaves_no_file_behind(tmp_path, monkeypatch):
    path = write(tmp_path, ".jsonl")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    before = sorted(tmp_path.rglob("*"))
    found = load(path)
    assert sorted(tmp_path.rglob("*")) == before
    said = [str(getattr(found, field.name)) for field in fields(found) if field.name != "sequences"]
    assert not any(str(tmp_path) in text for text in said)


def test_the_name_given_is_the_id(tmp_path):
    assert load(write(tmp_path, ".txt"), name="demo").id == "demo"


def test_a_folder_may_hold_files_that_describe_its_data(tmp_path):
    write(tmp_path, ".csv", ["aa"])
    for name in ("README.md", "config.json", "dataset_infos.json"):
        (tmp_path / name).write_text("{}")
    assert ids_of(load(tmp_path, pack=False)) == [spell("aa")]


def test_datasets_is_silent_and_its_settings_come_back(tmp_path, capfd, spoken):
    broken = write(tmp_path, ".jsonl")
    broken.write_text("{oops\n")
    level = datasets.logging.get_verbosity()
    datasets.enable_progress_bars()
    datasets.logging.set_verbosity_info()
    try:
        with quiet():
            assert datasets.are_progress_bars_disabled()
        with pytest.raises(UsageError):
            load(broken)
        assert not datasets.are_progress_bars_disabled()
        assert datasets.logging.get_verbosity() == datasets.logging.INFO
    finally:
        datasets.logging.set_verbosity(level)
    assert spoken == []
    assert capfd.readouterr() == ("", "")


def test_a_file_is_read_without_the_network(tmp_path, monkeypatch):
    import socket

    def refuse(*_args, **_kwargs):
        pytest.fail("a local file asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert load(write(tmp_path, ".jsonl")).num_terms
    assert os.listdir(tmp_path) == ["data.jsonl"]
