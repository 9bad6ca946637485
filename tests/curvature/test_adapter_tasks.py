"""Adapters of every task: loss, gradient and products are those of PEFT's own model, row by row."""

import heads
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from task_cases import CASES, PICTURES
from tiny import flat

from hesscli.curvature.choice import choose_operator
from hesscli.events import ignore
from hesscli.recipe.document import resolve
from hesscli.run.setup import build_subject

ADAPTERS = {
    "causal-lm with a prompt": LoraConfig(target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
    "masked-lm": LoraConfig(target_modules=["query", "value"], bias="all"),
    "seq2seq-lm, T5": LoraConfig(target_modules=["q", "v", "wo"], task_type="SEQ_2_SEQ_LM"),
    "seq2seq-lm, BART": LoraConfig(target_modules=["shared", "k_proj", "fc2"], task_type="SEQ_2_SEQ_LM"),
    "classes, BERT": LoraConfig(target_modules=["query", "value"], task_type="SEQ_CLS"),  # which trains the head too
    "classes, Llama": LoraConfig(target_modules="all-linear", task_type="SEQ_CLS"),
    "images, ViT": LoraConfig(target_modules="all-linear", modules_to_save=["classifier"]),
}


def save_case(case, folder):
    """The base in `model`, a random adapter in `adapter`, and the rows; PEFT's own model of both."""
    name, _, rows, _, _ = CASES[case]
    heads.save(name, folder / "model")
    if rows is None:
        PICTURES.update(heads.save_images(folder / "pictures"))
    else:
        heads.write(folder / "rows.jsonl", rows)
    torch.manual_seed(5)
    config = ADAPTERS[case]
    config.r, config.lora_alpha, config.base_model_name_or_path = 2, 4, str(folder / "model")
    model = get_peft_model(type_of(case).from_pretrained(folder / "model"), config)
    for p in (p for p in model.parameters() if p.requires_grad):
        torch.nn.init.normal_(p, std=0.3)
    model.save_pretrained(folder / "adapter")
    base = type_of(case).from_pretrained(folder / "model", attn_implementation="eager")
    return PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True).eval()


def type_of(case):
    return type(heads.MAKERS[CASES[case][0]]())


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_is_measured_on_its_task_as_its_trainer_has_it(case, tmp_path):
    theirs = save_case(case, tmp_path)
    _, _, rows, values, rows_of = CASES[case]
    given = {"probe": "trace", "model.id": str(tmp_path / "adapter"), **values}
    given["data.id"] = str(tmp_path / ("pictures" if rows is None else "rows.jsonl"))
    risk = build_subject(resolve([("test", given)])[0], on_event=ignore).risk

    trained = {n.removeprefix("base_model.model."): p for n, p in theirs.named_parameters() if p.requires_grad}
    assert set(risk.space.names) == set(trained)
    parameters = [trained[name] for name in risk.space.names]
    parts = [(theirs(**inputs).loss, terms) for _, inputs, terms in rows_of(theirs, tmp_path)]
    loss = sum(loss * terms for loss, terms in parts) / sum(terms for _, terms in parts)
    assert risk.loss().value == pytest.approx(loss.item(), rel=2e-6)

    v = risk.space.random("gaussian", seed=1, index=0)
    gradient = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    inner = sum((g * p).sum() for g, p in zip(gradient, v, strict=True) if g is not None)
    product = torch.autograd.grad(inner, parameters, allow_unused=True)
    gradient, product = (
        flat([torch.zeros_like(p) if part is None else part for part, p in zip(parts, parameters, strict=True)])
        for parts in (gradient, product)
    )
    assert np.linalg.norm(flat(risk.gradient()) - gradient) < 2e-5 * np.linalg.norm(gradient)
    for kind in ("double-backward", "layered"):
        choice = choose_operator(risk, kind="hessian", product=kind, seed=0)
        assert choice.product == kind, choice.why
        assert np.linalg.norm(flat(choice.operator.matvec(v)) - product) < 2e-5 * np.linalg.norm(product)
