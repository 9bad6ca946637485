"""What a plan predicts of layers that are fetched, against what a run holds: in memory and in files apart."""

import gc

import pytest
import torch
from live_bytes import LiveBytes
from loading import LOADING
from test_plan_memory import SHAPES, full_slice, model_of
from tiny import risk_of

from hesscli.checkpoint import load_checkpoint
from hesscli.checkpoint.bare import experts_of, twin
from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.layers.offloaded import Offloaded
from hesscli.curvature.layers.stack import find_stack
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.score_curvature import SoftmaxCurvature
from hesscli.run.planning.counting import elsewhere
from hesscli.run.planning.counting.elsewhere import fetched_set
from hesscli.run.planning.counting.sites import Sites
from hesscli.run.planning.placements import IN_A_DIFFERENCE

IN_FILES = LOADING | {"device_map": {"": "disk"}}

KINDS = {"layered", "layered-ggn", "finite-difference"}


class Fetched:
    """A risk whose layers and vectors lie in files, and a count of what it holds."""

    def __init__(self, name, folder):
        model, vocab = model_of(name)
        rows, length = SHAPES[name]
        batches = list(full_slice(rows, length, vocab).batches(rows))
        model.save_pretrained(folder / "model")
        self._loaded = load_checkpoint(str(folder / "model"), **IN_FILES, offload_dir=str(folder / "off"))
        net, self._count = self._loaded.model, None
        named = dict(net.named_parameters())
        given = {"names": list(named), "parameters": list(named.values())}
        reads = {own: self._noted(read) for own, read in self._loaded.reads.items()}
        residence = Offloaded(net, reads, **given, folder=self._loaded.offload_folder)
        self.risk = LayeredRisk(net, batches, **given, input_device=torch.device("cpu"), residence=residence)
        self.stack = find_stack(self.risk.first_row(most=32))
        self.risk.gradient()  # what is read ahead is known from then on
        bare = twin(model)
        chosen = dict(bare.named_parameters())
        meta = {"names": list(chosen), "parameters": list(chosen.values()), "input_device": torch.device("meta")}
        shadow = EmpiricalRisk(bare, batches, **meta)
        self.found = fetched_set(shadow, num_experts=experts_of(model), kinds=KINDS, vectors=3, in_files=True)

    def _noted(self, read):
        """The count does not see the thread that reads ahead."""

        def noted():
            weight = read()
            if self._count is not None:
                self._count.note(weight)
            return weight

        return noted

    def in_a_file(self):
        """Bytes of a vector's file: its parts start at multiples of 64."""
        return self.held(self.risk.space.zeros).mapped_peak

    def held(self, work):
        gc.collect()
        self._count = LiveBytes([*self.risk.model.parameters(), *self.risk.model.buffers()])
        with self._count as count:
            work()
        self._count = None
        return count


@pytest.fixture(scope="module", params=["qwen3", "8m", "gpt2", "mixtral"])
def fetched(request, tmp_path_factory):
    return Fetched(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("kind", ["layered", "layered-ggn"])
@pytest.mark.parametrize("together", [1, 3])
def test_the_memory_of_a_product_with_fetched_layers_is_predicted(fetched, kind, together):
    vs = [fetched.risk.space.random("gaussian", seed=0, index=i) for i in range(together)]
    curvature = SoftmaxCurvature() if kind == "layered-ggn" else None
    operator = LayeredOperator(fetched.risk, fetched.stack, curvature)
    count = fetched.held(lambda: operator.matvecs(vs))
    assert fetched.found[kind, together].total == pytest.approx(count.peak, rel=0.2)
    assert count.mapped_peak == pytest.approx(2 * together * fetched.in_a_file(), rel=0.2)


def test_the_memory_of_differences_with_fetched_layers_is_predicted(fetched):
    v = fetched.risk.space.random("gaussian", seed=0, index=0)
    operator = FiniteDifferenceOperator(fetched.risk, scheme="central")
    count = fetched.held(lambda: operator.matvec(v))
    assert fetched.found["finite-difference", 1].total == pytest.approx(count.peak, rel=0.2)
    assert count.mapped_peak == pytest.approx((2 + IN_A_DIFFERENCE) * fetched.in_a_file(), rel=0.2)


def test_fetched_layers_and_parts_of_vectors_are_counted_apart(fetched):
    layer = max(sum(p.nbytes for p in m.parameters()) for m in fetched.stack.layers)
    one, three = (fetched.found["layered", k] for k in (1, 3))
    assert 0 < one.weights <= 2 * layer
    assert three.vectors == pytest.approx(one.vectors, rel=0.05)  # they come one after the other


def test_a_deep_model_is_counted_with_fewer_layers(monkeypatch):
    model, vocab = model_of("8m")
    values = {k: v for k, v in model.config.to_dict().items() if k != "layer_types"}
    deep = type(model)(type(model.config)(**values | {"num_hidden_layers": 12})).eval()
    risk = risk_of(deep, full_slice(1, 64, vocab), 1)
    bare = twin(deep)
    named = dict(bare.named_parameters())
    given = {"names": list(named), "parameters": list(named.values()), "input_device": torch.device("meta")}
    shadow = EmpiricalRisk(bare, risk.batches, **given)
    options = {"num_experts": 1, "kinds": {"layered", "finite-difference"}, "vectors": 2, "in_files": False}
    few = fetched_set(shadow, **options)
    monkeypatch.setattr(elsewhere, "Sites", lambda *given, **named: Sites(*given, **named | {"ends": 0}))
    whole = fetched_set(shadow, **options)
    assert few.keys() == whole.keys()
    assert all(few[key].total == pytest.approx(whole[key].total, rel=0.01) for key in whole)
