"""hess under torchrun: the report of one process, one voice, and one line for what does not go together."""

import json
import os
import subprocess
import sys

import pytest
from reports import differences
from safetensors.numpy import load_file
from spawned import in_shells
from tiny import ragged_slice, tiny_model

from hesscli.cli.app import _exit_code
from hesscli.data import IGNORED


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


GIVEN = "--plots none -d rows.jsonl"
PROBES = {
    "trace": "trace --diagonal --probes 2 --steps 6 qwen3",
    "topk": "topk --k 1 --which largest --steps 14 --tolerance 0.1 --operator ggn qwen3",
    "density": "density --probes 2 --steps 4 -L 3 --params *layers.0* qwen3",
    "blockdiag": "blockdiag --probes 2 --top 0 -L 3 qwen3",
    "solve": "solve --steps 4 --rhs row:1 --damping 5 -L 3 --params *layers.0* qwen3",
}
SEVERAL = {"trace": 2, "topk": 2, "density": 4, "blockdiag": 2, "solve": 2}


@pytest.fixture(scope="module")
def found(folder):
    """By name what each command said: each probe in one process and in several, then what goes by those runs."""
    calls = {
        f"{name} {n}": ([*words.split(), "--json", *GIVEN.split(), "-o", f"out{n}"], {"processes": n})
        for name, words in PROBES.items()
        for n in (1, SEVERAL[name])
    }
    calls["equal"] = ([*PROBES["trace"].split(), "-q", *GIVEN.split(), "-o", "out2"], {"processes": 2})
    (folder / "both.yaml").write_text("schema: hess.recipe/1\nprobe: trace\nmatrix: {model.id: [qwen3, none]}\n")
    given = "estimator.probes=2 estimator.steps=2 data.id=rows.jsonl model.offline=true output.plots=none"
    calls["sweep"] = (f"sweep both.yaml {given} --json -o cells".split(), {"processes": 2})
    return in_shells(folder, calls)


def own_lines(said):
    """Stderr without torchrun's own account of a failure."""
    return [line for line in said.splitlines() if line.startswith(("error", "warning"))]


@pytest.mark.parametrize("probe", PROBES)
def test_several_processes_give_the_report_of_one(folder, found, probe):
    counts = 1, SEVERAL[probe]
    both = [found[f"{probe} {n}"] for n in counts]
    assert [said[0] for said in both] == [0, 0], both[1][2]
    one, other = (json.loads(said[1]) for said in both)
    assert differences(one, other) == []
    assert (one["operator"]["placement"], other["operator"]["placement"]) == ("single", "fsdp")
    assert other["operator"]["product"] == "layered"
    assert other["operator"]["preflight"]["known_answer"] < 1e-4
    assert other["environment"]["processes"] == str(SEVERAL[probe])
    for file in (name for name in one["artifacts"] if name.endswith(".safetensors")):
        mine, theirs = (load_file(next((folder / f"out{n}").rglob(file))) for n in counts)
        assert {name: a.shape for name, a in mine.items()} == {name: a.shape for name, a in theirs.items()}


def test_an_equal_run_is_found_by_all_and_one_process_speaks(folder, found):
    code, out, said, _ = found["equal"]
    assert code == 0, said
    (line,) = out.splitlines()
    assert json.loads((folder / line).read_text())["command"] == "trace"
    assert len(list((folder / "out2").rglob("trace-*"))) == 1


def test_under_torchrun_itself_what_is_not_for_several_processes_is_refused_in_one_line(folder):
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "hesscli"]
    command = [*start, "topk", "qwen3", "--product", "double-backward", "-o", "refused", *GIVEN.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    said = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=170, check=False
    )
    assert said.returncode == 1  # torchrun's own
    assert "exitcode  : 2" in said.stderr
    (line,) = [one for one in own_lines(said.stderr) if one.startswith("error")]
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


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--nproc-per-node", "2"], "VERB: is missing after torchrun's flags; such as hess launch"),
        (["--nproc-per-node", "many", "topk"], "launch: Unsupported nproc_per_node value: many; torchrun --help"),
        (["--nonsense", "topk"], "launch: unrecognized arguments: --nonsense; such as hess launch"),
    ],
)
def test_a_launch_that_cannot_begin_is_one_line(words, what, monkeypatch, capfd):
    monkeypatch.setattr("logging.disable", lambda _level: None)
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    assert _exit_code(["launch", *words]) == 2
    assert capfd.readouterr().err.startswith(f"error: {what}")


def test_a_sweep_has_one_voice_and_the_exit_code_of_one_process(folder, found):
    code, out, said, _ = found["sweep"]
    manifest = json.loads(out)
    assert [cell["status"] for cell in manifest["cells"]] == ["done", "failed"], said
    assert (code, manifest["cells"][1]["exit_code"]) == (7, 6)
    (line,) = [one for one in own_lines(said) if one.startswith("error")]
    assert line.startswith("error: sweep: 1 of 2 cells failed (first: model: ")
    report = json.loads((folder / "cells" / manifest["cells"][0]["folder"] / "report.json").read_text())
    assert report["operator"]["placement"] == "fsdp"
    assert sorted(path.name for path in (folder / "cells").iterdir()) == ["qwen3", "sweeps"]
