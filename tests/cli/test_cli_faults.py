# ruff: noqa: E501 - one case, one row
"""Every bad input is its exit code and one line that names the field and what to do, and leaves nothing behind."""

import errno
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

ONE_LINE = re.compile(r"error: [^:\s][^:]*: .*\S; \S.*")
SMALL = "--limit 2 --max-length 16 --steps 3"
WEIGHTS = "qwen3/model.safetensors"


def file(name, text):
    """Put a file into the working folder."""

    def make(folder):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text)

    return make


def rows(*values):
    return file("bad.jsonl", "".join(json.dumps(row) + "\n" for row in values))


def folder(name):
    return lambda here: (here / name).mkdir(parents=True)


def config(**changes):
    def make(here):
        path = here / "qwen3/config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return make


def tensors(change):
    def make(here):
        state = load_file(here / WEIGHTS)
        change(state)
        save_file(state, here / WEIGHTS, {"format": "pt"})

    return make


def pickled(here):
    torch.save(load_file(here / WEIGHTS), here / "qwen3/pytorch_model.bin")
    (here / WEIGHTS).unlink()


def cut(here):
    data = (here / WEIGHTS).read_bytes()
    (here / WEIGHTS).write_bytes(data[:-64])


def nothing(_here):
    pass


def recipe(text):
    return file("r.yaml", text)


