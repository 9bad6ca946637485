"""hess under torchrun: the report of one process, one voice, and one line for what does not go together."""

import json
import os
import socket
import subprocess
import sys

import pytest
from safetensors.numpy import load_file
from tiny import ragged_slice, tiny_model

from hesscli.cli.app import _exit_code
from hesscli.data import IGNORED

# What depends on where and when a run was made, and on roundings that it measures.
OWN = {"cost", "created", "environment", "run_id", "seconds"}
NOISE = {"precision", "preflight", "residual", "bar", "numeric", "orthogonality_loss", "why", "placement", "product"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint with tied embeddings beside ragged rows; runs are written here too."""
    place = tmp_path_factory.mktemp("torchrun")
    tiny_model("qwen3").save_pretrained(place / "qwen3")
    rows = [
        {"input_ids": row.inputs["input_ids"].tolist(), "labels": [IGNORED, *row.targets[:-1].tolist()]}
        for row in ragged_slice((5, 11, 3, 9, 7)).sequences
    ]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def hess(folder, words, *, processes=1, measuring=True):
    """What `hess WORDS` says in so many processes, started by torchrun where there are several."""
    start = [sys.executable, "-m"]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        start += ["torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port), "-m"]
    command = [*start, "hesscli", *words.split()]
    if measuring:
        command += ["--plots", "none", "-d", "rows.jsonl", "-o", f"out{processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=170, check=False
    )


def own_lines(said):
    """Stderr without torchrun's own account of a failure."""
    return [line for line in said.stderr.splitlines() if line.startswith(("error", "warning"))]


def differences(one, other, path=""):
    """The paths at which two reports differ by more than roundings."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = (one.keys() | other.keys()) - OWN - NOISE
        return [found for key in sorted(keys) for found in differences(one.get(key), other.get(key), f"{path}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [d for i, (a, b) in enumerate(zip(one, other, strict=True)) for d in differences(a, b, f"{path}[{i}]")]
    if isinstance(one, float) and isinstance(other, float):
        return [] if one == pytest.approx(other, rel=2e-4, abs=1e-7) else [(path, one, other)]
    return [] if one == other else [(path, one, other)]


@pytest.mark.parametrize(
    "probe", ["trace --diagonal --preset quick", "topk --k 1 --which largest --steps 30 --operator ggn"]
)
def test_two_processes_give_the_report_of_one(folder, probe):
    both = {n: hess(folder, f"{probe} qwen3 --json", processes=n) for n in (1, 2)}
    assert [said.returncode for said in both.values()] == [0, 0], both[2].stderr
    one, two = (json.loads(said.stdout) for said in both.values())
    assert differences(one, two) == []
    assert (one["operator"]["placement"], two["operator"]["placement"]) == ("single", "fsdp")
    assert two["operator"]["product"] == "layered"
    assert two["operator"]["preflight"]["known_answer"] < 1e-4
    assert two["environment"]["processes"] == "2"
    for file in one["artifacts"]:
        mine, theirs = (load_file(next((folder / f"out{n}").rglob(file))) for n in (1, 2))
        assert {name: a.shape for name, a in mine.items()} == {name: a.shape for name, a in theirs.items()}


def test_an_equal_run_is_found_by_all_and_one_process_speaks(folder):
    words = "trace --diagonal --preset quick qwen3 -q"
    said = hess(folder, words, processes=2)
    assert said.returncode == 0, said.stderr
    (line,) = said.stdout.splitlines()
    assert json.loads((folder / line).read_text())["command"] == "trace"
    assert len(list((folder / "out2").rglob("trace-*"))) == 1


def test_what_is_not_for_several_processes_is_refused_in_one_line(folder):
    said = hess(folder, "topk qwen3 --product double-backward", processes=2)
    assert said.returncode == 1  # torchrun's own
    assert "exitcode  : 2" in said.stderr
    (line,) = [found for found in own_lines(said) if found.startswith("error")]
    assert line.startswith("error: operator.product: 'double-backward' wants all weights in each process; use")
    assert not list(folder.rglob("*.part"))


@pytest.mark.parametrize(
    ("size", "words", "what"),
    [
        (
            "2",
            ["--placement", "layerwise"],
            "model.placement: 'layerwise' in 2 processes would measure the same 2 times",
        ),
        ("2", ["--device-map", "auto"], "model.placement: a device map in 2 processes would measure the same 2 times"),
        ("1", ["--placement", "fsdp"], "model.placement: several processes are needed, and RANK is not set; start it"),
    ],
)
def test_placements_and_numbers_of_processes_that_do_not_go_together(size, words, what, monkeypatch, capfd):
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.delenv("RANK", raising=False)
    assert _exit_code(["topk", "demo", *words]) == 2
    assert capfd.readouterr().err.startswith(f"error: {what}")


def test_a_sweep_has_one_voice_and_the_exit_code_of_one_process(folder):
    (folder / "both.yaml").write_text("schema: hess.recipe/1\nprobe: trace\nmatrix: {model.id: [qwen3, none]}\n")
    given = "estimator.probes=2 estimator.steps=2 data.id=rows.jsonl model.offline=true output.plots=none"
    words = f"sweep both.yaml {given} --json -o cells"
    said = hess(folder, words, processes=2, measuring=False)
    manifest = json.loads(said.stdout)
    assert [cell["status"] for cell in manifest["cells"]] == ["done", "failed"], said.stderr
    assert manifest["cells"][1]["exit_code"] == 6
    assert "exitcode  : 7" in said.stderr
    (line,) = [found for found in own_lines(said) if found.startswith("error")]
    assert line.startswith("error: sweep: 1 of 2 cells failed (first: model: ")
    report = json.loads((folder / "cells" / manifest["cells"][0]["folder"] / "report.json").read_text())
    assert report["operator"]["placement"] == "fsdp"
    assert sorted(path.name for path in (folder / "cells").iterdir()) == ["qwen3", "sweeps"]
