"""What a plan predicts of sharded weights against what each of two processes holds, within 20 %."""

import gc
import json
import shlex

import pytest
import torch
from live_bytes import LiveBytes
from models import shared
from spawned import in_shells, on_ranks
from tiny import VOCAB, rows_of, tiny_model
from transformers import AutoModelForCausalLM, Qwen3Config

from hesscli.checkpoint.bare import experts_of, twin
from hesscli.cli.app import _exit_code
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.score_curvature import SoftmaxCurvature
from hesscli.curvature.sharded.layered import ShardedLayeredOperator
from hesscli.run.planning.counting.elsewhere import gathered_set
from hesscli.run.planning.document import Plan
from hesscli.run.planning.placements import IN_A_DIFFERENCE

# Activations weigh most in the first, weights in the second, scores by chunks of tokens in the third.
SHAPES = {"qwen3": (4, 16), "wide": (2, 24), "vocabulary": (2, 160)}


def model_of(name):
    if name == "qwen3":
        return tiny_model(name)
    torch.manual_seed(0)
    sizes = {"wide": (512, 192, 4), "vocabulary": (1 << 16, 16, 2)}
    vocab, width, layers = sizes[name]
    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=width // 2,
        tie_word_embeddings=name == "vocabulary",
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()


def batches_of(name):
    rows, length = SHAPES[name]
    ids = torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(0))
    return list(rows_of(ids).batches(rows))


def peaks(ranks):
    """By shape and product what this rank holds at its worst moment, beside its shards and the vectors given."""
    return {name: _peaks(ranks, name) for name in SHAPES}


def _peaks(ranks, name):
    risk = shared(ranks, model_of(name), batches_of(name))
    stack = risk.swept.find_stack()
    exact, half = ShardedLayeredOperator(risk, stack), ShardedLayeredOperator(risk, stack, SoftmaxCurvature())
    vs = [risk.space.random("gaussian", seed=0, index=i) for i in range(3)]
    known = [*risk.parameters, *risk.model.buffers(), *risk.swept.model.buffers(), *(part for v in vs for part in v)]
    work = {
        ("layered", 1): lambda: exact.matvec(vs[0]),
        ("layered", 3): lambda: exact.matvecs(vs),
        ("layered-ggn", 1): lambda: half.matvec(vs[0]),
        "displaced": lambda: risk.gradient_along(vs[0], 1e-3),
    }
    found = {"vector": risk.space.vector_bytes()}
    risk.gradient()  # what is made once
    exact.matvec(vs[0])
    for what, run in work.items():
        run()  # layers are gathered ahead from the second product on
        gc.collect()
        with LiveBytes(known, grows=True) as count:
            run()
        found[what] = count.peak
    return found


@pytest.fixture(scope="module")
def measured():
    return on_ranks(2, peaks)


@pytest.fixture(scope="module", params=SHAPES)
def compared(request, measured):
    """What was predicted of a shape, and what each rank held."""
    name = request.param
    model, batches = model_of(name), batches_of(name)
    bare = twin(model)
    named = dict(bare.named_parameters())
    given = {"names": list(named), "parameters": list(named.values()), "input_device": torch.device("meta")}
    risk, kinds = EmpiricalRisk(bare, batches, **given), {"layered", "layered-ggn", "finite-difference"}
    experts = experts_of(model)
    found = gathered_set(risk, num_experts=experts, kinds=kinds, vectors=3, count=2, rows=SHAPES[name][0] // 2)
    return found, [rank[name] for rank in measured]


@pytest.mark.parametrize(("kind", "together"), [("layered", 1), ("layered", 3), ("layered-ggn", 1)])
def test_the_memory_of_a_product_over_ranks_is_predicted(compared, kind, together):
    found, ranks = compared
    for held in ranks:
        predicted = found[kind, together].total + together * held["vector"]
        assert predicted == pytest.approx(held[kind, together], rel=0.2)


def test_the_memory_of_a_displaced_gradient_over_ranks_is_predicted(compared):
    found, ranks = compared
    for held in ranks:
        vectors = (IN_A_DIFFERENCE - 1) * held["vector"]  # what a difference holds beside its gradients' results
        assert found["finite-difference", 1].total - vectors == pytest.approx(held["displaced"], rel=0.2)


def test_the_command_for_two_processes_runs(tmp_path, monkeypatch, capfd):
    tiny_model("qwen3").save_pretrained(tmp_path / "a model")
    capfd.readouterr()
    given = ["plan", str(tmp_path / "a model"), "-L", "3", "--max-length", "8", "--probe", "trace", "--probes", "1"]
    code = _exit_code([*given, "--steps", "1", "--product", "layered", "--seed", "5", "--devices", "2x1MiB", "--json"])
    plan = Plan.model_validate_json(capfd.readouterr().out)
    assert code == 0
    words = shlex.split(plan.recommended.command)
    assert words[:4] == ["hess", "launch", "--nproc-per-node", "2"]
    assert words[-2:] == ["--placement", "fsdp"]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"input_ids": [3, i, 5, 7, 2, 9, 4, 1]}) + "\n" for i in (1, 8, 6))
    )
    run = [*words[4:], "-d", "rows.jsonl", "--plots", "none", "--json", "-o", str(tmp_path / "out")]
    code, out, said, _ = in_shells(tmp_path, {"run": (run, {"processes": 2})})["run"]
    assert code == 0, said
    report = json.loads(out)
    assert report["operator"]["placement"] == "fsdp"
    assert report["environment"]["processes"] == "2"
    assert report["cost"]["matvecs"] == next(w.matvecs for w in plan.ways if w.placement == "fsdp")