# fmt: off
# what is typed; what is put in place before; the exit code; words of the line, in order
ARGUMENTS = {
    "unknown verb": ("densty demo", nothing, 2, ("command", "'densty'", "did you mean density")),
    "unknown verb, unlike any": ("xyz demo", nothing, 2, ("command", "'xyz'", "allowed: density, topk")),
    "unknown option": ("density demo --max-lenght 9", nothing, 2, ("--max-lenght", "no such option", "did you mean --max-length")),
    "unknown option, unlike any": ("density demo --zzz", nothing, 2, ("--zzz", "no such option", "see hess density --help")),
    "unknown option before the verb": ("--quite density", nothing, 2, ("--quite", "no such option", "see hess --help")),
    "option of another probe": ("trace demo --k 5", nothing, 2, ("--k", "hess trace", "topk and plan read it")),
    "option of other probes": ("topk demo --probes 5", nothing, 2, ("--probes", "hess topk", "leave it out")),
    "option that is a key of a recipe": ("run ci-smoke --plots none", nothing, 2, ("--plots", "hess run", "write output.plots=VALUE")),
    "option without its value": ("density demo --limit", nothing, 2, ("--limit", "requires an argument", "see hess density --help")),
    "value for a switch": ("density demo --no-pack=3", nothing, 2, ("--no-pack", "does not take a value", "see hess density --help")),
    "two models": ("density demo demo", nothing, 2, ("arguments", "(demo)", "see hess density --help")),
    "no recipe": ("run", nothing, 2, ("RECIPE", "is missing", "see hess run --help")),
    "no report": ("plot", nothing, 2, ("REPORT", "is missing", "see hess plot --help")),
    "dtype unknown": ("density demo --dtype flot32", nothing, 2, ("model.dtype", "'flot32'", "allowed: float32", "did you mean float32")),
    "task unknown": ("density demo --task casual-lm", nothing, 2, ("model.task", "'casual-lm'", "did you mean causal-lm")),
    "operator unknown": ("density demo --operator hesian", nothing, 2, ("operator.kind", "'hesian'", "allowed: hessian")),
    "preset unknown": ("topk demo --preset quik", nothing, 2, ("estimator.preset", "'quik'", "did you mean quick")),
    "end unknown": ("topk demo --which top", nothing, 2, ("estimator.which", "'top'", "allowed: both, largest, smallest")),
    "blocks unknown": ("blockdiag demo --by layers", nothing, 2, ("operator.by", "'layers'", "did you mean layer")),
    "limit not a number": ("density demo --limit many", nothing, 2, ("data.limit", "'many'", "a whole number")),
    "limit a fraction": ("density demo --limit 2.5", nothing, 2, ("data.limit", "'2.5'", "a whole number")),
    "limit zero": ("density demo --limit 0", nothing, 2, ("data.limit", "'0'", "greater than or equal to 1")),
    "max-length one": ("density demo --max-length 1", nothing, 2, ("data.max_length", "'1'", "greater than or equal to 2")),
    "batch size unknown": ("density demo -b some", nothing, 2, ("data.batch_size", "'some'", "a whole number or auto")),
    "steps negative": ("density demo --steps -3", nothing, 2, ("estimator.steps", "'-3'", "greater than or equal to 1")),
    "no pairs": ("topk demo --k 0", nothing, 2, ("estimator.k", "'0'", "greater than or equal to 1")),
    "probes negative": ("trace demo --probes -1", nothing, 2, ("estimator.probes", "'-1'", "greater than or equal to 1")),
    "seed negative": ("trace demo --seed -1", nothing, 2, ("estimator.seed", "'-1'", "greater than or equal to 0")),
    "tolerance above one": ("topk demo --tolerance 2", nothing, 2, ("estimator.tolerance", "'2'", "less than 1")),
    "plots unknown": ("density demo --plots png,pdf", nothing, 2, ("output.plots", "'pdf'", "allowed: png, svg")),
    "memory without a size": ("density demo --max-memory 0", nothing, 2, ("model.max_memory", "'0'", "0=40GiB,cpu=100GiB")),
    "memory without a folder": ("density demo --max-memory cpu=4GiB", nothing, 2, ("max_memory", "a place", "--offload-dir DIR")),
    "memory that is too little": ("density demo --max-memory cpu=1MiB --offload-dir off", nothing, 5, ("max_memory", "cpu=1MiB is too little", "one layer at a time takes", "use cpu=")),
    "map not JSON": ('density demo --device-map {"model":0', nothing, 2, ("model.device_map", "is not JSON", '"cpu"}')),
    "map with parts left out": ('density demo --device-map {"lm_head":"cpu"}', nothing, 2, ("device_map", "leaves out", "map every module")),
    "device that is not there": ("density demo --device-map cuda:93", nothing, 2, ("device_map", "'cuda:93'", "use one of")),
    "map to nowhere": ("density demo --device-map meta", nothing, 5, ("device_map", "nowhere", "a device that holds it")),
    "product that needs all weights": ("density demo --device-map disk --product double-backward", nothing, 2, ("operator.product", "'double-backward'", "fetched layer by layer", "--product layered")),
    "attention without second derivative": ("density demo --attn flash_attention_2", nothing, 2, ("attn", "'flash_attention_2'", "--attn eager")),
    "output folder is a file": ("density demo -o taken", file("taken", "x"), 2, ("output.dir", "'taken' is not a folder", "-o")),
    "output folder below a file": ("density demo -o taken/runs", file("taken", "x"), 2, ("output.dir", "is not a folder", "-o")),
    "output folder with a file in the way": (f"density demo {SMALL} -o out", file("out/demo", "x"), 2, ("output.dir", "'out/demo/main' cannot be written", "-o")),
    "gate that does not parse, of a plan": ("density demo --dry-run --assert lambda_max>", nothing, 2, ("assert", "lambda_max>", "; ")),
    "basis by a product of another matrix": ("topk ./nowhere --operator ggn --basis-product double-backward", nothing, 2, ("estimator.basis_product", "for the Hessian, not for ggn", "leave --basis-product out")),
    "plan and config": ("density demo --dry-run --print-config", nothing, 2, ("dry_run", "print_config", "give one")),
    "plan and config of a sweep": ("sweep checkpoint-trajectory --dry-run --print-config", nothing, 2, ("dry_run", "print_config", "give one")),
    "report into a missing folder": ("density demo --report no/report", nothing, 2, ("report", "'no' is not a folder", "make it first")),
    "report onto a folder": ("density demo --report here", folder("here"), 2, ("report", "'here' is a folder", "path of a file")),
}
PARAMETERS = {
    "params match nothing": ("topk qwen3 -d rows.jsonl --params model.layer.*", nothing, 2, ("operator.params", "'model.layer.*' matches no parameter", "nearest is 'model.")),
    "exclude matches nothing": ("topk qwen3 -d rows.jsonl --exclude *.wieght", nothing, 2, ("operator.exclude", "'*.wieght' matches no parameter", "is")),
    "everything excluded": ("topk qwen3 -d rows.jsonl --exclude *", nothing, 2, ("operator.exclude", "no parameter is left", "exclude less")),
}
CHECKPOINTS = {
    "revisions that disagree": ("density demo@step50 --revision step200", nothing, 2, ("revision", "'step50'", "'step200'", "give one")),
    "revision empty": ("density demo@", nothing, 2, ("revision", "ends in @", "leave the @ out")),
    "revision of demo unknown": ("density demo@step51", nothing, 6, ("revision", "'step51'", "use step50, step200 or final")),
    "revision of a folder": ("topk qwen3@main", nothing, 2, ("revision", "has no revisions", "leave the revision out")),
    "no such folder": ("topk ./nowhere", nothing, 6, ("model", "no such folder: './nowhere'", "hub id or demo")),
    "a file": ("topk taken.bin", file("taken.bin", "x"), 6, ("model", "'taken.bin' is a file", "give the folder")),
    "folder without weights": ("topk qwen3", lambda here: (here / WEIGHTS).unlink(), 6, ("weights", "holds no weights", "save_pretrained")),
    "folder without config": ("topk qwen3", lambda here: (here / "qwen3/config.json").unlink(), 6, ("model", "no config.json", "save_pretrained")),
    "weights cut off": ("topk qwen3", cut, 6, ("weights", "cut off", "again")),
    "weights empty": ("topk qwen3", file(WEIGHTS, b""), 6, ("weights", "is empty", "again")),
    "weights not safetensors": ("topk qwen3", file(WEIGHTS, b"\x00" * 64), 6, ("weights", "not a safetensors file", "again")),
    "weights with NaN": ("topk qwen3", tensors(lambda state: state["model.norm.weight"].fill_(float("nan"))), 6, ("weights", "NaN", "use")),
    "weights left out": ("topk qwen3", tensors(lambda state: state.pop("model.norm.weight")), 6, ("weights", "model.norm.weight", "whole checkpoint")),
    "pickle alone": ("topk qwen3", pickled, 6, ("weights", "pickle", "--allow-pickle")),
    "quantised": ("topk qwen3", config(quantization_config={"quant_method": "gptq", "bits": 4}), 6, ("weights", "quantised (gptq 4bit)", "unquantised")),
    "architecture unknown": ("topk qwen3", config(model_type="qwen93"), 6, ("model", "does not know the architecture 'qwen93'", "upgrade transformers")),
    "own code": ("topk qwen3", config(model_type="own", auto_map={"AutoModelForCausalLM": "m.M"}), 6, ("model", "its own code", "--trust-remote-code")),
    "another task": ("topk qwen3", config(architectures=["BertForMaskedLM"]), 2, ("model", "no masked-lm model for 'qwen3'", "hess measures causal-lm")),
    "hub id offline": ("topk nobody/nothing --offline", nothing, 6, ("model", "'nobody/nothing'", "not in the cache", "HF_HOME")),
}
DATA = {
    "file missing": ("topk qwen3 -d row.jsonl", nothing, 2, ("dataset", "no file or folder 'row.jsonl'", "did you mean 'rows.jsonl'")),
    "hub data set offline": ("topk qwen3 -d nobody/nothing --offline", nothing, 6, ("dataset", "'nobody/nothing'", "offline", "a local file")),
    "extension unknown": ("topk qwen3 -d notes.docx", file("notes.docx", "x"), 2, ("dataset", "notes.docx", "give one of .jsonl")),
    "file empty": ("topk qwen3 -d empty.jsonl", file("empty.jsonl", ""), 2, ("dataset", "empty.jsonl is empty", "rows")),
    "folder empty": ("topk qwen3 -d none", folder("none"), 2, ("dataset", "folder none is empty", "give a folder")),
    "lines not JSON": ("topk qwen3 -d bad.jsonl", file("bad.jsonl", '{"input_ids": [3, 4]}\n{"input_ids": [3,'), 2, ("dataset", "bad.jsonl cannot be read as json", "mend")),
    "parquet that is none": ("topk qwen3 -d bad.parquet", file("bad.parquet", "PAR"), 2, ("dataset", "bad.parquet cannot be read as parquet", "mend")),
    "split unknown": ("topk qwen3 -d rows.jsonl --split test", nothing, 2, ("split", "'test'", "it has: train", "take one")),
    "column missing": ("topk demo -d bad.jsonl --column txet", rows({"text": "two words"}), 2, ("column", "'txet'", "did you mean 'text'")),
    "column not text": ("topk demo -d bad.jsonl --column number", rows({"number": 3}), 2, ("column", "integers in row 0", "column of text")),
    "text blank": ("topk demo -d bad.jsonl", rows({"text": " "}, {"text": "\n"}), 2, ("column", "only blank text", "text in it")),
    "text without a tokenizer": ("topk qwen3 -d bad.jsonl", rows({"text": "two words"}), 2, ("model", "'qwen3' has no tokenizer", "input_ids")),
    "longer than the positions": ("topk demo --max-length 9999999", nothing, 2, ("max_length", "9999999", "positions", "lower it")),
    "longer than the positions, of a plan": ("plan demo --max-length 9999999", nothing, 2, ("data.max_length", "9999999", "positions", "lower it")),
    "ids outside the vocabulary": ("topk qwen3 -d bad.jsonl", rows({"input_ids": [3, 4]}, {"input_ids": [3, 19]}), 2, ("input_ids", "row 1 holds 19", "from 0 to 18")),
    "ids negative": ("topk qwen3 -d bad.jsonl", rows({"input_ids": [3, -4]}), 2, ("input_ids", "row 0 holds -4", "from 0 to 18")),
    "ids not whole numbers": ("topk qwen3 -d bad.jsonl", rows({"input_ids": [3.5, 4.5]}), 2, ("input_ids", "floats", "integers")),
    "row above the positions": ("topk qwen3 -d bad.jsonl", rows({"input_ids": [3] * 33}), 2, ("input_ids", "33 tokens", "32 positions", "cut the row")),
    "ids to be cut": ("topk qwen3 -d rows.jsonl --max-length 4", nothing, 2, ("data.max_length", "4 is below the 11 tokens", "rows.jsonl", "cut the rows")),
    "ids to be packed": ("topk qwen3 -d rows.jsonl --pack", nothing, 2, ("data.pack", "rows of input_ids are used as they stand", "leave it out")),
    "every label masked": ("topk qwen3 -d bad.jsonl", rows({"input_ids": [3, 4, 5], "labels": [-100] * 3}), 2, ("labels", "no", "loss term", "something to predict")),
    "rows of one token": ("topk qwen3 -d bad.jsonl", rows({"input_ids": [3]}, {"input_ids": []}), 2, ("input_ids", "loss term", "something to predict")),
    "labels of another length": ("topk qwen3 -d bad.jsonl", rows({"input_ids": [3, 4, 5], "labels": [3, 4]}), 2, ("labels", "2 of them for 3 input_ids", "one for each token")),
    "revision of a file": ("topk qwen3 -d rows.jsonl --dataset-revision main", nothing, 2, ("dataset_revision", "on disk", "drop it")),
}
RECIPES = {
    "missing": ("run r.yaml", nothing, 2, ("recipe", "'r.yaml' does not exist", "YAML file")),
    "a folder": ("run .", nothing, 2, ("recipe", "'.' cannot be read", "YAML file")),
    "not text": ("run r.yaml", recipe(b"\xff\xfe\x00"), 2, ("recipe", "cannot be read", "YAML file")),
    "a key that stands twice": ("run r.yaml", recipe("probe: topk\nprobe: trace\n"), 2, ("recipe", "'probe'", "twice")),
    "not YAML": ("run r.yaml", recipe("probe: [topk\n"), 2, ("recipe", "line 2", "mend the YAML")),
    "YAML that would run code": ("run r.yaml", recipe("probe: !!python/object/apply:os.getcwd []\n"), 2, ("recipe", "line 1", "mend the YAML")),
    "not a mapping": ("run r.yaml", recipe("- topk\n"), 2, ("recipe", "r.yaml holds no mapping", "probe: density")),
    "empty": ("run r.yaml", recipe(""), 2, ("recipe", "holds no mapping", "probe: density")),
    "without a probe": ("run r.yaml", recipe("model: {id: demo}\n"), 2, ("probe", "is missing", "allowed: density, topk")),
    "unknown probe": ("run r.yaml", recipe("probe: topp\n"), 2, ("probe", "'topp'", "did you mean topk")),
    "unknown key": ("run r.yaml", recipe("probe: topk\nmodel: {dtyp: float32}\n"), 2, ("model.dtyp", "no such key", "did you mean model.dtype")),
    "unknown section": ("run r.yaml", recipe("probe: topk\nestimater: {k: 2}\n"), 2, ("estimater", "no such key", "did you mean estimator")),
    "schema of another version": ("run r.yaml", recipe("schema: hess.recipe/9\nprobe: topk\n"), 2, ("schema", "'hess.recipe/9'", "allowed: hess.recipe/1")),
    "a word for a section": ("run r.yaml", recipe("probe: topk\nmodel: demo\n"), 2, ("model", "'demo' is no mapping", "below it (id")),
    "an empty section": ("run r.yaml", recipe("probe: topk\nmodel:\n"), 2, ("model", "is empty", "below it (id")),
    "a number for text": ("run r.yaml", recipe("probe: topk\nmodel: {id: 3}\n"), 2, ("model.id", "3", "text")),
    "a word for a list": ("run r.yaml", recipe("probe: topk\noperator: {params: lm_head}\n"), 2, ("operator.params", "'lm_head'", "a list")),
    "an empty list": ("run r.yaml", recipe("probe: topk\noperator: {params: []}\n"), 2, ("operator.params", "[]", "not empty")),
    "blocks of no probe": ("run r.yaml", recipe("probe: topk\noperator: {by: module}\n"), 2, ("operator.by", "not read by topk", "leave it out")),
    "a key of another probe": ("run r.yaml", recipe("probe: trace\nestimator: {k: 5}\n"), 2, ("estimator.k", "not read by trace", "leave it out")),
    "an override that is none": ("run r.yaml data.limit", recipe("probe: topk\n"), 2, ("override", "'data.limit'", "data.limit=8")),
    "an override of an unknown key": ("run r.yaml data.limti=3", recipe("probe: topk\n"), 2, ("data.limti", "no such key", "did you mean data.limit")),
    "an override that does not parse": ("run r.yaml data.limit=[", recipe("probe: topk\n"), 2, ("override", "'data.limit=['", "quote")),
    "an override that removes nothing known": ("run r.yaml ~data.limti", recipe("probe: topk\n"), 2, ("override", "'~data.limti'", "did you mean data.limit")),
}
REPORTS = {
    "missing": ("plot nowhere.json", nothing, 2, ("report nowhere.json", "no such file", "report.json")),
    "folder without one": ("plot empty", folder("empty"), 2, ("report report.json", "no such file", "report.json")),
    "not JSON": ("plot bad.json", file("bad.json", "{"), 2, ("report bad.json", "not JSON", "again")),
    "not a report": ("plot bad.json", file("bad.json", "[]"), 2, ("report bad.json", "not a report", "report.json")),
    "of another version": ("plot bad.json", file("bad.json", '{"schema": "hess.report/9"}'), 2, ("schema", "'hess.report/9'", "'hess.report/1'", "measure again")),
    "without its fields": ("plot bad.json", file("bad.json", '{"schema": "hess.report/1"}'), 2, ("report bad.json", "required", "measure again")),
    "format unknown": ("plot bad.json --plots none", nothing, 2, ("plots", "'none'", "png, svg")),
    "schema of nonsense": ("schema nonsense", nothing, 2, ("schema", "'nonsense'", "allowed: recipe, report")),
}
# fmt: on
GROUPS = {
    "argument": ARGUMENTS,
    "parameters": PARAMETERS,
    "checkpoint": CHECKPOINTS,
    "data": DATA,
    "recipe": RECIPES,
    "report": REPORTS,
}
TABLE = {f"{group}: {name}": case for group, cases in GROUPS.items() for name, case in cases.items()}


