"""The command line in this process, and a tiny checkpoint with rows of token ids for it to measure."""

import json
import shutil
from dataclasses import dataclass

import pytest
import torch
from tiny import ragged_slice, tiny_model

from hesscli.cli.app import _exit_code
from hesscli.data import IGNORED

torch.set_num_threads(1)


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture
def hess(capfd, monkeypatch, tmp_path):
    """Run `hess WORDS...` from an empty folder and return its exit code and what it said."""
    for name in ("HESS_MODEL", "HESS_DEBUG", "FORCE_COLOR", "NO_COLOR", "CI", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*words):
        capfd.readouterr()
        code = _exit_code([str(word) for word in words])
        said = capfd.readouterr()
        return Ended(code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """`qwen3`, a checkpoint without a tokenizer, and `rows.jsonl`, the ragged rows; not to be changed."""
    folder = tmp_path_factory.mktemp("measured")
    tiny_model("qwen3").save_pretrained(folder / "qwen3")
    rows = [
        {
            "input_ids": row.inputs["input_ids"].tolist(),
            "labels": [IGNORED, *row.targets[:-1].tolist()],
        }
        for row in ragged_slice().sequences
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def checkpoint(made_once, tmp_path):
    """A copy of the checkpoint, beside `rows.jsonl`, that a test may damage; the working folder is theirs."""
    shutil.copytree(made_once / "qwen3", tmp_path / "qwen3")
    shutil.copy(made_once / "rows.jsonl", tmp_path / "rows.jsonl")
    return tmp_path / "qwen3"
