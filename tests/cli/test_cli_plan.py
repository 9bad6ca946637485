"""`hess plan`: a table, JSON, a command that can be pasted, and exit 5 where nothing fits."""

import json
import shlex

import pytest

from hesscli.run.planning.document import Plan

SMALL = ("-L", 4, "--max-length", 24)


def test_a_folder_is_planned_without_its_weights(hess, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    ended = hess("plan", checkpoint, *SMALL, "--devices", "1GiB")
    assert ended.code == 0, ended.err
    assert "recommended: double-backward, graph kept" in ended.out
    assert "of 24 positions" in ended.out


def test_json_is_a_plan_and_nothing_else(hess, checkpoint):
    ended = hess("plan", checkpoint / "config.json", *SMALL, "--devices", "2x1GiB,host=4GiB", "--json")
    assert ended.code == 0, ended.err
    plan = Plan.model_validate_json(ended.out)
    assert (plan.devices.count, plan.devices.bytes_each, plan.devices.host_bytes) == (2, 1 << 30, 4 << 30)
    assert {way.placement for way in plan.ways} == {"single", "layerwise", "fsdp", "offloaded"}
    assert json.loads(ended.out)["schema"] == "hess.plan/1"


def agrees(value, schema, definitions):
    """Whether a value has the keys and the kinds that a schema of pydantic's says."""
    if "$ref" in schema:
        return agrees(value, definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    if "anyOf" in schema:
        return any(agrees(value, one, definitions) for one in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return value in schema.get("enum", [schema.get("const")])
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int}
    kind = schema.get("type")
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is not None and type(value) is not kinds[kind]:
        return False
    if kind == "array":
        return all(agrees(one, schema.get("items", {}), definitions) for one in value)
    if kind == "object" and "properties" in schema:
        inside = schema["properties"]
        complete = value.keys() <= inside.keys() and set(schema.get("required", [])) <= value.keys()
        return complete and all(agrees(one, inside[key], definitions) for key, one in value.items())
    return True


def test_the_schema_of_a_plan_is_that_of_what_is_printed(hess, checkpoint):
    schema = json.loads(hess("schema", "plan").out)
    ended = hess("plan", checkpoint / "config.json", *SMALL, "--devices", "2x1GiB,host=4GiB", "--json")
    plan = json.loads(ended.out)
    assert schema["properties"].keys() >= plan.keys()
    assert agrees(plan, schema, schema["$defs"])
    for broken in ({**plan, "further": 1}, {**plan, "ways": [{}]}, {**plan, "command": 1}):
        assert not agrees(broken, schema, schema["$defs"])
    assert "hess schema plan" in hess("plan", "--help").out


def test_the_command_that_is_recommended_runs(hess, checkpoint):
    data = ("-L", 4)
    ended = hess("plan", checkpoint, *data, "--probe", "topk", "--k", 1, "--params", "*mlp*", "--json")
    assert ended.code == 0, ended.err
    words = shlex.split(json.loads(ended.out)["recommended"]["command"])
    assert words[:2] == ["hess", "topk"]
    assert words[words.index("--params") + 1] == "*mlp*"
    run = hess(*words[1:], "-d", checkpoint.parent / "rows.jsonl", "--plots", "none", "-q")
    assert run.code == 0, run.err


def test_a_config_alone_gives_a_command_with_room_for_its_model(hess, checkpoint):
    ended = hess("plan", checkpoint / "config.json", *SMALL, "--json")
    assert ended.code == 0, ended.err
    assert shlex.split(json.loads(ended.out)["recommended"]["command"])[2] == "MODEL"


def test_nothing_fits_ends_in_5_with_the_table_and_the_least_that_would(hess, checkpoint):
    ended = hess("plan", checkpoint, *SMALL, "--devices", "10KiB")
    assert ended.code == 5
    assert "single" in ended.out
    assert "NO" in ended.out
    assert ended.err.splitlines()[-1].startswith("error: devices: nothing fits on 1 x 10.0 KiB: the least is ")


@pytest.mark.parametrize("words", ["8x", "0x80GiB", "many", "80GiX", "-1GiB"])
def test_devices_that_are_none_are_refused_in_one_line(hess, words):
    ended = hess("plan", "demo", f"--devices={words}")
    assert ended.code == 2
    assert ended.err.startswith("error: devices: ")


def test_an_option_that_the_probe_does_not_read_is_refused(hess):
    ended = hess("plan", "demo", "--probe", "blockdiag", "--steps", 4)
    assert ended.code == 2
    assert "is not read by blockdiag" in ended.err


def test_a_config_that_is_not_there_is_refused(hess):
    ended = hess("plan", "nowhere.json")
    assert (ended.code, ended.out) == (6, "")
    assert ended.err.startswith("error: model.id: 'nowhere.json' is not a file; give the path of a config")


def test_calibration_gives_seconds(hess, checkpoint):
    ended = hess(
        "plan", "demo", "-L", 2, "--max-length", 16, "--probe", "trace", "--devices", "4GiB", "--calibrate", "--json"
    )
    assert ended.code == 0, ended.err
    plan = Plan.model_validate_json(ended.out)
    assert plan.calibration.gradient_seconds > 0
    single = [way for way in plan.ways if way.placement == "single"]
    for way in single:
        assert way.seconds == pytest.approx(way.matvecs * way.gradients * plan.calibration.gradient_seconds)


def test_a_dry_run_is_the_plan_of_that_command_and_measures_nothing(hess, checkpoint, tmp_path):
    planned = hess("plan", checkpoint, *SMALL, "--probe", "topk", "--k", 2, "--json")
    rows = ("-d", checkpoint.parent / "rows.jsonl", "--no-pack")
    dry = hess("topk", checkpoint, *SMALL, "--k", 2, *rows, "--dry-run", "--json")
    assert dry.code == 0, dry.err
    one, other = json.loads(planned.out), json.loads(dry.out)
    assert one["ways"] == other["ways"]
    assert shlex.split(other["recommended"]["command"])[:2] == ["hess", "topk"]
    assert "--dataset" in other["recommended"]["command"]
    assert "--no-pack" in shlex.split(other["recommended"]["command"])
    assert not [*checkpoint.parent.rglob("report.json")]
    recipe = tmp_path / "small.yaml"
    recipe.write_text("probe: topk\n")
    run = hess("run", recipe, f"model.id={checkpoint}", "data.limit=4", "data.max_length=24", "--dry-run")
    assert run.code == 0, run.err
    assert "layered" in run.out
    assert "recommended" not in run.out  # a command of flags is no `hess run`


def test_verbose_has_a_line_for_each_step(hess, checkpoint):
    words = ("trace", checkpoint, *SMALL, "-d", checkpoint.parent / "rows.jsonl", "--probes", 3, "--steps", 3)
    few = hess(*words, "--plots", "none", "-o", "few")
    many = hess(*words, "--plots", "none", "-o", "many", "-v")
    assert len(many.err.splitlines()) >= len(few.err.splitlines()) + 6
