"""Loading by hub id, against a server of our own that speaks the hub's protocol.

huggingface_hub reads HF_ENDPOINT and HF_HOME when it is imported, so the loading runs in one child process
that takes its requests as lines of JSON.
"""

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlparse

import pytest

from hesscli.checkpoint import hub as hub_module
from hesscli.errors import UnavailableError
from hesscli.events import ignore

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "fedcba9876543210fedcba9876543210fedcba98"

CHILD = """
import json, sys
import huggingface_hub.constants as constants
from hesscli.checkpoint import load_checkpoint
from hesscli.checkpoint.bare import bare_model
from hesscli.errors import HessError

for line in sys.stdin:
    request = json.loads(line)
    events = []
    constants.HF_HUB_OFFLINE = request.pop("hub_offline", False)
    options = dict(revision=None, task="auto", dtype="float32", attention="auto", placement="auto", device_map=None,
                   max_memory=None, offload_dir=None, trust_remote_code=False, allow_pickle=False, offline=False)
    try:
        if request.pop("bare", False):
            beside = ("placement", "device_map", "max_memory", "offload_dir")
            bare = bare_model(request["model"], **{k: v for k, v in options.items() if k not in beside})
            sizes = {name: p.numel() for name, p in bare.model.named_parameters()}
            answer = dict(own={name: sizes[name] for name in bare.adapter_parameters}, all=sum(sizes.values()))
            print(json.dumps(answer), flush=True)
            continue
        checkpoint = load_checkpoint(request.pop("model"), **{**options, **request}, on_event=events.append)
        i = checkpoint.identity
        answer = dict(id=i.id, revision=i.revision, commit=i.commit, sha256=i.weights_sha256,
                      files=sorted(f.name for f in checkpoint.folder.iterdir()),
                      tokens=checkpoint.tokenizer()("w3 w5")["input_ids"])
    except HessError as error:
        answer = dict(line=str(error), code=error.exit_code)
    answer["events"] = [repr(event) for event in events]
    print(json.dumps(answer), flush=True)
"""


class Hub(ThreadingHTTPServer):
    """Repositories by id: a folder per commit, and the names that stand for commits."""

    daemon_threads = True

    def __init__(self, folders):
        super().__init__(("127.0.0.1", 0), Protocol)
        self.repositories = {
            name: {"commits": commits, "refs": {"main": COMMIT, "old": OLDER}} for name, commits in folders.items()
        }
        self.requests = []

    @property
    def fetched(self):
        return [path.rsplit("/", 1)[1] for method, path in self.requests if method == "GET" and "/resolve/" in path]


