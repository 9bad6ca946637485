"""A sweep runs each cell once, whatever becomes of the others, of its processes and of the files behind it."""

import json
import os
import resource
import shutil
import sys
from pathlib import Path

import pytest
from tiny import tiny_model

from hesscli.errors import UsageError
from hesscli.events import Noted, Warned, ignore
from hesscli.recipe.cells import expand
from hesscli.report.document import read_report
from hesscli.report.gating.check import demands_of
from hesscli.report.sweep import read_cells, read_manifest, report_file
from hesscli.run.sweep import loop
from hesscli.run.sweep.ledger import Ledger
from hesscli.run.sweep.memory import release
from hesscli.run.sweep.plan import plan_sweep
from hesscli.run.sweep.prospect import prospects
from hesscli.run.sweep.results import Gating

pytestmark = pytest.mark.usefixtures("small_demo")
SMALL = {
    "probe": "trace",
    "name": "small",
    "data.limit": 2,
    "data.max_length": 16,
    "operator.params": ["*norm*"],
    "estimator.probes": 2,
    "estimator.steps": 2,
    "output.plots": "none",
}
REVISIONS = {"matrix.model.revision": ["step50", "step200", "final"]}
TABLES = ("results.csv", "results.jsonl", "results.md")


def plan_of(folder, **values):
    return plan_sweep(expand([("test", {**SMALL, "output.dir": str(folder), **values})]))


def swept(plan, *, shard=(1, 1), retry_failed=False, gating=None, on_event=ignore):
    return loop.sweep(
        plan, shard=shard, retry_failed=retry_failed, gating=gating, on_event=on_event, on_failure=lambda _error: None
    ).manifest


@pytest.fixture
def runs(monkeypatch):
    """The recipes that are really loaded, in order."""
    seen, run = [], loop.run
    monkeypatch.setattr(loop, "run", lambda recipe, **options: seen.append(recipe) or run(recipe, **options))
    return seen


def statuses(manifest):
    return [cell.status for cell in manifest.cells]


def test_each_cell_has_its_report_and_a_second_start_loads_nothing(tmp_path, runs):
    plan = plan_of(tmp_path, **REVISIONS)
    manifest = swept(plan)
    assert statuses(manifest) == ["done"] * 3
    reports = [report for _, report in read_cells(plan.folder / "manifest.json", manifest)]
    assert [report.model.revision for report in reports] == ["step50", "step200", "final"]
    assert [cell.run_id for cell in manifest.cells] == [report.run_id for report in reports]
    assert not any(Path(cell.folder).is_absolute() for cell in manifest.cells)
    assert len(runs) == 3
    before = {path: path.read_bytes() for path in plan.folder.iterdir() if path.name in TABLES}
    assert statuses(swept(plan)) == ["done"] * 3
    assert len(runs) == 3
    assert {path: path.read_bytes() for path in before} == before


def test_a_cell_that_fails_is_recorded_and_does_not_end_the_others(tmp_path, runs):
    plan = plan_of(
        tmp_path,
        **{"matrix.operator.kind": ["hessian", "ggn"], "matrix.operator.product": ["finite-difference", "auto"]},
    )
    heard = []
    manifest = swept(plan, on_event=heard.append)
    assert statuses(manifest) == ["done", "done", "failed", "done"]
    failed = manifest.cells[2]
    assert failed.error.startswith("operator.product: 'finite-difference' is for the Hessian, not for ggn;")
    assert (failed.exit_code, failed.folder) == (2, None)
    assert any(isinstance(e, Warned) and "cell 3 of 4 failed: operator.product" in e.text for e in heard)
    row = (plan.folder / "results.csv").read_text().splitlines()[3]
    assert ",failed,," in row
    assert "is for the Hessian" in row
    swept(plan)
    assert len(runs) == 4
    assert statuses(swept(plan, retry_failed=True)) == ["done", "done", "failed", "done"]
    assert len(runs) == 5


def test_a_bug_in_one_cell_is_its_failure_alone(tmp_path, monkeypatch):
    run, told = loop.run, []

    def broken(recipe, **options):
        if recipe.model.revision == "step200":
            raise ZeroDivisionError("a\nb")
        return run(recipe, **options)

    monkeypatch.setattr(loop, "run", broken)
    ending = loop.sweep(
        plan_of(tmp_path, **REVISIONS),
        shard=(1, 1), retry_failed=False, gating=None, on_event=ignore, on_failure=told.append,
    )  # fmt: skip
    assert statuses(ending.manifest) == ["done", "failed", "done"]
    assert ending.manifest.cells[1].exit_code == 1
    assert ending.manifest.cells[1].error == "hess: ZeroDivisionError: a b; this is a bug, HESS_DEBUG=1 shows where"
    assert [type(error) for error in told] == [ZeroDivisionError]


