"""The workflow of the README: its shell steps, run by bash as a runner does, on a pull request of each kind."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

WORKFLOW = Path(__file__).with_name("workflow.yml")
pytestmark = pytest.mark.slow  # each step is a process of its own
README = Path(__file__).parents[2] / "README.md"


def blocks(text):
    """The YAML blocks of a Markdown text."""
    return [part.split("```")[0] for part in text.split("```yaml\n")[1:]]


def test_the_readme_quotes_the_workflow_word_for_word():
    quoted = [block for block in blocks(README.read_text(encoding="utf-8")) if "pull_request" in block]
    assert quoted == [WORKFLOW.read_text(encoding="utf-8")]


@pytest.fixture(scope="module")
def repository(made_once, tmp_path_factory):
    """What the pull request's branch holds: a checkpoint, rows, and the baseline that the main branch was given."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(made_once / "qwen3", folder / "checkpoint")
    shutil.copy(made_once / "rows.jsonl", folder)
    tools = folder / "bin"
    tools.mkdir()
    for name, line in (("hess", f'exec "{sys.executable}" -m hesscli "$@"'), ("pip", "exit 0")):
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(stat.S_IRWXU)
    (install, measure, _) = steps()
    assert install == "pip install hess"
    assert run(folder, measure).returncode == 0
    made = run(folder, "hess check report.json --baseline baseline.json --update-baseline")
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture
def branch(repository, tmp_path):
    return shutil.copytree(repository, tmp_path / "branch", symlinks=True)


def steps():
    content = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    return [step["run"].rstrip() for step in content["jobs"]["gate"]["steps"] if "run" in step]


def run(folder, script):
    content = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HESS_", "GITHUB_"))}
    env |= content["env"] | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(README.parent),
        "CI": "true",
        "GITHUB_ACTIONS": "true",
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
    }
    # The runner's own words: https://docs.github.com/actions/reference/workflow-syntax-for-github-actions
    words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def measured(repository, tmp_path_factory):
    """The job on the same checkpoint, up to the step that judges."""
    folder = shutil.copytree(repository, tmp_path_factory.mktemp("job") / "branch", symlinks=True)
    for script in steps()[:-1]:
        assert run(folder, script).returncode == 0
    return folder


@pytest.fixture
def judging(measured, tmp_path):
    return shutil.copytree(measured, tmp_path / "branch", symlinks=True)


def pull_request(folder):
    """The first step that fails, as the job ends with it; the last one where none does."""
    for script in steps():
        done = run(folder, script)
        if done.returncode:
            break
    return done


def rewrite(folder, edit):
    path = folder / "baseline.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_the_same_checkpoint_passes(judging):
    done = run(judging, steps()[-1])
    assert done.returncode == 0, done.stderr
    assert "2 of 2 passed" in done.stdout
    assert "::" not in done.stderr
    assert (judging / "summary.md").read_text().startswith("### hess check: pass")
    assert (judging / "gates.xml").exists()


def test_a_checkpoint_with_other_curvature_fails_with_3(branch):
    file = branch / "checkpoint" / "model.safetensors"
    weights = {name: 1.5 * tensor for name, tensor in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    done = pull_request(branch)
    assert done.returncode == 3, done.stderr
    assert "::error title=hess%3A fail%3A " in done.stderr
    assert "failures=" in (branch / "gates.xml").read_text()


def test_an_interval_across_the_limit_warns_and_passes(judging):
    def widen(content):
        base = content["metrics"]["lambda_max"]
        base["ci"] = [0.5 * base["value"], 2 * base["value"]]

    rewrite(judging, widen)
    done = run(judging, steps()[-1])
    assert done.returncode == 0, done.stderr
    assert "1 of 2 passed, 1 inconclusive" in done.stdout
    assert "::warning title=hess%3A inconclusive%3A lambda_max <= base * 1.10::" in done.stderr


def test_an_unknown_figure_ends_in_2(judging):
    done = run(judging, steps()[-1].replace("lambda_max", "lamda_max"))
    assert done.returncode == 2
    assert "did you mean lambda_max?" in done.stderr


def test_a_baseline_of_another_slice_ends_in_2(branch):
    rows = (branch / "rows.jsonl").read_text().splitlines(keepends=True)
    (branch / "rows.jsonl").write_text("".join(rows[:-1]))
    done = pull_request(branch)
    assert done.returncode == 2
    assert "error: baseline: data.fingerprint: not comparable" in done.stderr
