"""The journal says what happened, survives what ends a run, and every quantity that one watches has its place."""

import json
import math

import numpy as np
import pytest
import torch
from tiny import flat, ragged_slice, risk_of, tiny_model

from hesscli.curvature.double_backward import HessianOperator
from hesscli.errors import DoesNotFitError, UsageError
from hesscli.recipe.document import resolve
from hesscli.report.schema import Report
from hesscli.run.journal import OBSERVED, Journal, Made, read_journal
from hesscli.run.observed import ObservedOperator
from hesscli.run.retreat import RetreatingOperator
from hesscli.run.session import run
from hesscli.run.storage.folder import JOURNAL
from hesscli.run.storage.product_log import ProductLog

SMALL = {
    "model.id": "demo",
    "data.limit": 4,
    "data.max_length": 16,
    "operator.params": ["*layers.0*norm*"],
    "output.plots": "none",
}


def measured(probe, folder, **more):
    values = {"probe": probe, "output.dir": str(folder), **SMALL, **more}
    recipe = resolve([("test", values)])[0]
    return run(recipe, force=False, resume=True, on_event=lambda _event: None)


def lines_of(folder, kind):
    return [line for line in read_journal(folder / JOURNAL) if line["kind"] == kind]


@pytest.fixture(scope="module")
def topk(tmp_path_factory):
    more = {"estimator.k": 2, "estimator.steps": 14, "data.limit": 8}
    return measured("topk", tmp_path_factory.mktemp("topk"), **more)


@pytest.fixture(scope="module")
def solve(tmp_path_factory):
    more = {"operator.kind": "ggn", "estimator.solver": "cg", "estimator.damping": [0.1], "estimator.steps": 12}
    return measured("solve", tmp_path_factory.mktemp("solve"), **more)


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    more = {"estimator.probes": 4, "estimator.steps": 4, "data.limit": 8}
    return measured("trace", tmp_path_factory.mktemp("trace"), **more)


def test_there_is_a_line_for_each_product_that_the_report_counts(topk, solve, trace):
    for outcome in (topk, solve, trace):
        products, counted = lines_of(outcome.folder, "product"), lines_of(outcome.folder, "products")
        assert len(products) + sum(line["count"] for line in counted) == outcome.report.cost.matvecs
        assert [line["step"] for line in products] == sorted(line["step"] for line in products)
        assert all(line["finite"] and not line["replayed"] and line["seconds"] > 0 for line in products)
        assert all(line["peak_bytes"]["cpu"] >= line["resident_bytes"]["cpu"] / 2 > 0 for line in products)
        ended = lines_of(outcome.folder, "ended")
        assert [line["matvecs"] for line in ended] == [outcome.report.cost.matvecs]
        assert ended[0]["status"] == outcome.report.status
        latency = [ended[0]["latency"][name] for name in ("min", "p50", "p95", "max")]
        assert latency == sorted(latency)
    assert {line["run_id"] for line in read_journal(topk.folder / JOURNAL)} == {topk.report.run_id}


def test_every_quantity_that_one_watches_stands_where_the_table_says(topk, solve, trace):
    def stands(outcome, place):
        where, path = place.split(": ")
        found = json.loads((outcome.folder / "report.json").read_text())
        if where == "journal":
            kind, path = path.split(".", 1)
            found = lines_of(outcome.folder, kind)[-1]
        for key in path.split("."):
            if key not in found:
                return False
            found = found[key]
        value = found.get("value", found) if isinstance(found, dict) else found
        return value is not None and value != {}

    assert len(OBSERVED) == 10
    missing = {what for what, place in OBSERVED.items() if not any(stands(o, place) for o in (topk, solve, trace))}
    assert not missing
    assert all(stands(outcome, "report: cost.non_finite.nan") for outcome in (topk, solve, trace))


def test_steps_carry_beta_and_the_leading_pair_to_the_values_of_the_report(topk, solve):
    steps = [line for line in lines_of(topk.folder, "step") if line["stage"] == "topk"]
    assert [line["done"] for line in steps] == list(range(1, len(steps) + 1))
    last, top = steps[-1], topk.report.metrics["lambda_max"].value
    assert abs(last["leading_value"] - top) <= last["leading_residual"] + 1e-5 * top
    assert all(line["beta"] > 0 for line in steps[:-1])
    residuals = [line["residual"] for line in lines_of(solve.folder, "step")]
    found = solve.report.solve.systems[0].residuals[1:]
    assert residuals[: len(found) - 1] == pytest.approx(found[: len(residuals)][: len(found) - 1])


def test_norms_are_those_of_the_vectors(tmp_path):
    risk = risk_of(tiny_model("gpt2"), ragged_slice(), 5)
    journal = Journal(tmp_path, risk.space, run_id="0")
    operator = ObservedOperator(HessianOperator(risk, keep_graph=False), risk.space, log=None, journal=journal)
    vs = [risk.space.random("gaussian", seed=0, index=i) for i in range(2)]
    with journal.open(resumed=False):
        products = operator.matvecs(vs)
    lines = lines_of(tmp_path, "product")
    assert [line["norm_v"] for line in lines] == pytest.approx([np.linalg.norm(flat(v)) for v in vs], rel=1e-6)
    assert [line["norm_hv"] for line in lines] == pytest.approx([np.linalg.norm(flat(p)) for p in products], rel=1e-6)
    assert [line["together"] for line in lines] == [2, 2]


