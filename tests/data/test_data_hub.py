"""The hub itself is not reached.

A server on this machine refuses as the hub does, `datasets` is made to raise the rest, and a cache is laid out by hand.
"""

import os
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import import_module
from threading import Thread

import datasets
import pytest
from characters import ids_of, load, spell
from datasets.arrow_writer import ArrowWriter
from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError

from hesscli.errors import HessError

# The package that the hub's client stands on has changed its name; its failures keep theirs.
HTTP_ERROR = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
http = import_module(HTTP_ERROR.__module__.partition(".")[0])

COMMIT = "0123456789abcdef0123456789abcdef01234567"

FAILURES = {
    "not found": (
        DatasetNotFoundError("Dataset 'org/name' doesn't exist on the Hub or cannot be accessed."),
        6,
        ["dataset: 'org/name' is no file or folder here and no data set on the hub", "HF_TOKEN"],
    ),
    "gated": (
        DatasetNotFoundError("Dataset 'org/name' is a gated dataset on the Hub. Visit the page\nto ask for access."),
        6,
        ["dataset: 'org/name' is gated", "HF_TOKEN"],
    ),
    "no such revision": (
        DatasetNotFoundError("Revision 'v9' doesn't exist for dataset 'org/name' on the Hub."),
        6,
        ["dataset_revision: 'org/name' has no revision 'v9'"],
    ),
    "script": (
        RuntimeError("Dataset scripts are no longer supported, but found name.py"),
        6,
        ["dataset: 'org/name' is a loading script", "refs/convert/parquet"],
    ),
    "no network": (
        ConnectionError("Couldn't reach 'org/name' on the Hub (LocalEntryNotFoundError)"),
        6,
        ["cannot be fetched", "Couldn't reach", "check the network"],
    ),
    "timeout": (http.ConnectTimeout("timed out"), 6, ["cannot be fetched: timed out"]),
    "no data files": (DataFilesNotFoundError("No (supported) data files found in org/name"), 6, ["holds no files"]),
    "files that are gone": (FileNotFoundError("no file at /home/x. No file at org/name either"), 6, ["holds no files"]),
    "configuration left out": (
        ValueError("Config name is missing.\nPlease pick one among the available configs: ['de', 'en']\nExample"),
        2,
        ["config_name: org/name has several configurations", "'de', 'en'"],
    ),
    "unknown configuration": (
        ValueError("BuilderConfig 'fr' not found. Available: ['de', 'en']"),
        2,
        ["config_name: org/name has no such configuration", "'de', 'en'"],
    ),
    "anything else": (TypeError("strange.\nMore"), 2, ["dataset: 'org/name' cannot be read: strange; give"]),
}


def refused(**options):
    with pytest.raises(HessError) as caught:
        load("org/name", **options)
    return caught.value


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize("case", FAILURES)
def test_what_datasets_raises_is_one_line_with_an_exit_code(monkeypatch, online, case):
    raised, exit_code, words = FAILURES[case]

    def fail(*_args, **_kwargs):
        raise raised

    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    error = refused(revision="v9")
    assert error.exit_code == exit_code
    assert all(word in str(error) for word in words), str(error)
    assert "\n" not in str(error)
    assert error.__cause__ is raised


@pytest.fixture
def hub(tmp_path, monkeypatch, online):
    """A server whose every answer is the (status, X-Error-Code) that the returned list holds."""
    answer = []

    class Refuse(BaseHTTPRequestHandler):
        def do_HEAD(self):
            status, code = answer
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()

        def log_message(self, *_args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Refuse)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    yield answer
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (404, "RepoNotFound", "is no file or folder here and no data set on the hub"),
        (401, "RepoNotFound", "is no file or folder here and no data set on the hub"),
        (403, "GatedRepo", "is gated; ask for access"),
        (401, "GatedRepo", "is gated; ask for access"),
        (404, "RevisionNotFound", "has no revision 'v9'"),
        (418, "", "is no file or folder here and cannot be fetched"),
    ],
)
def test_a_refusal_of_the_hub_is_exit_6(hub, capfd, status, code, words):
    hub[:] = status, code
    error = refused(revision="v9")
    assert error.exit_code == 6
    assert words in str(error), str(error)
    assert "\n" not in str(error)
    assert os.getcwd() not in str(error)
    assert capfd.readouterr() == ("", "")


