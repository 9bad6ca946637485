# ruff: noqa: E501 - one verb, one row
"""What can be typed, held word by word: scripts and recipes of other people hold on to it."""

import pytest
import typer

from hesscli.cli.app import app
from hesscli.recipe.document import known_paths

OUTPUT = "--dry-run --force --help --json --log-to --no-resume --output-dir --plots --print-config --quiet --report --strict --verbose -h -o -q -v"
GATE = "--assert --baseline --on-inconclusive"
MODEL = "--allow-pickle --attn --device-map --dtype --max-memory --offline --offload-dir --placement --revision --task --trust-remote-code"
DATA = "--batch-size --column --config-name --dataset --dataset-revision --limit --mask-prompt --max-length --no-pack --pack --split --target-column -L -b -d"
SHARED = f"{MODEL} {DATA} {OUTPUT} {GATE} --operator --product --step --params --exclude --preset --seed --data-error"
OPTIONS = {
    "": "--help --version -V -h",
    "density": f"{SHARED} --basis --basis-dtype --kernel-width --probes --reorthogonalise --steps",
    "topk": f"{SHARED} --basis --basis-dtype --basis-product --held-out --held-out-from --k --krylov-dim --steps --tolerance --which -k",
    "trace": f"{SHARED} --basis --basis-dtype --blocks --by --diagonal --method --probes --steps",
    "blockdiag": f"{SHARED} --blocks --by --probes --top",
    "solve": f"{SHARED} --damping --preconditioner --rhs --solver --steps --tolerance",
    "run": f"{GATE} --dry-run --verbose -v --force --help --json --log-to --no-resume --print-config --quiet --report --strict -h -q",
    "plan": f"{DATA} --allow-pickle --attn --basis --basis-dtype --blocks --by --calibrate --damping --data-error --devices --diagonal --dtype --exclude --held-out --held-out-from --help --json --k --kernel-width --krylov-dim --method --offline --operator --output-dir --params --plots --preconditioner --preset --probe --probes --product --reorthogonalise --revision --rhs --seed --solver --step --steps --task --tolerance --top --trust-remote-code --which -h -k -o",
    "sweep": "--assert --baseline --dry-run --help --json --log-to --on-inconclusive --output-dir --print-config --probe --quiet --retry-failed --shard --verbose -h -o -q -v",
    "recipes": "--help --json -h",
    "plot": "--help --kernel-width --output-dir --plots --together -h -o",
    "schema": "--help -h",
    "compare": "--across --blocks --help --json --min-change --quiet -h -q",
    "check": f"{GATE} --help --json --junit --quiet --update-baseline -h -q",
    "export": "--help --output --to -h -o",
    "report": "--help --output -h -o",
    "ls": "--help --json --quiet -h -q",
    "doctor": "--help --json -h",
    "launch": "--help -h",
}
KEYS = {
    "": "description exclude gates include matrix name probe schema",
    "model": "allow_pickle attn device_map dtype id max_memory offline offload_dir placement revision task trust_remote_code",
    "data": "batch_size column config_name id limit mask_prompt max_length pack revision split target_column",
    "operator": "blocks by exclude kind params product step",
    "density": "kernel_width",
    "estimator": "basis basis_dtype basis_product damping data_error diagonal held_out held_out_from k krylov_dim method preconditioner preset probes reorthogonalise rhs seed solver steps tolerance top which",
    "output": "dir plots",
}
COMMAND = typer.main.get_command(app)


def spelled(command):
    root = COMMAND.make_context("hess", [], resilient_parsing=True)
    context = root if command is COMMAND else command.make_context("", [], parent=root, resilient_parsing=True)
    options = [p for p in command.get_params(context) if p.param_type_name == "option"]
    return sorted({name for p in options for name in (*p.opts, *p.secondary_opts)})


def test_the_verbs_are_these():
    assert list(COMMAND.commands) == [verb for verb in OPTIONS if verb]


@pytest.mark.parametrize("verb", OPTIONS)
def test_the_options_of_a_verb_are_these(verb):
    command = COMMAND.commands[verb] if verb else COMMAND
    assert spelled(command) == sorted(OPTIONS[verb].split())


@pytest.mark.parametrize("section", KEYS)
def test_the_keys_of_a_recipe_are_these(section):
    found = sorted(path.rpartition(".")[2] for path in known_paths() if path.rpartition(".")[0] == section)
    assert found == KEYS[section].split()


@pytest.mark.parametrize("verb", [verb for verb in OPTIONS if verb])
@pytest.mark.parametrize("columns", [80, 120])
def test_help_fits_the_terminal_and_shows_each_option_with_its_default(verb, columns, hess, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    ended = hess(verb, "--help")
    assert ended.code == 0
    assert max(map(len, ended.out.splitlines())) <= columns
    for option in (name for name in OPTIONS[verb].split() if name.startswith("--")):
        assert option in ended.out
    if verb in ("density", "topk", "trace", "blockdiag", "solve"):
        panels = [ended.out.index(f"─ {panel} ─") for panel in ("Model", "Data", "Operator", "Estimator", "Output")]
        assert panels == sorted(panels)
        for default in ("[float32]", "[64]", "[outputs]", "[standard]", "[*]", "[on]"):
            assert default in ended.out


def test_hess_alone_shows_its_help_and_ends_in_2(hess):
    ended = hess()
    assert ended.code == 2
    assert all(verb in ended.out for verb in OPTIONS)
    assert ended.err == ""


def test_version_is_one_word_after_the_name(hess):
    assert hess("-V").out == hess("--version").out
    name, version = hess("-V").out.split()
    assert name == "hess"
    assert version[0].isdigit()
