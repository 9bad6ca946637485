"""Precedence, origins, and one set of names for options and keys."""

import json

import pytest
import yaml

from hesscli.cli.app import _exit_code
from hesscli.errors import UsageError
from hesscli.recipe.document import dump, known_paths, load_recipe, parse_overrides, resolve

RECIPE = """
schema: hess.recipe/1
name: trajectory
probe: density
model: {id: demo, dtype: float64}
data: {limit: 8}
estimator: {preset: quick, probes: 3}
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    return path


def test_each_value_is_shown_with_its_origin(hess, recipe_file):
    ended = hess("run", recipe_file, "data.max_length=32", "~model.dtype", "--print-config")
    assert ended.code == 0
    shown = [line.strip() for line in ended.out.splitlines()]
    for line in (
        "name: trajectory  # recipe",
        "dtype: float32  # default",
        "limit: 8  # recipe",
        "max_length: 32  # override",
        "preset: quick  # recipe",
        "probes: 3  # recipe",
        "steps: 20  # preset quick",
        "plots:  # default",
    ):
        assert line in shown, ended.out
    assert ended.err == ""
    assert yaml.safe_load(ended.out)["data"]["limit"] == 8


@pytest.mark.parametrize("text", ["a long one: " + 40 * "words and ", "two: # marks and much\n\nof text\n"])
def test_an_origin_is_no_part_of_a_text(hess, tmp_path, text):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"probe": "topk", "description": text}))
    ended = hess("run", "r.yaml", "--print-config")
    assert yaml.safe_load(ended.out)["description"] == text
    assert next(line for line in ended.out.splitlines() if "description" in line).endswith("  # recipe")


def test_flags_win_over_the_preset_and_the_preset_over_defaults(hess):
    ended = hess("density", "demo", "--preset", "quick", "--steps", "7", "--params", "model.*", "--print-config")
    for line in ("probes: 3  # preset quick", "steps: 7  # flag", "params:  # flag", "limit: 64  # default"):
        assert line in ended.out
    assert "which:" not in ended.out  # density does not read it


def test_underscores_are_accepted_for_dashes(hess):
    ended = hess("topk", "demo", "--max_length", "16", "--batch_size", "2", "--no_pack", "--print_config")
    for line in ("max_length: 16  # flag", "batch_size: 2  # flag", "pack: false  # flag"):
        assert line in ended.out


def test_structured_options_become_mappings_and_lists(hess):
    ended = hess(
        "topk", "demo", "--max-memory", "0=40GiB, cpu=100GiB", "--device-map", '{"": "cpu"}',
        "--exclude", "a.*", "--exclude", "b.*", "--plots", "svg", "--print-config",
    )  # fmt: skip
    content = yaml.safe_load(ended.out)
    assert {str(k): v for k, v in content["model"]["max_memory"].items()} == {"0": "40GiB", "cpu": "100GiB"}
    assert content["model"]["device_map"] == {"": "cpu"}
    assert content["operator"]["exclude"] == ["a.*", "b.*"]
    assert content["output"]["plots"] == ["svg"]


def test_nothing_is_measured_and_nothing_written_where_the_recipe_is_printed(hess, tmp_path):
    assert hess("topk", "nobody/nothing", "--print-config").code == 0
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("probe", ["density", "topk", "trace", "blockdiag", "solve"])
@pytest.mark.parametrize("preset", ["quick", "standard", "publication"])
def test_a_recipe_that_is_written_reads_back_as_itself(probe, preset, tmp_path):
    values = {"probe": probe, "estimator.preset": preset, "model.max_memory": {"cpu": "4GiB"}, "name": "é: #1"}
    recipe, _ = resolve([("test", values)])
    path = tmp_path / "r.yaml"
    path.write_text(dump(recipe), encoding="utf-8")
    again, origins = resolve([("recipe", load_recipe(path))])
    assert dump(again) == dump(recipe)
    assert set(origins.values()) == {"recipe"}
    assert set(origins) <= set(known_paths())


def test_an_override_is_read_as_yaml():
    values, removed = parse_overrides(["data.limit=8", "data.pack=false", "operator.params=[a, b]", "~data.column"])
    assert values == {"data.limit": 8, "data.pack": False, "operator.params": ["a", "b"]}
    assert removed == ["data.column"]


def test_the_last_override_of_a_key_wins():
    assert parse_overrides(["data.limit=8", "data.limit=9"])[0] == {"data.limit": 9}


def test_all_faults_of_a_recipe_are_one_error():
    values = {"probe": "trace", "data.limit": 0, "model.dtype": 3, "estimator.k": 2, "operator.by": "row"}
    with pytest.raises(UsageError) as caught:
        resolve([("recipe", values)])
    assert len(str(caught.value).split("\nerror: ")) == 4


@pytest.mark.parametrize(("kind", "product"), [("ggn", "finite-difference"), ("fisher", "double-backward")])
def test_a_product_that_a_matrix_does_not_have_is_refused(kind, product, tmp_path, capsys):
    small = ["-L", "2", "--max-length", "8", "--preset", "quick", "-o", str(tmp_path)]
    assert _exit_code(["trace", "demo", "--operator", kind, "--product", product, *small]) == 2
    assert f"'{product}' is for the Hessian, not for {kind}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["ggn", "fisher", "empirical-fisher"])
def test_layer_by_layer_a_matrix_is_the_same(kind, tmp_path, capsys):
    small = ["-L", "2", "--max-length", "8", "--preset", "quick", "--json", "--operator", kind]
    traces = []
    for product in ("auto", "layered"):
        assert _exit_code(["trace", "demo", "--product", product, *small, "-o", str(tmp_path / product)]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["operator"]["product"] == ("jacobian" if product == "auto" else "layered")
        traces.append(report["metrics"]["trace"]["value"])
    assert traces[0] == pytest.approx(traces[1], rel=1e-4)


@pytest.mark.parametrize("kind", ["ggn", "fisher", "empirical-fisher"])
def test_semi_definite_matrices_have_no_negative_mass(kind, tmp_path, capsys):
    small = ["-L", "2", "--max-length", "8", "--probes", "2", "--steps", "5", "-o", str(tmp_path), "--json"]
    assert _exit_code(["density", "demo", "--operator", kind, *small]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["operator"]["kind"] == kind
    assert report["metrics"]["negative_mass"]["value"] == 0
    assert report["metrics"]["trace"]["value"] > 0
    assert report["operator"]["preflight"]["known_answer"] < 1e-4