def cut_off_after(count, probe, folder, monkeypatch, error=KeyboardInterrupt, **more):
    add, left = ProductLog.add, [count]

    def counted(self, vs, products, memory):
        add(self, vs, products, memory)
        left[0] -= 1
        if left[0] == 0:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(ProductLog, "add", counted)
        with pytest.raises(error):
            measured(probe, folder, **more)


def test_a_run_that_goes_on_goes_on_in_the_same_journal_behind_a_torn_line(tmp_path, monkeypatch):
    more = {"estimator.probes": 2, "estimator.steps": 3}
    cut_off_after(7, "trace", tmp_path, monkeypatch, **more)
    (file,) = tmp_path.glob(f"*/*/*.part/{JOURNAL}")
    before = read_journal(file)
    assert [line["kind"] for line in before][-1] == "ended"
    assert before[-1]["status"] == "interrupted"
    with file.open("ab") as journal:
        journal.write(b'{"kind": "prod')
    outcome = measured("trace", tmp_path, **more)
    lines = read_journal(outcome.folder / JOURNAL)
    assert lines[: len(before)] == before
    after = lines[len(before) :]
    assert (after[0]["kind"], after[0]["attempt"], after[0]["resumed"]) == ("started", 2, True)
    products = [line for line in after if line["kind"] == "product"]
    assert [line["replayed"] for line in products] == [True] * 7 + [False] * (len(products) - 7)
    assert all((line["seconds"] is None) == line["replayed"] for line in products)
    assert after[-1]["replayed"] == 7


def test_nan_is_counted_and_named_before_the_run_is_not_trusted(tmp_path, monkeypatch):
    matvecs, names = HessianOperator.matvecs, []

    def spoiled(self, vs):
        products = matvecs(self, vs)
        names[:] = self.space.names
        products[0][1].view(-1)[:3] = torch.tensor([math.nan, math.inf, -math.inf])
        return products

    calls = []
    monkeypatch.setattr(
        HessianOperator,
        "matvecs",
        lambda self, vs: (spoiled if calls.append(1) or len(calls) > 7 else matvecs)(self, vs),
    )
    outcome = measured("trace", tmp_path, **{"operator.product": "double-backward"})
    assert outcome.report.status == "untrustworthy"
    (found,) = lines_of(outcome.folder, "non_finite")
    assert (found["where"], found["nan"], found["inf"], found["parameter"]) == ("product", 1, 2, names[1])
    cost = Report.model_validate_json((outcome.folder / "report.json").read_text()).cost
    assert cost.non_finite.model_dump() == {
        "nan": 1, "inf": 2, "where": "product", "product": found["product"], "parameter": names[1]
    }  # fmt: skip
    last = lines_of(outcome.folder, "product")[-1]
    assert (last["finite"], last["norm_hv"], last["step"]) == (False, None, found["product"])
    (warning,) = [w.text for w in outcome.report.warnings if w.code == "non-finite"]
    assert warning == f"product {found['product']} holds 1 NaN and 2 Inf, the first in {names[1]}"
    kinds = [line["kind"] for line in read_journal(outcome.folder / JOURNAL)]
    assert kinds.index("non_finite") < kinds.index("ended")


def test_a_run_that_memory_ran_out_of_leaves_its_journal_and_counts_its_retreats(tmp_path, monkeypatch):
    def none(_self, _vs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(RetreatingOperator, "_products", none)
    with pytest.raises(DoesNotFitError):
        measured("trace", tmp_path, **{"operator.product": "double-backward", "data.batch_size": 4})
    (file,) = tmp_path.glob(f"*/*/*.part/{JOURNAL}")
    (ended,) = lines_of(file.parent, "ended")
    assert ended["status"] == "failed"
    assert "memory" in ended["text"]
    warned = [line for line in lines_of(file.parent, "warning") if line["code"] == "out-of-memory"]
    assert ended["retreats"] == len(warned) >= 2


def test_a_retreat_is_counted_where_the_run_went_on(tmp_path, monkeypatch):
    products, calls = RetreatingOperator._products, []

    def short_once(self, vs):
        calls.append(1)
        if len(calls) == 7:
            raise torch.OutOfMemoryError
        return products(self, vs)

    monkeypatch.setattr(RetreatingOperator, "_products", short_once)
    outcome = measured("trace", tmp_path, **{"estimator.probes": 2, "estimator.steps": 2})
    assert outcome.report.status == "ok"
    assert outcome.report.cost.retreats == 1
    assert lines_of(outcome.folder, "ended")[0]["retreats"] == 1


def test_a_run_that_is_refused_leaves_nothing(tmp_path):
    risk = risk_of(tiny_model("gpt2"), ragged_slice(), 5)
    journal = Journal(tmp_path, risk.space, run_id="0")
    with pytest.raises(UsageError), journal.open(resumed=False):
        raise UsageError("estimator.k", "too many", "lower it")
    assert not any(tmp_path.iterdir())


def test_a_disk_that_refuses_ends_the_journal_and_not_the_run(tmp_path):
    risk = risk_of(tiny_model("gpt2"), ragged_slice(), 5)
    events = []
    journal = Journal(tmp_path, risk.space, run_id="0", on_event=events.append)

    class Full:
        def write(self, _data):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    v = risk.space.random("gaussian", seed=0, index=0)
    with journal.open(resumed=False):
        journal._file.close()
        journal._file = Full()
        journal.made(Made([v], [v], 1.0))
        journal.made(Made([v], [v], 1.0))
    assert [(event.code, event.text) for event in events] == [
        ("journal", "the journal ends here: No space left on device")
    ]
    assert journal.step == 2