def test_two_shards_give_the_table_of_one_run(tmp_path):
    values = {"matrix.model.revision": ["step50", "final"], "matrix.operator.kind": ["hessian", "ggn"]}
    whole, parts = plan_of(tmp_path / "whole", **values), plan_of(tmp_path / "parts", **values)
    swept(whole)
    first = swept(parts, shard=(1, 2))
    assert statuses(first) == ["done", "missing"] * 2
    swept(parts, shard=(2, 2))
    assert whole.folder.name == parts.folder.name
    for name in TABLES:
        assert (parts.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name


def test_a_cell_that_another_process_holds_is_skipped_and_run_by_the_next_start(tmp_path, runs):
    plan = plan_of(tmp_path, **REVISIONS)
    ledger = Ledger(plan)
    ledger.open()
    with ledger.claimed(1):
        assert statuses(swept(plan)) == ["done", "skipped", "done"]
    assert statuses(swept(plan)) == ["done"] * 3
    assert [recipe.model.revision for recipe in runs] == ["step50", "final", "step200"]


def test_what_another_process_has_done_meanwhile_is_not_done_again(tmp_path, monkeypatch):
    plan = plan_of(tmp_path, **REVISIONS)
    run, seen = loop.run, []

    def while_another_sweeps(recipe, **options):
        seen.append(recipe.model.revision)
        if len(seen) == 1:  # the other does the cells that this one has not claimed
            swept(plan)
        return run(recipe, **options)

    monkeypatch.setattr(loop, "run", while_another_sweeps)
    manifest = swept(plan)
    assert statuses(manifest) == ["done"] * 3
    assert seen == ["step50", "step200", "final"]


def test_equal_weights_under_two_names_are_measured_once_and_told(tmp_path):
    heard = []
    plan = plan_of(tmp_path, **{"matrix.model.revision": ["main", "step50", "final"]})
    manifest = swept(plan, on_event=heard.append)
    (told,) = [event.text for event in heard if isinstance(event, Warned) and event.code == "same_measurement"]
    assert "is the same measurement as model.revision=main" in told
    by_revision = {cell.values["model.revision"]: cell for cell in manifest.cells}
    assert by_revision["final"].folder == by_revision["main"].folder
    assert manifest.cells[by_revision["final"].same_as] is by_revision["main"]
    assert len(list(tmp_path.glob("demo/*/trace-*"))) == 2


def test_another_sweep_takes_over_what_is_measured_without_loading_it(tmp_path, runs):
    swept(plan_of(tmp_path, **{"matrix.model.revision": ["step50", "final"]}))
    manifest = swept(plan_of(tmp_path, **REVISIONS))
    assert [recipe.model.revision for recipe in runs] == ["step50", "final", "step200"]
    assert statuses(manifest) == ["done"] * 3


def test_a_run_made_by_itself_is_taken_over_without_measuring(tmp_path):
    plan = plan_of(tmp_path, **REVISIONS)
    alone = loop.run(plan.cells[0].recipe, force=False, resume=True, on_event=ignore)
    created = alone.report.created, (alone.folder / "report.json").stat().st_mtime_ns
    manifest = swept(plan)
    assert manifest.cells[0].run_id == alone.report.run_id
    report = alone.folder / "report.json"
    assert (read_report(report).created, report.stat().st_mtime_ns) == created


def test_a_cell_whose_report_is_gone_or_broken_is_measured_again(tmp_path, runs):
    plan = plan_of(tmp_path, **REVISIONS)
    manifest = swept(plan)
    files = [report_file(plan.folder / "manifest.json", cell) for cell in manifest.cells]
    figures = read_report(files[1]).metrics
    shutil.rmtree(files[0].parent)
    files[1].write_text("{")
    assert statuses(swept(plan)) == ["done"] * 3
    assert [recipe.model.revision for recipe in runs[3:]] == ["step50", "step200"]
    assert files[0].exists()
    assert read_report(files[1]).metrics == figures


def test_a_checkpoint_that_was_changed_is_measured_again_and_one_that_was_touched_is_not(tmp_path, runs):
    def save(name, factor):
        model = tiny_model("qwen3")
        model.lm_head.weight.data *= factor
        model.save_pretrained(tmp_path / name)

    save("a", 1.0)
    save("b", 1.1)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"input_ids": [3, 4, 5, 6]}) + "\n" + json.dumps({"input_ids": [5, 6, 7, 8]}) + "\n")
    values = {"matrix.model.id": [str(tmp_path / "a"), str(tmp_path / "b")], "data.id": str(rows)}
    plan = plan_of(tmp_path / "out", **values)
    before = swept(plan)
    assert [cell.values["model.id"] for cell in before.cells] == ["a", "b"]
    save("a", 1.2)
    os.utime(tmp_path / "b" / "model.safetensors")
    after = swept(plan)
    assert len(runs) == 4
    assert after.cells[0].run_id != before.cells[0].run_id
    assert (after.cells[1].run_id, after.cells[1].seconds) == (before.cells[1].run_id, before.cells[1].seconds)
    swept(plan)
    assert len(runs) == 4


