"""The trainer's callback: what it logs is what `hess` measures, and training does not notice it."""

import json
from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from hesscli.callback import HessianCallback
from hesscli.demo import checkpoint_folder, slice_file
from hesscli.errors import UsageError
from hesscli.events import ignore
from hesscli.recipe.document import resolve
from hesscli.run.session import run

LENGTH = 32
SMALL = {"data.limit": 4, "estimator.k": 1, "estimator.steps": 12, "estimator.which": "largest", "output.plots": []}


@pytest.fixture(scope="module", autouse=True)
def small(small_demo_folder):
    """The stand-in for the demo, for training and all fixtures of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hesscli.demo._FOLDER", small_demo_folder)
        yield


@cache
def tokens():
    """The demo's text, packed into rows."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_folder("step50"))
    texts = [json.loads(line)["text"] for line in slice_file().read_text(encoding="utf-8").splitlines()[:40]]
    ids = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    return torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)


def rows():
    return [{"input_ids": row, "labels": row} for row in tokens()]


def model():
    """A model of the demo's kind, with dropout on."""
    return AutoModelForCausalLM.from_pretrained(checkpoint_folder("step50"), attention_dropout=0.2)


def trained(folder, *callbacks, **arguments):
    settings = TrainingArguments(
        str(folder / "out"),
        max_steps=12,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=1,
        save_strategy="steps",
        save_steps=4,
        learning_rate=1e-3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=3,
        **arguments,
    )
    trainer = Trainer(model(), settings, train_dataset=rows(), callbacks=list(callbacks))
    trainer.train()
    return trainer


def losses(trainer):
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def figures(trainer):
    return {log["step"]: log for log in trainer.state.log_history if "hess/trustworthy" in log}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    watched = tmp_path_factory.mktemp("watched")
    callback = HessianCallback(every=4, at_start=True, recipe=SMALL)
    return trained(tmp_path_factory.mktemp("plain")), trained(watched, callback), watched / "out"


def test_the_loss_curve_is_the_same_bit_for_bit(both):
    plain, watched, _ = both
    assert len(losses(plain)) == 12
    assert losses(watched) == losses(plain)


def test_weights_and_optimiser_end_the_same_bit_for_bit(both):
    plain, watched, _ = both
    for a, b in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(a, b)
    one, other = (t.optimizer.state_dict()["state"] for t in (plain, watched))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[i][k], other[i][k]) for i in one for k in one[i])
    assert watched.model.training == plain.model.training


def test_it_logs_at_its_steps_only(both):
    _, watched, _ = both
    assert list(figures(watched)) == [0, 4, 8, 12]


def test_what_is_logged_is_what_hess_measures_on_the_checkpoint_of_that_step(both, tmp_path):
    _, watched, out = both
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({k: v.tolist() for k, v in row.items()}) + "\n" for row in rows()))
    values = {"probe": "topk", "model.id": str(out / "checkpoint-8"), "data.id": str(data), "output.dir": str(tmp_path)}
    report = run(resolve([("test", SMALL | values)])[0], force=False, resume=False, on_event=ignore).report
    found, expected = figures(watched)[8], report.metrics["lambda_max"]
    assert found["hess/lambda_max"] == expected.value
    assert (found["hess/lambda_max_low"], found["hess/lambda_max_high"]) == expected.ci
    assert figures(watched)[4]["hess/lambda_max"] != expected.value


def test_each_step_leaves_a_run_folder(both):
    _, _, out = both
    assert len(list((out / "hess").glob("*/*/topk-*/report.json"))) == 4


def test_a_measurement_that_fails_warns_and_training_goes_on(tmp_path):
    callback = HessianCallback(every=6, dataset="nowhere.jsonl", recipe=SMALL)
    with pytest.warns(UserWarning, match="hess: step 6: .*nowhere"):
        assert len(losses(trained(tmp_path, callback))) == 12


def test_a_measurement_that_fails_ends_training_where_that_is_asked_for(tmp_path):
    callback = HessianCallback(every=6, dataset="nowhere.jsonl", recipe=SMALL, on_error="raise")
    with pytest.raises(UsageError, match="nowhere"):
        trained(tmp_path, callback)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"every": 0}, "every: 0"),
        ({"every": 5, "probe": "topkk"}, "probe: 'topkk' is not allowed"),
        ({"every": 5, "recipe": {"data.limt": 3}}, "did you mean data.limit"),
        ({"every": 5, "recipe": {"model.id": "demo"}}, "model.id"),
    ],
)
def test_faults_are_told_before_training(arguments, words):
    with pytest.raises(UsageError, match=words):
        HessianCallback(**arguments)
