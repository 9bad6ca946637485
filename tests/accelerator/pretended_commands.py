"""Commands with weights on another device, over two, and away from it: the report is the host's.

Run in a process of its own by `test_second_device.py`.
"""

import json
import sys
from pathlib import Path

import pretend
import pytest
from tiny import ragged_slice, tiny_model

from hesscli.cli.app import _exit_code
from hesscli.data import IGNORED

sys.path.insert(0, str(Path(__file__).parent.parent / "cli"))
from test_cli_offload import numbers

pretend.register()
PARTS = ["model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1", "model.norm", "lm_head"]
FIRST, SECOND = "pretend:0", "pretend:1"
PLACES = {
    "on the device": SECOND,
    "over two": json.dumps(dict(zip(PARTS, [FIRST, FIRST, FIRST, SECOND, SECOND, SECOND], strict=True))),
    "host and disk": json.dumps(dict(zip(PARTS, [SECOND, SECOND, "cpu", "disk", SECOND, SECOND], strict=True))),
}
DATA = "-d rows.jsonl --seed 3 --plots none --json"
COMMANDS = [
    ("density", "--probes 1 --steps 3 --product double-backward", "on the device"),
    ("trace", "--probes 1 --steps 2 --diagonal --method hutchinson --operator fisher", "on the device"),
    ("topk", "--k 1 --steps 6 --basis host --basis-dtype bfloat16", "over two"),
    ("blockdiag", "--probes 1 --top 0 --product layered", "host and disk"),
    ("solve", "--steps 6 --rhs row:1 --damping 5 --product layered", "host and disk"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("measured")
    tiny_model("qwen3").save_pretrained(home / "qwen3")
    rows = ragged_slice((6, 4, 5)).sequences
    kept = [{"input_ids": r.inputs["input_ids"].tolist(), "labels": [IGNORED, *r.targets[:-1].tolist()]} for r in rows]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    return home


@pytest.mark.parametrize(("probe", "words", "place"), COMMANDS, ids=lambda value: value.split(" ")[0])
def test_the_report_is_the_hosts(folder, monkeypatch, capfd, probe, words, place):
    monkeypatch.chdir(folder)
    reports = []
    for where in ("cpu", PLACES[place]):
        command = [probe, "qwen3", *DATA.split(), *words.split(), "--device-map", where, "-o", f"out{len(where)}"]
        assert _exit_code(command) == 0, capfd.readouterr().err
        reports.append(json.loads(capfd.readouterr().out))
    host, there = map(numbers, reports)
    assert reports[1]["environment"]["device"].startswith("pretend")
    assert host.keys() == there.keys()
    for path, value in host.items():
        if path in (".operator.placement", ".operator.why") or (
            place == "host and disk" and path.endswith((".slope", ".curvature"))
        ):
            continue  # whose derivatives are looked at in float64 where all weights have room in memory
        if isinstance(value, float):
            loose = 1e-4 if any(word in path for word in ("preflight", "errors", "residual", "bar", "loss")) else 1e-5
            assert there[path] == pytest.approx(value, rel=1e-2, abs=loose), path
        else:
            assert there[path] == value, path
