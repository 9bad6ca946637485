"""Which cells a recipe has, in which order, and every fault of them at once."""

import pytest
import yaml

from hesscli.errors import UsageError
from hesscli.recipe.cells import MOST, expand, print_cells
from hesscli.recipe.document import load_recipe
from hesscli.recipe.matrix import combinations
from hesscli.report.trends.steps import natural_order, positions
from hesscli.run.sweep.plan import plan_sweep, shard_indices

BASE = {"probe": "topk", "data.limit": 2}


def cells(**values):
    return [cell.values for cell in expand([("recipe", BASE | values)]).cells]


def faults(values):
    with pytest.raises(UsageError) as caught:
        expand([("recipe", values)])
    return str(caught.value).split("\nerror: ")


def test_include_joins_and_adds_as_the_documentation_of_github_actions_says():
    # docs.github.com, "Running variations of jobs in a workflow", the example with fruit and animals
    include = [
        {"color": "green"},
        {"color": "pink", "animal": "cat"},
        {"fruit": "apple", "shape": "circle"},
        {"fruit": "banana"},
        {"fruit": "banana", "animal": "cat"},
    ]
    matrix = {"fruit": ["apple", "pear"], "animal": ["cat", "dog"]}
    assert combinations(matrix, include=include, exclude=[]) == [
        {"fruit": "apple", "animal": "cat", "color": "pink", "shape": "circle"},
        {"fruit": "apple", "animal": "dog", "color": "green", "shape": "circle"},
        {"fruit": "pear", "animal": "cat", "color": "pink"},
        {"fruit": "pear", "animal": "dog", "color": "green"},
        {"fruit": "banana"},
        {"fruit": "banana", "animal": "cat"},
    ]


def test_exclude_drops_what_agrees_with_all_of_its_keys_before_include_adds():
    # the same page, the example with os, version and environment
    matrix = {"os": ["mac", "win"], "version": [12, 14, 16], "environment": ["staging", "production"]}
    exclude = [{"os": "mac", "version": 12, "environment": "production"}, {"os": "win", "version": 16}]
    found = combinations(matrix, include=[{"os": "win", "version": 16}], exclude=exclude)
    assert len(found) == 12 - 3 + 1
    assert {"os": "mac", "version": 12, "environment": "staging"} in found
    assert found[-1] == {"os": "win", "version": 16}


def test_values_are_told_apart_as_yaml_has_them():
    assert len(combinations({"a": [1, True, "1"]}, include=[], exclude=[{"a": 1.0}])) == 2


def test_each_cell_is_a_whole_recipe():
    found = expand([("recipe", BASE | {"matrix.model.revision": ["step50", "final"], "matrix.data.limit": [4, 8]})])
    assert [(c.recipe.model.revision, c.recipe.data.limit) for c in found.cells] == [
        ("step50", 4), ("step50", 8), ("final", 4), ("final", 8)
    ]  # fmt: skip
    assert not any(cell.recipe.matrix for cell in found.cells)