class Protocol(BaseHTTPRequestHandler):
    """The calls that a download makes: model info, tree, and files with their ETag and commit."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlparse(self.path).path)
        self.server.requests.append((self.command, path))
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        id, rest = "/".join(parts[:2]), parts[2:]
        refused = {
            "org/refused": (403, {"X_Error_Message": "no such right"}),
            "org/busy": (503, {}),
            "org/limited": (429, {}),
            "org/gated": (403, {"X_Error_Code": "GatedRepo"}),
        }.get(id)
        if refused and not (api and id == "org/gated"):  # a gated repository shows its listing to everybody
            return self.answer(refused[0], **refused[1])
        if id not in self.server.repositories:
            return self.answer(401, X_Error_Code="RepoNotFound")
        repository = self.server.repositories[id]
        name = "main" if len(rest) < 2 else "/".join(rest[1:]) if rest[0] == "revision" else rest[1]
        commit = repository["refs"].get(name, name)
        if commit not in repository["commits"]:
            return self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id: " + name)
        folder = repository["commits"][commit]
        if api:
            names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
            siblings = [{"rfilename": name} for name in names]
            return self.answer(200, json.dumps({"id": id, "sha": commit, "siblings": siblings}).encode())
        file = folder / "/".join(rest[2:])
        if not file.is_file():
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        body = file.read_bytes()
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        return self.answer(200, body, ETag=etag, X_Repo_Commit=commit, Accept_Ranges="bytes")


@pytest.fixture(scope="module")
def hub(made_once, tmp_path_factory):
    base = tmp_path_factory.mktemp("hub")
    both = base / "both"
    both.mkdir()
    for file in (made_once / "tokenized").iterdir():
        (both / file.name).write_bytes(file.read_bytes())
    for extra in ("pytorch_model.bin", "README.md", "model.onnx", "consolidated.safetensors", "modeling_x.py"):
        (both / extra).write_bytes(b"never fetched")
    (both / "original").mkdir()
    (both / "original" / "params.json").write_bytes(b"never fetched")
    sharded = base / "sharded"
    sharded.mkdir()
    for file in [*(made_once / "tokenized").iterdir(), *(made_once / "sharded").iterdir()]:
        if file.name != "model.safetensors":
            (sharded / file.name).write_bytes(file.read_bytes())
    pickled = base / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((both / "config.json").read_bytes())
    (pickled / "pytorch_model.bin").write_bytes(b"never fetched")
    server = Hub(
        {
            "org/tiny": {COMMIT: both, OLDER: sharded},
            "org/gated": {COMMIT: both},
            "org/pickled": {COMMIT: pickled},
            "org/other": {COMMIT: both},
        }
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def start(endpoint, home):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_TOKEN": "hf_secret", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(home / "stderr").open("w"),
        text=True,
        env=environment,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def child(hub, home):
    process = start(f"http://127.0.0.1:{hub.server_address[1]}", home)
    yield process
    process.stdin.close()
    process.wait(timeout=60)


@pytest.fixture
def ask(hub, child):
    def call(model, **options):
        hub.requests.clear()
        child.stdin.write(json.dumps({"model": model, **options}) + "\n")
        child.stdin.flush()
        return json.loads(child.stdout.readline())

    return call


def test_a_hub_id_loads_with_its_commit_and_only_the_files_that_it_needs(ask, hub, made_once):
    answer = ask("org/tiny")
    weights = (made_once / "tokenized" / "model.safetensors").read_bytes()
    assert (answer["id"], answer["revision"], answer["commit"]) == ("org/tiny", None, COMMIT)
    assert answer["sha256"] == hashlib.sha256(weights).hexdigest()
    assert answer["tokens"] == [3, 5]
    wanted = {file.name for file in (made_once / "tokenized").iterdir()}
    assert set(hub.fetched) == wanted
    assert set(answer["files"]) == wanted
    assert any("Started(stage='fetch org/tiny'" in event for event in answer["events"])


def test_a_branch_behind_an_at_is_resolved_to_its_commit_and_shards_are_followed(ask, hub):
    answer = ask("org/tiny@old")
    assert (answer["revision"], answer["commit"]) == ("old", OLDER)
    assert "model-00001-of-00004.safetensors" in hub.fetched
    assert answer["sha256"] != ask("org/tiny", revision="main")["sha256"]


@pytest.mark.parametrize("how", [{"offline": True}, {"hub_offline": True}])
def test_the_second_time_it_comes_from_the_cache_without_a_request(ask, hub, how):
    first = ask("org/tiny")
    again = ask("org/tiny", **how)
    assert hub.requests == []
    assert not any("hub_unreachable" in event for event in again["events"])
    assert {**again, "events": None} == {**first, "events": None}
    ask("org/tiny@old")
    assert ask("org/tiny", revision="old", **how)["commit"] == OLDER
    assert hub.requests == []


def test_a_cached_checkpoint_loads_with_a_warning_where_the_hub_is_out_of_reach(ask, hub, home, child):
    ask("org/tiny")
    stranded = start("http://127.0.0.1:9", home)  # the discard port: nothing listens
    stranded.stdin.write(json.dumps({"model": "org/tiny"}) + "\n" + json.dumps({"model": "org/unseen"}) + "\n")
    stranded.stdin.close()
    answer, refused = [json.loads(line) for line in stranded.stdout]
    stranded.wait(timeout=60)
    assert answer["commit"] == COMMIT
    assert any("hub_unreachable" in event for event in answer["events"])
    assert refused["code"] == 6
    assert "the hub cannot be reached for 'org/unseen'; check the network" in refused["line"]


def test_a_cache_that_lacks_a_shard_says_so(ask, home):
    ask("org/tiny@old")
    (shard,) = (home / "hub").rglob("model-00002-of-*.safetensors")
    target = shard.readlink()
    shard.unlink()
    try:
        answer = ask("org/tiny@old", offline=True)
    finally:
        shard.symlink_to(target)
    assert answer["code"] == 6
    assert "model-00002-of-00004.safetensors of 'org/tiny' is missing" in answer["line"]


REFUSED = {
    "gated": ("org/gated", ["model: 'org/gated' is gated", "accept its terms", "HF_TOKEN"]),
    "missing": ("org/nothing", ["model: 'org/nothing' is neither a folder here nor on the hub", "check the name"]),
    "revision": ("org/tiny@v9", ["revision: 'org/tiny' has no revision 'v9'", "a branch, a tag or a commit"]),
    "forbidden": ("org/refused", ["model: the hub refuses 'org/refused' to your token (HTTP 403)", "HF_TOKEN"]),
    "busy": ("org/busy", ["model: the hub fails to serve 'org/busy' (HTTP 503)", "try again later"]),
    "limited": ("org/limited", ["model: the hub asks for patience with 'org/limited' (HTTP 429)", "later"]),
    "pickle": ("org/pickled", ["weights: 'org/pickled' holds only pytorch_model.bin", "--allow-pickle"]),
    "never cached": ("org/other", ["model: 'org/other' is not in the cache, and offline mode is on", "run once"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_hub_refuses_is_one_line_with_exit_code_6(ask, hub, name):
    model, words = REFUSED[name]
    answer = ask(model, offline=name == "never cached")
    assert answer["code"] == 6
    line = answer["line"]
    assert "\n" not in line
    assert "http://" not in line
    assert "hf_secret" not in line
    for word in words:
        assert word in line
    assert "pytorch_model.bin" not in hub.fetched


def test_all_of_this_printed_nothing(ask, home):
    ask("org/tiny")
    assert (home / "stderr").read_text() == ""


def test_a_full_disk_is_named_with_the_way_out(monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("xet: could not write") from OSError(errno.ENOSPC, "No space left on device")

    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=n) for n in ("config.json", "model.safetensors")])
    monkeypatch.setattr(hub_module.HfApi, "model_info", lambda *_, **__: info)
    monkeypatch.setattr(hub_module, "hf_hub_download", fail)
    with pytest.raises(UnavailableError, match="no room left on the disk for 'org/x'; free some, or set HF_HOME"):
        hub_module.fetch(
            "org/x", revision=None, allow_pickle=False, trust_remote_code=False, offline=False, on_event=ignore
        )
