"""A run that cannot fit is refused before it starts; one that may is not; and an error of memory has a table."""

import pytest
import torch

from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.errors import DoesNotFitError
from hesscli.events import Noted
from hesscli.recipe.document import resolve
from hesscli.run.planning import check
from hesscli.run.session import run

VECTOR = 4 * 101_616  # bytes of a vector of one layer of the demo
SMALL = {"model.id": "demo", "data.limit": 2, "data.max_length": 16, "output.plots": "none"}


def measured(folder, events, probe="trace", **more):
    values = {"probe": probe, "output.dir": str(folder), "operator.params": ["*layers.0*"], **SMALL, **more}
    recipe, _ = resolve([("test", values)])
    return run(recipe, force=False, resume=False, on_event=events.append)


def free(monkeypatch, count):
    monkeypatch.setattr(check, "available_bytes", lambda _device: count)


def tables(events):
    return [e.text for e in events if isinstance(e, Noted) and "placement" in e.text and "fits" in e.text]


def test_a_run_without_room_for_its_vectors_is_refused_with_a_table(tmp_path, monkeypatch):
    free(monkeypatch, 4 * VECTOR)
    events = []
    with pytest.raises(DoesNotFitError, match=r"at the least, of which .* for vectors"):
        measured(tmp_path, events)
    assert len(tables(events)) == 1
    assert not list(tmp_path.rglob("report.json"))


def test_the_product_of_one_row_is_part_of_what_is_needed(tmp_path, monkeypatch):
    free(monkeypatch, 7 * VECTOR)  # the self-test's five and a product
    monkeypatch.setattr(check, "_least_product", lambda _recipe, _subject, _batch, _rows: 3 * VECTOR)
    with pytest.raises(DoesNotFitError):
        measured(tmp_path / "a", [])
    monkeypatch.setattr(check, "_least_product", lambda _recipe, _subject, _batch, _rows: 0)
    measured(tmp_path / "b", [])


def test_what_fits_without_its_basis_is_not_refused(tmp_path, monkeypatch):
    free(monkeypatch, 12 * VECTOR)  # 6 vectors, but no basis, which is allocated by 16
    monkeypatch.setattr(check, "_least_product", lambda _recipe, _subject, _batch, _rows: 0)
    report = measured(tmp_path, [], **{"estimator.probes": 4, "estimator.steps": 4}).report
    assert report.status == "ok"


def test_running_out_of_memory_for_good_ends_with_the_table(tmp_path, monkeypatch):
    def nothing(self, vs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(HessianOperator, "matvecs", nothing)
    monkeypatch.setattr(LayeredOperator, "matvecs", nothing)
    events = []
    with pytest.raises(DoesNotFitError):
        measured(tmp_path, events, **{"operator.product": "double-backward"})
    assert len(tables(events)) == 1


def fetched(folder, events, **more):
    where = {"model.device_map": "disk", "model.offload_dir": str(folder / "off")}
    return measured(
        folder, events, **where, **{"data.limit": 4, "data.batch_size": 4, "operator.product": "layered"} | more
    )


def test_activations_that_do_not_fit_beside_fetched_layers_are_refused_with_a_table(tmp_path, monkeypatch):
    free(monkeypatch, 1000)
    events = []
    with pytest.raises(DoesNotFitError, match=r"on 4 rows at a time needs .* on cpu, activations and all"):
        fetched(tmp_path, events)
    assert len(tables(events)) == 1
    assert not list(tmp_path.rglob("report.json"))


def test_the_refusal_names_the_rows_that_would_fit_beside_fetched_layers(tmp_path, monkeypatch):
    free(monkeypatch, 250)
    monkeypatch.setattr(check, "_fetched_product", lambda _recipe, _subject, _batch, rows: 100 * rows)
    with pytest.raises(DoesNotFitError, match="use --batch-size 2"):
        fetched(tmp_path / "a", [])
    monkeypatch.setattr(check, "_fetched_product", lambda _recipe, _subject, _batch, rows: 50 * rows)
    assert fetched(tmp_path / "b", []).report.status == "ok"


@pytest.mark.parametrize("where", ["in memory", "in files"])
def test_rows_that_do_not_fit_are_halved_before_anything_runs_and_the_answer_stays(tmp_path, monkeypatch, where):
    options = {"data.limit": 4, "data.max_length": 16, "estimator.probes": 2, "estimator.steps": 2}
    run = fetched if where == "in files" else measured
    options |= {"data.batch_size": "auto", "operator.product": "layered"}
    whole = run(tmp_path / "a", [], **options).report
    room = 12 * VECTOR if where == "in memory" else 500
    free(monkeypatch, room)
    for name, rows in (("_fetched_product", 250), ("_least_product", 2 * VECTOR)):
        monkeypatch.setattr(check, name, lambda _recipe, _subject, _batch, n, each=rows: each * n)
    events = []
    report = run(tmp_path / "b", events, **options).report
    fitting = 2  # of 4: vectors take 6 of the room, with a tenth more
    assert (whole.operator.batch_size, report.operator.batch_size) == (4, fitting)
    assert next(w.text for w in report.warnings if w.code == check.FEWER_ROWS).startswith("batches have 2 rows each")
    assert whole.run_id == report.run_id
    trace, again = (r.metrics["trace"].value for r in (whole, report))
    assert again == pytest.approx(trace, rel=1e-5)