def test_every_fault_of_the_recipe_and_of_every_cell_is_named_once_with_its_place():
    found = faults({
        "probe": "topk",
        "data.limit": 0,
        "matrix.operator.kind": ["hesian", "ggn", "gg"],
        "matrix.estimator.k": [2, -1],
    })  # fmt: skip
    assert len(found) == 4
    assert found[0].startswith("data.limit: 0 does not fit")
    text = "\n".join(found)
    assert "matrix.operator.kind[0]: 'hesian' is not allowed; allowed: hessian, ggn" in text
    assert "matrix.operator.kind[2]: 'gg'" in text
    assert "did you mean hessian" in text
    assert "matrix.estimator.k[1]: -1 does not fit" in text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"matrix.model.revison": ["a"]}, "matrix.model.revison: no such key; did you mean model.revision?"),
        ({"matrix.output.dir": ["a", "b"]}, "matrix.output.dir: is the same for every cell"),
        ({"matrix.estimator.k": []}, "matrix.estimator.k: [] does not fit; it should be a list that is not empty"),
        ({"matrix.estimator.k": 3}, "matrix.estimator.k: 3 does not fit; it should be a list"),
        ({"matrix.estimator.k": [3, 3.0]}, "matrix.estimator.k: [3, 3.0] does not fit; it should be a list without 3"),
        ({"matrix": [1]}, "matrix: [1] does not fit; it should be a mapping"),
        ({"matrix.estimator.k": [1], "exclude": [{"data.limit": 1}]}, "exclude.0.data.limit: is not a key of"),
        ({"matrix.estimator.k": [1], "exclude": [{"estimator.k": 1}]}, "exclude: drops every cell"),
        ({"matrix.estimator.k": [1], "include": [{}]}, "include.0: {} does not fit"),
        ({"include": [{"model.dtyp": "float64"}]}, "include.0.model.dtyp: no such key; did you mean model.dtype?"),
        ({"include": [{"model.dtype": "flot64"}]}, "include.model.dtype: 'flot64' is not allowed"),
        ({"matrix.probe": ["density", "topk"], "matrix.estimator.k": [2]}, "matrix.estimator.k[0]: is not read by"),
        ({"matrix.data.limit": list(range(1, MOST + 2))}, f"matrix: gives {MOST + 1} cells"),
        ({}, "matrix: the recipe has none"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_matrix_is_said_in_one_line(values, words):
    (found,) = faults(BASE | values)
    assert words in found


def test_an_exclude_that_drops_nothing_is_told():
    idle = [{"estimator.k": 7}]
    assert expand([("recipe", BASE | {"matrix.estimator.k": [1, 2], "exclude": idle})]).idle == idle


def test_the_printed_recipe_gives_the_same_cells_again(tmp_path):
    layers = [("recipe", BASE | {
        "matrix.model.revision": ["step50", "final"],
        "matrix.estimator.preset": ["quick", "standard"],
        "include": [{"model.dtype": "float64", "estimator.preset": "publication"}],
        "exclude": [{"model.revision": "step50", "estimator.preset": "quick"}],
    })]  # fmt: skip
    whole = expand(layers)
    text = print_cells(whole)
    assert "limit: 2  # recipe" in text
    assert "model.revision:  # recipe" in text
    assert "steps:" not in text  # the preset's, which differs from cell to cell
    path = tmp_path / "again.yaml"
    path.write_text(text)
    again = expand([("recipe", load_recipe(path))])
    assert [cell.recipe for cell in again.cells] == [cell.recipe for cell in whole.cells]
    assert yaml.safe_load(text)["exclude"] == [{"model.revision": "step50", "estimator.preset": "quick"}]


@pytest.mark.parametrize(
    ("names", "steps", "order"),
    [
        (["step10", "step2", "main"], [10, 2, None], ["step2", "step10", "main"]),
        (["main", "step143000", "step0"], [None, 143000, 0], ["step0", "step143000", "main"]),
        (["ckpt/checkpoint-500", "ckpt/checkpoint-1500"], [500, 1500], ["ckpt/checkpoint-500", "ckpt/checkpoint-1500"]),
        (["s1-step1000-tokens4B", "s1-step500-tokens2B"], [1000, 500], ["s1-step500-tokens2B", "s1-step1000-tokens4B"]),
        (["10k", "500", "2M"], [1e4, 500, 2e6], ["500", "10k", "2M"]),
        (["Qwen3-1.7B", "Qwen3-0.6B"], [1.7e9, 0.6e9], ["Qwen3-0.6B", "Qwen3-1.7B"]),
        (["tuned", "base"], [None, None], ["tuned", "base"]),
        (["step5", "epoch1"], [None, None], ["step5", "epoch1"]),
        (["a" * 11 + "1", "b" * 11 + "2"], [None, None], ["a" * 11 + "1", "b" * 11 + "2"]),
        ([3, 1.5], [3, 1.5], [1.5, 3]),
    ],
)
def test_revisions_stand_in_the_order_of_training_where_their_names_tell_it(names, steps, order):
    assert positions(names) == pytest.approx(steps)
    assert [names[i] for i in natural_order(names)] == order


def test_cells_run_in_the_order_of_training_whatever_the_order_of_the_recipe():
    values = {"matrix.model.revision": ["step200", "final", "step50"], "matrix.operator.kind": ["hessian", "ggn"]}
    plan = plan_sweep(expand([("recipe", BASE | values)]))
    assert [(c.values["model.revision"], c.values["operator.kind"]) for c in plan.cells] == [
        (revision, kind) for revision in ("step50", "step200", "final") for kind in ("hessian", "ggn")
    ]
    assert [axis.values for axis in plan.axes] == [["step50", "step200", "final"], ["hessian", "ggn"]]


def test_the_hash_of_a_sweep_is_over_what_it_measures():
    def sweep_id(**values):
        return plan_sweep(expand([("recipe", BASE | {"matrix.estimator.k": [1, 2]} | values)])).sweep_id

    assert sweep_id() == sweep_id(name="other") == sweep_id(**{"output.dir": "elsewhere"})
    assert sweep_id() != sweep_id(**{"data.limit": 3})


def test_absolute_paths_of_models_are_shown_by_their_ends():
    values = {"matrix.model.id": ["/a/run1/ckpt", "/a/run2/ckpt", "demo"]}
    plan = plan_sweep(expand([("recipe", BASE | values)]))
    assert [cell.values["model.id"] for cell in plan.cells] == ["run1/ckpt", "run2/ckpt", "demo"]
    assert plan.cells[0].recipe.model.id == "/a/run1/ckpt"


@pytest.mark.parametrize(("count", "of"), [(12, 5), (3, 4), (1, 1)])
def test_shards_share_out_every_cell_once(count, of):
    parts = [shard_indices(count, shard=(i + 1, of)) for i in range(of)]
    assert sorted(index for part in parts for index in part) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