class Builder:
    """What `load_dataset_builder` returns, as far as it is used, and its one split."""

    hash = COMMIT

    def __init__(self, rows):
        self.rows = rows

    def as_streaming_dataset(self):
        return {"train": self}

    def __iter__(self):
        return self.rows()


def test_a_failure_in_the_middle_of_the_stream_is_translated(monkeypatch, online):
    def rows():
        yield {"text": "abcdefgh"}
        raise http.ReadTimeout("the read timed out")

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_a, **_k: Builder(rows))
    error = refused()
    assert error.exit_code == 6
    assert "the read timed out" in str(error)
    assert load("org/name", limit=1).num_tokens == 8


def test_the_commit_is_recorded_and_options_are_passed_on(monkeypatch, online):
    seen = {}

    def build(path, **options):
        seen.update(path=path, **options)
        return Builder(lambda: iter([{"text": "abcdefgh"}]))

    monkeypatch.setattr(datasets, "load_dataset_builder", build)
    found = load("org/name", config_name="en", revision="v1")
    assert seen == {"path": "org/name", "name": "en", "revision": "v1"}
    assert (found.id, found.revision, found.config_name, found.split) == ("org/name", COMMIT, "en", "train")


@pytest.fixture
def empty_caches(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    return tmp_path


@pytest.mark.parametrize("by_variable", [False, True])
def test_offline_and_not_cached_is_exit_6_at_once(empty_caches, monkeypatch, by_variable):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", by_variable)
    error = refused(offline=not by_variable)
    assert error.exit_code == 6
    assert "'org/name' is not cached and hess is offline; run `hf download --repo-type dataset org/name`" in str(error)
    assert datasets.config.HF_HUB_OFFLINE is by_variable


def download(root, files):
    """The hub's cache as its client lays it out."""
    repository = root / "hub" / "datasets--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(content)


def test_offline_a_downloaded_data_set_is_read_at_its_commit(empty_caches):
    download(empty_caches, {"README.md": "# about\n", "train.jsonl": '{"text": "abcdefgh"}\n'})
    for revision in (None, "main", COMMIT):
        found = load("org/name", offline=True, revision=revision)
        assert ids_of(found) == [spell("abcdefgh")]
        assert (found.id, found.revision) == ("org/name", COMMIT)
    assert "at revision 'v9' is not cached" in str(refused(offline=True, revision="v9"))


def test_offline_a_card_alone_is_not_a_cached_data_set(empty_caches):
    download(empty_caches, {"README.md": "# about\n"})
    assert "is not cached" in str(refused(offline=True))
    assert "is not cached" in str(refused(offline=True, revision="main"))


def cache_prepared(root, texts):
    """The cache of `datasets` as it lies after a run that was not streamed."""
    folder = root / "datasets" / "org___name" / "default" / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    prepared = datasets.Dataset.from_dict({"text": texts})
    with ArrowWriter(path=str(folder / "name-train.arrow"), features=prepared.features) as writer:
        writer.write_table(prepared.data.table)
        writer.finalize()
    split = {"name": "train", "num_examples": len(texts), "dataset_name": "name"}
    info = datasets.DatasetInfo(
        features=prepared.features,
        splits={"train": split},
        builder_name="json",
        dataset_name="name",
        config_name="default",
        version="0.0.0",
    )
    info.write_to_directory(str(folder))


@pytest.mark.parametrize("card", [False, True])
def test_offline_what_datasets_has_prepared_is_read(empty_caches, card):
    if card:
        download(empty_caches, {"README.md": "# about\n"})
    cache_prepared(empty_caches, ["abcdefgh", "ij"])
    found = load("org/name", offline=True, pack=False)
    assert ids_of(found) == [spell("abcdefgh"), spell("ij")]
    assert found.revision == COMMIT
    # It holds the latest that was prepared, whatever revision that was.
    assert "at revision 'v1' is not cached" in str(refused(offline=True, revision="v1"))


def test_a_revision_is_never_replaced_by_what_happens_to_be_cached(hub, tmp_path):
    cache_prepared(tmp_path, ["abcdefgh"])
    hub[:] = 418, ""
    error = refused(revision="v1")
    assert error.exit_code == 6
    assert "may be another revision" in str(error)
    assert load("org/name").revision == COMMIT
