"""Precedence, origins, and one set of names for options and keys."""

import pytest
import yaml

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


def test_flags_win_over_the_preset_and_the_preset_over_defaults(hess):
    ended = hess("density", "demo", "--preset", "quick", "--steps", "7", "--params", "model.*", "--print-config")
    for line in ("probes: 2  # preset quick", "steps: 7  # flag", "params:  # flag", "limit: 64  # default"):
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


@pytest.mark.parametrize("probe", ["density", "topk", "trace", "blockdiag"])
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