def in_order(words, text):
    place = 0
    for word in words:
        place = text.find(word, place)
        if place < 0:
            return False
        place += len(word)
    return True


def left_behind(here):
    return [
        p.relative_to(here) for p in here.rglob("*") if p.name in ("report.json", "recipe.yaml") or p.suffix == ".part"
    ]


def raises(error):
    def broken(*_arguments, **_options):
        raise error

    return broken


@pytest.mark.parametrize("case", TABLE)
def test_a_bad_input_is_one_line_and_its_exit_code(case, hess, checkpoint, tmp_path):
    typed, prepare, code, words = TABLE[case]
    prepare(tmp_path)
    ended = hess(*typed.split())
    lines = [line for line in ended.err.splitlines() if not line.startswith(("hint: ", "warning: "))]
    assert ended.code == code, ended.err
    assert len(lines) == 1, ended.err
    assert ONE_LINE.fullmatch(lines[0]), lines[0]
    assert in_order(words, lines[0]), lines[0]
    assert str(tmp_path) not in ended.err
    assert ended.out == ""
    assert not left_behind(tmp_path)


def test_a_recipe_shows_all_its_faults_at_once_each_on_its_line(hess, tmp_path):
    recipe("""
        schema: hess.recipe/2
        probe: topk
        model: {dtyp: float32, dtype: float23}
        data: {limit: many, batch_size: some}
        estimator: {probes: 3, k: 0}
        outptu: {}
    """)(tmp_path)  # fmt: skip
    ended = hess("run", "r.yaml")
    lines = ended.err.splitlines()
    assert ended.code == 2
    assert all(ONE_LINE.fullmatch(line) for line in lines), ended.err
    named = {line.split(": ")[1] for line in lines}
    wrong = {"model.dtyp", "model.dtype", "data.limit", "data.batch_size", "estimator.probes", "estimator.k", "outptu"}
    assert named == wrong | {"schema"}
    assert len(lines) == len(named)


