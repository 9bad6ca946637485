"""What a plan predicts of layers spread over two devices, against what each of them holds, within 20 %.

Run in a process of its own by `test_second_device.py`.
"""

import gc
import weakref
from collections import Counter

import pretend
import pytest
import torch
from live_bytes import LiveBytes
from loading import LOADING
from tiny import VOCAB, rows_of
from transformers import AutoModelForCausalLM, Qwen3Config

from hesscli.checkpoint import load_checkpoint
from hesscli.checkpoint.bare import experts_of, twin
from hesscli.checkpoint.spread import spread
from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import GGNOperator
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.stack import find_stack
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.run.planning.counting.working_set import working_sets

pretend.register()
KINDS = ("graph-kept", "double-backward", "layered", "finite-difference", "jacobian")
SHAPES = {"deep": (4, 24), "tied": (2, 16)}


class OnEach(LiveBytes):
    """Live bytes on each pretended device, beside those that were there before.

    Zeros of forward mode, which take no memory on other devices, are not counted.
    """

    def __init__(self, known):
        super().__init__(known)
        self.on, self.most = Counter(), Counter()
        self._where = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is not torch.ops.aten._efficientzerotensor.default:
            return super().__torch_dispatch__(function, types, args, kwargs)
        out = function(*args, **(kwargs or {}))
        storage = out.untyped_storage()
        self._seen.add(storage._cdata)
        weakref.finalize(storage, self._seen.discard, storage._cdata)
        return out

    def note(self, tensor):
        key = tensor.untyped_storage()._cdata
        if key not in self._seen:
            self._where[key] = tensor.device.index or 0
        super().note(tensor)

    def _add(self, size, mapped):
        super()._add(size, mapped)
        if size > 0:
            device = next(reversed(self._where.values()))
            self.on[device] += size
            self.most[device] = max(self.most[device], self.on[device])

    def _release(self, key, size, mapped):
        super()._release(key, size, mapped)
        self.on[self._where.pop(key)] -= size


def model_of(name):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB if name == "deep" else 256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4 if name == "deep" else 3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        hidden_act="gelu_pytorch_tanh",  # the derivative of SiLU is one operation elsewhere, and six here
        tie_word_embeddings=name == "tied",
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def risk_over(model, batches, device):
    named = dict(model.named_parameters())
    given = {"names": list(named), "parameters": list(named.values()), "input_device": device}
    return EmpiricalRisk(model, batches, **given)


@pytest.fixture(scope="module", params=SHAPES)
def compared(request, tmp_path_factory):
    """The risk over two devices, the devices of the plan, and what it counts of each."""
    name, folder = request.param, tmp_path_factory.mktemp("spread")
    rows, length = SHAPES[name]
    ids = torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(0))
    batches, model = list(rows_of(ids).batches(rows)), model_of(name)
    model.save_pretrained(folder)
    bare = twin(model)
    homes = spread(bare, count=2)
    shadow = risk_over(bare, batches, torch.device("meta"))
    found = working_sets(shadow, homes, num_experts=experts_of(model), kinds=KINDS, vectors=3)
    places = {
        name: homes.parameters[f"{name}.weight"] for name in homes.outside if f"{name}.weight" in homes.parameters
    }
    layers = {f"{_list(bare)}.{i}": home for i, home in enumerate(homes.layers)}
    buffers = {name: home for name, home in homes.outside.items() if name not in places}
    device_map = {part: f"pretend:{home}" for part, home in (places | buffers | layers).items()}
    loaded = load_checkpoint(str(folder), device_map=device_map, offload_dir=None, **LOADING)
    return risk_over(loaded.model, batches, loaded.input_device), homes, found


def _list(model):
    return next(name for name, part in model.named_modules() if isinstance(part, torch.nn.ModuleList))


def work_of(risk, kind, vs):
    if kind == "layered":
        operator = LayeredOperator(risk, find_stack(risk.first_row(most=32)))
        return lambda: operator.matvecs(vs)
    made = {
        "graph-kept": lambda: HessianOperator(risk, keep_graph=True),
        "double-backward": lambda: HessianOperator(risk, keep_graph=False),
        "finite-difference": lambda: FiniteDifferenceOperator(risk, scheme="central"),
        "jacobian": lambda: GGNOperator(risk),
    }[kind]
    return lambda: made().matvec(vs[0])


@pytest.mark.parametrize(("kind", "together"), [*((kind, 1) for kind in KINDS), ("layered", 3)])
def test_the_memory_of_each_device_is_predicted(compared, kind, together):
    risk, homes, found = compared
    vs = [risk.space.random("gaussian", seed=0, index=i) for i in range(together)]
    risk.loss()
    run = work_of(risk, kind, vs)
    gc.collect()
    known = [*risk.model.parameters(), *risk.model.buffers(), *(part for v in vs for part in v)]
    with OnEach(known) as count:
        run()
    for device in range(2):
        result = sum(4 * n for n, d in zip(risk.space.numels, risk.space.devices, strict=True) if d.index == device)
        held = found[device].held[kind]
        predicted = held.own + held.further * (together - 1) + together * result
        assert predicted == pytest.approx(count.most[device], rel=0.2), device
    assert set(homes.layers) == {0, 1}
