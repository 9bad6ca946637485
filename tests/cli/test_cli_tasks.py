"""Every task of a checkpoint: its loss against transformers' own, row by row; its products; its runs."""

import json

import heads
import numpy as np
import pytest
import torch
from task_cases import CASES, PICTURES
from tiny import flat

from hesscli.curvature.choice import choose_operator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.events import ignore
from hesscli.recipe.document import resolve
from hesscli.run.setup import build_subject


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder for each case: `model`, and `rows.jsonl` or class folders of images in `pictures`."""
    made = {}

    def prepare(case):
        if case not in made:
            name, _, rows, _, _ = CASES[case]
            folder = tmp_path_factory.mktemp("task")
            heads.save(name, folder / "model")
            if rows is None:
                PICTURES.update(heads.save_images(folder / "pictures"))
            else:
                heads.write(folder / "rows.jsonl", rows)
            made[case] = folder
        return made[case]

    return prepare


def data_of(folder):
    return folder / ("pictures" if (folder / "pictures").exists() else "rows.jsonl")


def subject_of(folder, values):
    given = {"probe": "trace", "model.id": str(folder / "model"), "data.id": str(data_of(folder)), **values}
    return build_subject(resolve([("test", given)])[0], on_event=ignore)


def own_loss(rows):
    """The mean over terms of transformers' own losses, each a mean over the terms of one row."""
    parts = [(model(**inputs).loss, terms) for model, inputs, terms in rows]
    return sum(loss * terms for loss, terms in parts) / sum(terms for _, terms in parts)


@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_that_of_transformers_row_by_row(case, prepared):
    folder, (_, task, _, values, rows) = prepared(case), CASES[case]
    subject = subject_of(folder, values)
    assert subject.checkpoint.identity.task == task
    truth = own_loss(rows(subject.checkpoint.model, folder)).item()
    assert subject.risk.loss().value == pytest.approx(truth, rel=2e-6)
    assert subject.risk.num_terms == sum(terms for _, _, terms in rows(subject.checkpoint.model, folder))


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_and_a_product_are_those_of_rows_alone(case, prepared):
    folder, (_, _, _, values, rows) = prepared(case), CASES[case]
    subject = subject_of(folder, values)
    model, risk = subject.checkpoint.model, subject.risk
    v = risk.space.random("gaussian", seed=1, index=0)
    gradient = torch.autograd.grad(own_loss(rows(model, folder)), risk.parameters, create_graph=True, allow_unused=True)
    inner = sum((g * p).sum() for g, p in zip(gradient, v, strict=True) if g is not None)
    truth = torch.autograd.grad(inner, risk.parameters, allow_unused=True)
    layered = choose_operator(risk, kind="hessian", product="layered", seed=0)
    assert layered.product == "layered", layered.why
    products = (HessianOperator(risk, keep_graph=False).matvec(v), layered.operator.matvec(v))
    for found, expected in ((risk.gradient(), gradient), *((product, truth) for product in products)):
        whole = flat([torch.zeros_like(f) if e is None else e for f, e in zip(found, expected, strict=True)])
        assert np.linalg.norm(flat(found) - whole) < 2e-5 * np.linalg.norm(whole)


@pytest.mark.parametrize("case", CASES)
def test_the_batch_size_changes_no_loss_and_no_product(case, prepared):
    folder, values = prepared(case), CASES[case][3]
    whole = subject_of(folder, values)
    alone = subject_of(folder, {**values, "data.batch_size": 1})
    assert alone.batch_size == 1
    assert whole.batch_size == (1 if "without a pad token" in case else len(whole.data.sequences))
    assert whole.risk.loss().value == pytest.approx(alone.risk.loss().value, rel=2e-6)
    v = whole.risk.space.random("gaussian", seed=1, index=0)
    first, second = (flat(HessianOperator(s.risk, keep_graph=False).matvec(v)) for s in (whole, alone))
    assert np.linalg.norm(first - second) < 2e-5 * np.linalg.norm(second)


TYPED = {
    "data.pack": "--no-pack",
    "data.mask_prompt": "--mask-prompt prompt",
    "data.target_column": "--target-column short",
}


@pytest.mark.parametrize("case", CASES)
def test_the_trace_of_each_task_is_measured_from_the_command_line(case, prepared, hess):
    folder, (_, task, _, values, _) = prepared(case), CASES[case]
    typed = [word for key in values for word in TYPED[key].split()]
    typed += ["--task", task] if list(CASES).index(case) % 2 else []  # else by the checkpoint's head
    typed += ["--plots", "none", "--probes", "2", "--steps", "2", "--json"]
    ended = hess("trace", folder / "model", "-d", data_of(folder), *typed)
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    subject = subject_of(folder, values)
    assert report["model"]["task"] == task
    assert report["loss"]["value"] == pytest.approx(subject.risk.loss().value, rel=1e-6)
    assert report["data"]["sequences"] == len(subject.data.sequences)
    assert report["data"]["fingerprint"] == subject.data.fingerprint
    assert report["metrics"]["trace"]["value"] is not None


def test_images_are_called_images_and_never_tokens(prepared, hess):
    folder = prepared("images, ViT")
    ended = hess("trace", folder / "model", "-d", data_of(folder), *["--plots", "svg", "--probes", "2", "--steps", "2"])
    assert "pictures (train): 6 images, 6 loss terms; loss" in ended.out
    assert "token" not in ended.out
    assert ended.code == 0


def test_settings_beside_the_weights_make_another_run(prepared, hess):
    """The pad token of a classifier decides where it reads its answer: the same weights, another figure."""
    bare = prepared("classes, GPT-2 without a pad token")
    padded = prepared("classes, GPT-2 padded with the end of text")
    small = ["--plots", "none", "--probes", "2", "--steps", "2", "--json"]
    first, second = (json.loads(hess("trace", f / "model", "-d", data_of(f), *small).out) for f in (bare, padded))
    assert first["model"]["weights_sha256"] == second["model"]["weights_sha256"]
    assert first["run_id"] != second["run_id"]
    assert abs(first["loss"]["value"] - second["loss"]["value"]) > 1e-3