def test_the_report_of_an_equal_run_that_cannot_be_read_is_not_taken_for_one(hess, checkpoint, tmp_path):
    words = ("topk", "qwen3", "-d", "rows.jsonl", "--params", "model.norm.weight", "--plots", "none")
    path = tmp_path / hess(*words, "-q").out.strip()
    path.write_text('{"schema": "hess.report/1", ')
    ended = hess(*words)
    assert ended.code == 2
    assert ended.out == ""
    assert ONE_LINE.fullmatch(ended.err.splitlines()[-1])
    assert "--force" in ended.err
    assert hess(*words, "--force", "-q").code == 0
    assert json.loads(path.read_text())["status"] == "ok"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_an_output_folder_that_cannot_be_written_is_found_before_the_checkpoint_is_loaded(hess, tmp_path):
    (tmp_path / "out").mkdir(mode=0o555)
    ended = hess("topk", "./nowhere", "-o", "out")
    assert ended.code == 2
    assert in_order(("error: output.dir", "cannot be written", "-o"), ended.err)


def started(words, **environment):
    known = {k: v for k, v in os.environ.items() if not k.startswith(("HESS_", "HF_"))}
    return subprocess.run(
        [sys.executable, "-m", "hesscli", *words],
        env={**known, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "environment", "code", "said"),
    [
        (["density", "--zzz"], {}, 2, ("error: --zzz", "no such option", "hess density --help")),
        (["run", "nowhere.yaml"], {}, 2, ("error: recipe", "does not exist", "YAML file")),
        (["topk", "nobody/nothing"], {"HF_HUB_OFFLINE": "1"}, 6, ("error: model", "'nobody/nothing'", "offline")),
    ],
)
def test_a_process_ends_with_the_code_and_the_line(words, environment, code, said):
    ended = started(words, **environment)
    assert ended.returncode == code
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert in_order(said, ended.stderr)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")
def test_a_stream_that_is_full_is_no_bug():
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "hesscli", "recipes"]
        ended = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == (
        "error: disk: what was to be said cannot be written (No space left on device); make room, or write elsewhere\n"
    )


