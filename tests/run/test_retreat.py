"""Memory that runs out in the middle of a run: the run goes on with less, and its answer stays."""

import json

import numpy as np
import pytest
import torch
from tiny import flat, ragged_slice, risk_of, tiny_model

from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import GGNOperator, OuterProductOperator
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.stack import find_stack
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.distributed import Ranks
from hesscli.errors import DoesNotFitError
from hesscli.events import Warned
from hesscli.recipe.document import resolve
from hesscli.run.faults import is_out_of_memory
from hesscli.run.retreat import RetreatingOperator
from hesscli.run.session import run
from hesscli.run.storage.product_log import ProductLog

pytestmark = pytest.mark.usefixtures("small_demo")
WORDS = "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 B"
SMALL = {"model.id": "demo", "data.limit": 8, "data.max_length": 16, "data.batch_size": 4, "output.plots": "none"}


def recipe(probe, folder="outputs", **more):
    values = {"probe": probe, "output.dir": str(folder), **SMALL, "operator.params": ["*layers.0*"], **more}
    return resolve([("test", values)])[0]


def retreating(operator, risk, events, **more):
    return RetreatingOperator(operator, risk, recipe=recipe("trace", **more), on_event=events.append)


def fails_above(monkeypatch, owner, rows, error=torch.OutOfMemoryError):
    """Products of this operator run out of memory in batches of more rows."""
    matvecs = owner.matvecs

    def limited(self, vs):
        if max(len(b.targets) for b in self.risk.batches) > rows:
            held = torch.zeros(1 << 16)  # what a failed product leaves behind in its frames
            raise error(WORDS) if held is not None else None
        return matvecs(self, vs)

    monkeypatch.setattr(owner, "matvecs", limited)


def fails_always(monkeypatch, owner):
    fails_above(monkeypatch, owner, rows=0)