def test_a_measured_cell_stays_done_where_its_source_is_out_of_reach(tmp_path, monkeypatch):
    plan = plan_of(tmp_path, **REVISIONS)
    swept(plan)
    path = plan.folder / "manifest.json"
    told = []
    monkeypatch.setattr("hesscli.run.sweep.prospect.cell_inputs", lambda _recipe: None)

    def unreachable(*_arguments, **_options):
        raise UsageError("model", "out of reach")

    monkeypatch.setattr(loop, "run", unreachable)
    assert statuses(swept(plan, on_event=told.append)) == ["done"] * 3
    assert sum(isinstance(event, Warned) and event.code == "cell_not_checked" for event in told) == 3
    assert statuses(read_manifest(path)) == ["done"] * 3


def test_an_untrustworthy_report_is_a_failed_cell_without_a_figure(tmp_path, monkeypatch):
    run = loop.run

    def bad(recipe, **options):
        outcome = run(recipe, **options)
        outcome.report.status, outcome.report.status_text = "untrustworthy", "not symmetric"
        return outcome

    monkeypatch.setattr(loop, "run", bad)
    plan = plan_of(tmp_path, **{"matrix.model.revision": ["step50", "final"]})
    manifest = swept(plan)
    assert [(cell.status, cell.exit_code, cell.report_status) for cell in manifest.cells] == [
        ("failed", 4, "untrustworthy")
    ] * 2
    assert manifest.cells[0].error == "status: untrustworthy: not symmetric"
    forced = []
    monkeypatch.setattr(
        loop, "run", lambda recipe, **options: forced.append(options["force"]) or run(recipe, **options)
    )
    assert statuses(swept(plan, retry_failed=True)) == ["done", "done"]
    assert forced == [True, True]


def test_an_interrupt_ends_the_sweep_and_leaves_what_is_done(tmp_path, monkeypatch):
    run, seen = loop.run, []

    def interrupted(recipe, **options):
        seen.append(recipe)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return run(recipe, **options)

    monkeypatch.setattr(loop, "run", interrupted)
    plan = plan_of(tmp_path, **REVISIONS)
    with pytest.raises(KeyboardInterrupt):
        swept(plan)
    assert statuses(read_manifest(plan.folder)) == ["done", "missing", "missing"]
    swept(plan)
    assert len(seen) == 4


def test_the_dry_run_says_what_the_sweep_then_does_and_writes_nothing(tmp_path, runs):
    plan = plan_of(tmp_path / "out", **REVISIONS)
    foretold = prospects(plan, shard=(1, 1), retry_failed=False)
    assert [item.action for item in foretold] == ["run"] * 3
    assert not (tmp_path / "out").exists()
    swept(plan, shard=(1, 3))
    assert [item.action for item in prospects(plan, shard=(1, 1), retry_failed=False)] == ["leave", "run", "run"]
    assert len(runs) == 1


def test_progress_says_which_cell_of_how_many_and_how_long_the_rest_takes(tmp_path):
    heard = []
    swept(plan_of(tmp_path, **REVISIONS, **{"matrix.operator.kind": ["ggn"]}), on_event=heard.append)
    lines = [event.text for event in heard if isinstance(event, Noted) and event.text.startswith("cell ")]
    assert lines[0] == "cell 1 of 3: model.revision=step50 operator.kind=ggn"
    assert lines[2].startswith("cell 3 of 3: model.revision=final operator.kind=ggn, about ")
    assert lines[2].endswith(" s left")


def test_gates_are_judged_over_all_cells_and_stand_in_their_reports(tmp_path):
    plan = plan_of(tmp_path, **REVISIONS)
    values = [r.metrics["trace"].value for _, r in read_cells(plan.folder / "manifest.json", swept(plan))]
    limit = sorted(values)[1] + 0.5 * (sorted(values)[2] - sorted(values)[1])
    gating = Gating(demands_of([f"trace < {limit}"], None), "warn")
    ending = loop.sweep(
        plan, shard=(1, 1), retry_failed=False, gating=gating, on_event=ignore, on_failure=lambda _error: None
    )
    verdicts = [cell.verdict for cell in ending.manifest.cells]
    assert verdicts == [report.verdict for _, report in read_cells(plan.folder / "manifest.json", ending.manifest)]
    assert None not in verdicts
    assert ending.judged.exit_code == (3 if "fail" in verdicts else 0)
    unknown = Gating(demands_of(["lambda_maxx < 1"], None), "warn")
    ending = loop.sweep(
        plan, shard=(1, 1), retry_failed=False, gating=unknown, on_event=ignore, on_failure=lambda _error: None
    )
    assert isinstance(ending.refused, UsageError)


def test_a_manifest_of_something_else_is_refused_in_one_line(tmp_path):
    plan = plan_of(tmp_path, **REVISIONS)
    swept(plan)
    path = plan.folder / "manifest.json"
    path.write_text(path.read_text().replace("step200", "step201"))
    with pytest.raises(UsageError, match="has other cells; remove it"):
        swept(plan)
    path.write_text("{")
    with pytest.raises(UsageError, match="not JSON"):
        swept(plan)


@pytest.mark.skipif(sys.platform != "linux", reason="reads and resets the peak through /proc")
def test_the_peak_of_one_cell_is_not_that_of_the_next():
    block = bytearray(300_000_000)
    block[::4096] = b"1" * len(block[::4096])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del block
    release()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before - 200_000