def test_the_traceback_is_shown_where_it_is_asked_for(hess, monkeypatch):
    assert "Traceback" not in hess("density", "demo@step51").err
    monkeypatch.setenv("HESS_DEBUG", "1")
    ended = hess("density", "demo@step51")
    assert ended.code == 6
    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1].startswith("error: model.revision: ")


def test_a_bug_is_one_line_and_exit_1(hess, monkeypatch):
    monkeypatch.setattr("hesscli.run.session.run", raises(IndexError("list index\nout of range")))
    ended = hess("density", "demo")
    assert ended.code == 1
    assert ended.err == "error: hess: IndexError: list index out of range; this is a bug, HESS_DEBUG=1 shows where\n"


@pytest.mark.parametrize(
    ("place", "error", "code", "words"),
    [
        ("measure", MemoryError(), 5, ("error: memory", "does not fit", "--limit")),
        ("measure", torch.OutOfMemoryError("CUDA out of memory"), 5, ("error: memory", "--limit")),
        ("measure", NotImplementedError("derivative for x::y is not implemented"), 2, ("x::y", "--attn eager")),
        ("measure", RuntimeError("shape"), 1, ("error: hess: RuntimeError: shape",)),
        ("draw", OSError(errno.ENOSPC, "No space left on device"), 2, ("error: output.dir", "the disk is full", "-o")),
        ("draw", OSError(errno.EDQUOT, "Disk quota exceeded"), 2, ("error: output.dir", "Disk quota exceeded", "-o")),
        ("write_report", KeyError("x"), 1, ("error: hess: KeyError",)),
    ],
)
def test_a_fault_in_the_middle_of_a_run_leaves_its_products_and_nothing_else(
    place, error, code, words, hess, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr(f"hesscli.run.session.{place}", raises(error))
    ended = hess(
        "topk", "qwen3", "-d", "rows.jsonl", "--limit", "5", "--params", "model.norm.weight", "-o", "out", "-q"
    )
    assert ended.code == code, ended.err
    assert len(ended.err.splitlines()) == 1
    assert in_order(words, ended.err)
    assert ended.out == ""
    found = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    left = [path for path in found if path.name != "journal.jsonl"]
    assert len(found) == len(left) + 1
    assert left  # what was multiplied by then: the next run of the same goes on from it
    assert all(path.parent.name == "state" and path.parents[1].suffix == ".part" for path in left)


def test_a_run_that_fails_leaves_the_finished_one_before_it(hess, checkpoint, tmp_path, monkeypatch):
    words = ("topk", "qwen3", "-d", "rows.jsonl", "--params", "model.norm.weight", "--plots", "none", "-q")
    path = tmp_path / hess(*words).out.strip()
    before = path.read_text()
    monkeypatch.setattr("hesscli.run.session.draw", raises(MemoryError()))
    assert hess(*words, "--force").code == 5
    assert path.read_text() == before