def texts(events):
    return [event.text for event in events if isinstance(event, Warned) and event.code == "out-of-memory"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_batches_are_halved_until_the_same_product_fits(monkeypatch, error):
    risk = risk_of(tiny_model("qwen3"), ragged_slice(), 5)
    v = risk.space.random("gaussian", seed=0, index=0)
    truth = flat(HessianOperator(risk, keep_graph=False).matvec(v))
    fails_above(monkeypatch, HessianOperator, 1, error)
    events = []
    product = flat(retreating(HessianOperator(risk, keep_graph=False), risk, events).matvec(v))
    assert np.linalg.norm(product - truth) < 1e-5 * np.linalg.norm(truth)
    assert [text.split(": ")[1] for text in texts(events)] == [
        "batches have 2 rows from here on",
        "batches have 1 row from here on",
    ]
    assert [len(b.targets) for b in risk.batches] == [1] * 5


def test_a_graph_that_was_kept_is_given_up_before_rows_are(monkeypatch):
    risk = risk_of(tiny_model("qwen3"), ragged_slice(), 5)
    v = risk.space.random("gaussian", seed=0, index=0)
    truth = flat(HessianOperator(risk, keep_graph=False).matvec(v))
    matvecs = HessianOperator.matvecs

    def limited(self, vs):
        if self.keep_graph:
            raise torch.OutOfMemoryError
        return matvecs(self, vs)

    monkeypatch.setattr(HessianOperator, "matvecs", limited)
    events = []
    product = flat(retreating(HessianOperator(risk, keep_graph=True), risk, events).matvec(v))
    assert np.linalg.norm(product - truth) < 1e-5 * np.linalg.norm(truth)
    assert texts(events) == ["memory ran out: the graph is made again for each product"]
    assert len(risk.batches) == 1


def test_at_one_row_the_product_becomes_layered_with_batches_as_they_were(monkeypatch):
    risk = risk_of(tiny_model("qwen3"), ragged_slice(), 5)
    v = risk.space.random("gaussian", seed=0, index=0)
    truth = flat(HessianOperator(risk, keep_graph=False).matvec(v))
    events = []
    operator = retreating(HessianOperator(risk, keep_graph=False), risk, events)
    fails = [0]
    original = HessianOperator.matvecs

    def limited(self, vs):  # on the slice, not on the short row that a structure is found on
        if sum(len(b.targets) for b in self.risk.batches) > 1:
            fails[0] += 1
            raise torch.OutOfMemoryError
        return original(self, vs)

    monkeypatch.setattr(HessianOperator, "matvecs", limited)
    product = flat(operator.matvec(v))
    assert operator.is_layered
    assert fails[0] == 3
    assert len(risk.batches) == 1
    assert np.linalg.norm(product - truth) < 1e-5 * np.linalg.norm(truth)


def test_a_gauss_newton_product_becomes_layered_too(monkeypatch):
    risk = risk_of(tiny_model("qwen3"), ragged_slice(), 1)
    v = risk.space.random("gaussian", seed=0, index=0)
    truth = flat(GGNOperator(risk).matvec(v))
    original = OuterProductOperator.matvecs

    def limited(self, vs):
        if sum(len(b.targets) for b in self.risk.batches) > 1:
            raise torch.OutOfMemoryError
        return original(self, vs)

    operator = retreating(GGNOperator(risk), risk, [], **{"operator.kind": "ggn"})
    monkeypatch.setattr(OuterProductOperator, "matvecs", limited)
    product = flat(operator.matvec(v))
    assert operator.is_layered
    assert np.linalg.norm(product - truth) < 1e-5 * np.linalg.norm(truth)


def test_a_layered_product_takes_fewer_vectors_at_once(monkeypatch):
    risk = risk_of(tiny_model("qwen3"), ragged_slice(), 1)
    vs = [risk.space.random("gaussian", seed=0, index=i) for i in range(5)]
    operator = LayeredOperator(risk, find_stack(risk.first_row()))
    truth = [flat(p) for p in operator.matvecs(vs)]
    original = LayeredOperator.matvecs

    def limited(self, vs):
        if len(vs) > 1:
            raise torch.OutOfMemoryError
        return original(self, vs)

    monkeypatch.setattr(LayeredOperator, "matvecs", limited)
    events = []
    products = retreating(operator, risk, events).matvecs(vs)
    for product, exact in zip(products, truth, strict=True):
        assert np.linalg.norm(flat(product) - exact) < 1e-5 * np.linalg.norm(exact)
    assert len(texts(events)) == 2


def test_differences_are_never_taken_and_what_is_asked_for_is_kept(monkeypatch):
    risk = risk_of(tiny_model("qwen3"), ragged_slice(), 1)
    v = risk.space.random("gaussian", seed=0, index=0)
    for owner in (HessianOperator, LayeredOperator):
        fails_always(monkeypatch, owner)
    asked = {"operator.product": "double-backward"}
    for operator, more in (
        (HessianOperator(risk, keep_graph=False), asked),
        (LayeredOperator(risk, find_stack(risk.first_row())), {}),
    ):
        patient = retreating(operator, risk, [], **more)
        with pytest.raises(DoesNotFitError, match="nothing is left to give up"):
            patient.matvec(v)
        assert not isinstance(patient._operator, FiniteDifferenceOperator)


def test_what_a_failed_product_held_is_gone_before_the_next_try(monkeypatch):
    risk = risk_of(tiny_model("qwen3"), ragged_slice(), 5)
    alive = []

    class Marker:
        def __init__(self):
            alive.append(self.__class__)

        def __del__(self):
            alive.pop()

    original = HessianOperator.matvecs

    def limited(self, vs):
        assert not alive
        if max(len(b.targets) for b in self.risk.batches) > 1:
            held = Marker()
            raise torch.OutOfMemoryError from ValueError(id(held))
        return original(self, vs)

    monkeypatch.setattr(HessianOperator, "matvecs", limited)
    retreating(HessianOperator(risk, keep_graph=False), risk, []).matvec(risk.space.zeros())


def test_other_errors_pass():
    assert is_out_of_memory(RuntimeError(WORDS))
    assert not is_out_of_memory(RuntimeError("derivative for aten::x is not implemented"))
    assert not is_out_of_memory(ValueError(WORDS))
    risk = risk_of(tiny_model("qwen3"), ragged_slice(), 5)
    with pytest.raises(RuntimeError, match="shapes"):
        retreating(HessianOperator(risk, keep_graph=False), risk, []).patiently(wrong)
    assert len(risk.batches) == 1


def wrong():
    raise RuntimeError("shapes do not match")


def measured(probe, folder, events=None, *, resume=False, **more):
    heard = [] if events is None else events
    return run(recipe(probe, folder, **more), force=False, resume=resume, on_event=heard.append)


def figures(report):
    return {
        name: (metric["value"], metric["ci"], metric["errors"]["data"]) for name, metric in report["metrics"].items()
    }


def read(outcome):
    return json.loads((outcome.folder / "report.json").read_text())


@pytest.mark.parametrize(
    ("probe", "more"),
    [
        ("topk", {"estimator.k": 2, "estimator.steps": 30}),
        ("trace", {"estimator.probes": 4, "estimator.steps": 4, "data.limit": 32}),  # groups of two rows
        ("density", {"estimator.probes": 2, "estimator.steps": 6}),
    ],
)
def test_a_run_that_ran_out_of_memory_gives_the_same_report(probe, more, tmp_path, monkeypatch):
    whole = read(measured(probe, tmp_path / "whole", **more))
    gradient = EmpiricalRisk.gradient

    def limited(self):
        if max(len(b.targets) for b in self.batches) > 2:
            raise MemoryError
        return gradient(self)

    monkeypatch.setattr(EmpiricalRisk, "gradient", limited)
    fails_above(monkeypatch, HessianOperator, 1)
    events = []
    short = read(measured(probe, tmp_path / "short", events, **more))
    assert (whole["operator"]["batch_size"], short["operator"]["batch_size"]) == (4, 1)
    assert [w["code"] for w in short["warnings"]].count("out-of-memory") == len(texts(events)) >= 3
    assert short["status"] == whole["status"]
    for name, (value, ci, data) in figures(whole).items():
        found = figures(short)[name]
        assert short["metrics"][name]["n"] == whole["metrics"][name]["n"]
        for one, other in ((value, found[0]), (data, found[2]), *zip(ci or (), found[1] or (), strict=True)):
            if one is not None:
                assert other == pytest.approx(one, rel=2e-3, abs=1e-5), name


def test_a_run_that_goes_on_takes_the_steps_that_were_taken_before(tmp_path, monkeypatch):
    more = {"estimator.k": 2, "estimator.steps": 12}
    with monkeypatch.context() as patch:
        fails_above(patch, HessianOperator, 2)
        whole = read(measured("topk", tmp_path / "whole", resume=True, **more))
    add, left = ProductLog.add, [8]

    def counted(self, vs, products, memory):
        add(self, vs, products, memory)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProductLog, "add", counted)
        fails_above(patch, HessianOperator, 2)
        with pytest.raises(KeyboardInterrupt):
            measured("topk", tmp_path / "cut", resume=True, **more)
    again = read(measured("topk", tmp_path / "cut", resume=True, **more))  # with memory enough
    assert again["metrics"] == whole["metrics"]
    assert again["operator"]["batch_size"] == whole["operator"]["batch_size"] == 2
    assert [w["code"] for w in again["warnings"]] == [w["code"] for w in whole["warnings"]]


@pytest.mark.parametrize(("size", "remedy"), [(2, "add --batch-size 2: products so far are kept"), (5, "lower --max-")])
def test_over_processes_it_ends_with_the_rows_to_go_on_with(monkeypatch, size, remedy):
    risk = risk_of(tiny_model("qwen3"), ragged_slice(), 5)
    monkeypatch.setattr("hesscli.run.retreat.ranks", lambda: Ranks(0, size, None))
    fails_above(monkeypatch, HessianOperator, 4)
    operator = retreating(HessianOperator(risk, keep_graph=False), risk, [])
    with pytest.raises(DoesNotFitError, match=f"the product does not fit.*; {remedy}"):
        operator.matvec(risk.space.random("gaussian", seed=0, index=0))


def test_a_run_goes_on_from_its_products_with_fewer_rows_a_batch(tmp_path, monkeypatch):
    add, left = ProductLog.add, [3]

    def some(self, *given):
        add(self, *given)
        left[0] -= 1
        if left[0] == 0:
            raise MemoryError

    with monkeypatch.context() as cut:
        cut.setattr(ProductLog, "add", some)
        with pytest.raises(DoesNotFitError):
            run(recipe("topk", tmp_path), force=False, resume=True, on_event=lambda _event: None)
    ended = run(recipe("topk", tmp_path, **{"data.batch_size": 2}), force=False, resume=True, on_event=lambda _: None)
    lines = [json.loads(line) for line in (ended.folder / "journal.jsonl").open()]
    assert [line["resumed"] for line in lines if line["kind"] == "started"] == [False, True]
    assert sum(line.get("replayed") is True for line in lines if line["kind"] == "product") == 3
