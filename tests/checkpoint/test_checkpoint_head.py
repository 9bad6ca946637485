# ruff: noqa: E501 - tables of cases, one a line
"""Adapters that bring a head or embeddings of their own: the model that their trainer has, or a refusal in one line."""

import json
import shutil

import heads
import numpy as np
import pytest
import torch
from adapters import WEIGHTS, edit, restore
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from task_cases import TEXTS, causal, framed
from tiny import flat
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertModel,
    ViTModel,
)

from hesscli.checkpoint.bare import bare_model, twin
from hesscli.curvature.choice import choose_operator
from hesscli.errors import HessError, UnavailableError
from hesscli.events import ignore
from hesscli.recipe.document import resolve
from hesscli.run.setup import build_subject

CLASSES = [4, 1, 2, 4]
TEXT, IMAGES = AutoModelForSequenceClassification, AutoModelForImageClassification
BERT = {"target_modules": ["query"], "r": 1}
# The base, what is left of it, the class that the adapter was trained with, its settings.
CASES = {
    "BERT": ("bert-mlm", BertModel, TEXT, {**BERT, "task_type": "SEQ_CLS", "bias": "lora_only"}),
    "BERT, and its pooler": ("bert-mlm", None, TEXT, {**BERT, "task_type": "SEQ_CLS", "modules_to_save": ["pooler"]}),
    "a head of two layers": ("roberta-mlm", None, TEXT, {**BERT, "task_type": "SEQ_CLS"}),
    "Llama": ("causal", None, TEXT, {"target_modules": "all-linear", "task_type": "SEQ_CLS", "r": 1}),
    "other classes": ("llama-cls", None, TEXT, {"target_modules": ["q_proj"], "task_type": "SEQ_CLS", "r": 1}),
    "told by its class": ("gpt2-cls", None, TEXT, {"target_modules": ["c_attn"], "modules_to_save": ["score"], "r": 1}),
    "images": ("vit", ViTModel, IMAGES, {"target_modules": ["q_proj"], "modules_to_save": ["classifier"], "r": 1}),
    "images of other classes": (
        "vit",
        None,
        IMAGES,
        {"target_modules": ["v_proj"], "modules_to_save": ["classifier"], "r": 1},
    ),
}


def save(case, folder):
    """Base, adapter and rows; PEFT's own model of both."""
    name, part, auto, settings = CASES[case]
    heads.save(name, folder / "whole")
    base = part or type(heads.MAKERS[name]())
    base.from_pretrained(folder / "whole").save_pretrained(folder / "base")
    for file in (folder / "whole").iterdir():  # the tokenizer or the image processor
        if not (folder / "base" / file.name).exists():
            shutil.copy(file, folder / "base")
    if auto is IMAGES:
        torch.manual_seed(2)
        pixels = torch.randn(4, 3, heads.SIZE, heads.SIZE)
        rows = [{"pixel_values": x.tolist(), "label": c} for x, c in zip(pixels, CLASSES, strict=True)]
    else:
        rows = [{"text": text, "label": c} for text, c in zip(TEXTS, CLASSES, strict=True)]
    heads.write(folder / "rows.jsonl", rows)
    config = LoraConfig(**settings, lora_alpha=3, base_model_name_or_path=str(folder / "base"))
    made = auto.from_pretrained(folder / "base", num_labels=5, ignore_mismatched_sizes=True)
    model = get_peft_model(made, config)
    torch.manual_seed(5)
    for p in (p for p in model.parameters() if p.requires_grad):
        torch.nn.init.normal_(p, std=0.3)
    model.save_pretrained(folder / "adapter")
    again = auto.from_pretrained(
        folder / "base", num_labels=5, ignore_mismatched_sizes=True, attn_implementation="eager"
    )
    return PeftModel.from_pretrained(again, folder / "adapter", is_trainable=True).eval()


def loss_of(theirs, folder):
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    parts = []
    for row in rows:
        given = (
            {"pixel_values": torch.tensor([row["pixel_values"]])}
            if "pixel_values" in row
            else {"input_ids": framed(row["text"])}
        )
        parts.append(theirs(**given, labels=torch.tensor([row["label"]])).loss)
    return sum(parts) / len(parts)


def dense(loss, parameters):
    """The Hessian of the loss over parameters, by autograd alone, (n, n) float64."""
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    entries = torch.cat([part.reshape(-1) for part in gradient])
    rows = torch.autograd.grad(
        entries, parameters, torch.eye(len(entries)), is_grads_batched=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([row.reshape(len(entries), -1) for row in rows], dim=1).double().numpy()


def subject(folder, on_event=ignore, **values):
    given = {"probe": "trace", "model.id": str(folder / "adapter"), "data.id": str(folder / "rows.jsonl"), **values}
    return build_subject(resolve([("test", given)])[0], on_event=on_event)


@pytest.mark.parametrize("case", CASES)
def test_a_head_that_an_adapter_brings_is_measured_as_its_trainer_has_it(case, tmp_path):
    theirs = save(case, tmp_path)
    ours = subject(tmp_path, (events := []).append)
    risk, model = ours.risk, ours.checkpoint.model
    trained = {n.removeprefix("base_model.model."): p for n, p in theirs.named_parameters() if p.requires_grad}
    assert set(risk.space.names) == set(trained)
    assert any(".modules_to_save.default." in name for name in trained)
    assert not [event for event in events if "left out" in str(event)]
    loss = loss_of(theirs, tmp_path)
    assert risk.loss().value == pytest.approx(loss.item(), rel=2e-6)

    truth = dense(loss, [trained[name] for name in risk.space.names])
    v = risk.space.random("gaussian", seed=1, index=0)
    wanted = truth @ flat(v)
    found = {
        kind: flat(choose_operator(risk, kind="hessian", product=kind, seed=0).operator.matvec(v))
        for kind in ("double-backward", "layered")
    }
    assert all(np.linalg.norm(one - wanted) < 1e-5 * np.linalg.norm(wanted) for one in found.values())
    difference = choose_operator(risk, kind="hessian", product="finite-difference", seed=0).operator.difference(v)
    assert np.linalg.norm(flat(difference.product) - wanted) < 3 * difference.error * np.linalg.norm(wanted)

    replaced = sum(p.numel() for name, p in theirs.named_parameters() if ".original_module." in name)
    count = sum(p.numel() for p in theirs.parameters()) - replaced
    assert ours.checkpoint.identity.num_parameters == count
    assert not [name for name, _ in model.named_parameters() if ".original_module." in name]
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert {name: p.shape for name, p in twin(model).named_parameters()} == shapes
    bare = planned(tmp_path / "adapter")
    assert {name: p.shape for name, p in bare.model.named_parameters()} == shapes
    assert (set(bare.adapter_parameters), bare.task) == (set(trained), ours.checkpoint.identity.task)


def planned(folder, **changes):
    options = {
        "revision": None,
        "task": "auto",
        "dtype": "float32",
        "attention": "auto",
        "trust_remote_code": False,
        "allow_pickle": False,
        "offline": True,
    }
    return bare_model(str(folder), **{**options, **changes})


@pytest.mark.parametrize("case", ["BERT", "Llama"])
def test_it_is_the_same_over_a_base_that_stays_in_its_files(case, tmp_path):
    save(case, tmp_path)
    whole = subject(tmp_path).risk
    left = subject(tmp_path, **{"model.device_map": {"": "disk"}, "model.offload_dir": str(tmp_path / "away")})
    assert len(left.checkpoint.reads) >= 10
    assert left.risk.space.names == whole.space.names
    assert left.risk.loss() == whole.loss()
    v = whole.space.random("gaussian", seed=1, index=0)
    wanted = flat(choose_operator(whole, kind="hessian", product="double-backward", seed=0).operator.matvec(v))
    found = flat(choose_operator(left.risk, kind="hessian", product="layered", seed=0).operator.matvec(v))
    assert np.linalg.norm(found - wanted) < 1e-6 * np.linalg.norm(wanted)


def test_patterns_see_the_head_once(tmp_path):
    save("Llama", tmp_path)
    assert subject(tmp_path, **{"operator.params": ["score.*"]}).risk.space.names == (
        "score.modules_to_save.default.weight",
    )
    every = subject(tmp_path, **{"operator.params": ["**"]})
    assert len([name for name in every.risk.space.names if name.startswith("score.")]) == 1
    assert all(part.any() for part in every.risk.gradient())


@pytest.mark.parametrize("form", ["in a pickle", "by its module", "by a config that does not name it", "by both names"])
def test_every_form_in_which_a_head_was_saved_is_read(form, tmp_path):
    theirs = save("Llama", tmp_path)
    if form == "in a pickle":
        torch.save(load_file(tmp_path / "adapter" / WEIGHTS), tmp_path / "adapter" / "adapter_model.bin")
        (tmp_path / "adapter" / WEIGHTS).unlink()
    elif form == "by a config that does not name it":
        edit(tmp_path / "adapter", modules_to_save=None)
    else:
        head, whole = "base_model.model.score.", "base_model.model.score.modules_to_save."
        copy = form == "by both names"
        stored = load_file(tmp_path / "adapter" / WEIGHTS)
        weight = stored[f"{head}weight"].clone() if copy else stored.pop(f"{head}weight")
        stored[f"{whole}{'' if copy else 'default.'}weight"] = weight
        save_file(stored, tmp_path / "adapter" / WEIGHTS)
    risk = subject(tmp_path, **{"model.allow_pickle": True}).risk
    assert risk.loss().value == pytest.approx(loss_of(theirs, tmp_path).item(), rel=2e-6)
    assert "score.modules_to_save.default.weight" in risk.space.names


REFUSED = {
    "a pooler that the base lacks": ("bert-mlm", {}, "weights: .*does not bring bert.pooler.dense.bias and 3 more, and its base"),
    "no head": ("causal", {"score": None}, "weights: 'adapter' does not bring score.weight, and its base model 'base' has none"),
    "one class": ("causal", {"score": (1, 8)}, "model: 'adapter' is no classifier of one label a row .num_labels 1"),
    "a head of another width": ("causal", {"score": (5, 9)}, r"weights: score.weight is .5, 9. in .*'adapter' and .5, 8. in"),
    "another task": ("causal", {"task_type": "TOKEN_CLS"}, "model: 'adapter' was trained for token-classification; hess measures"),
    "another class": ("causal", {"task_type": None, "auto_mapping": {"base_model_class": "LlamaForQuestionAnswering"}}, "model: .*for question-answering; hess"),
    "another task asked for": ("causal", {"asked": "causal-lm"}, "task: 'adapter' was trained for sequence-classification, not causal-lm; leave"),
    "a base of images": ("resnet", {}, "model: transformers .* has no sequence-classification model for 'resnet'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_head_that_does_not_fit_is_refused_in_one_line(name, tmp_path):
    base, changes, line = REFUSED[name]
    save("Llama", tmp_path)
    heads.save(base, tmp_path / "other")
    changes = {"base_model_name_or_path": str(shutil.move(tmp_path / "other", tmp_path / "x" / "base")), **changes}
    asked = changes.pop("asked", "auto")
    if "score" in changes:
        shape = changes.pop("score")
        key = "base_model.model.score.weight"
        restore(tmp_path / "adapter", lambda s: s.pop(key) if shape is None else s.update({key: torch.ones(shape)}))
    edit(tmp_path / "adapter", **changes)
    with pytest.raises(HessError, match=rf"^(\S*\.)?{line}") as caught:
        subject(tmp_path, **{"model.task": asked})
    assert "\n" not in str(caught.value)


def test_a_plan_needs_the_weights_that_tell_the_classes(tmp_path):
    save("Llama", tmp_path)
    (tmp_path / "adapter" / WEIGHTS).unlink()
    with pytest.raises(UnavailableError, match="how many classes 'adapter' tells apart stands in its weights"):
        planned(tmp_path / "adapter")


QV = {"target_modules": ["q_proj"], "r": 1, "lora_alpha": 3, "task_type": "CAUSAL_LM"}
TOKENS = {
    "all of it trained": {**QV, "modules_to_save": ["embed_tokens", "lm_head"]},
    "saved beside layers": QV,
    "layers beside the embedding": {**QV, "target_modules": ["embed_tokens", "lm_head"]},
}


def save_wider(settings, folder, *, tied=False):
    """An adapter trained after three tokens were added to its base; PEFT's own model of both."""
    heads.save("causal", folder / "base")
    torch.manual_seed(5)
    config = AutoConfig.from_pretrained(folder / "base", tie_word_embeddings=tied)
    base = AutoModelForCausalLM.from_config(config)
    base.save_pretrained(folder / "base")
    heads.write(folder / "rows.jsonl", [{"text": text} for text in TEXTS])
    base.resize_token_embeddings(heads.VOCAB + 3)
    model = get_peft_model(base, LoraConfig(**settings, base_model_name_or_path=str(folder / "base")))
    for p in (p for p in model.parameters() if p.requires_grad):
        torch.nn.init.normal_(p, std=0.3)
    model.save_pretrained(folder / "adapter")
    again = AutoModelForCausalLM.from_pretrained(folder / "base", attn_implementation="eager")
    again.resize_token_embeddings(heads.VOCAB + 3)
    return PeftModel.from_pretrained(again, folder / "adapter", is_trainable=True).eval()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", TOKENS)
def test_tokens_that_were_added_for_an_adapter_are_there(kind, tied, tmp_path):
    theirs = save_wider(TOKENS[kind], tmp_path, tied=tied)
    ours = subject(tmp_path, **{"data.pack": False})
    trained = {n.removeprefix("base_model.model."): p for n, p in theirs.named_parameters() if p.requires_grad}
    assert set(ours.risk.space.names) == set(trained)
    assert ours.checkpoint.vocab_size == heads.VOCAB + 3
    parts = [(theirs(**inputs).loss, terms) for _, inputs, terms in causal(theirs, tmp_path)]
    loss = sum(loss * terms for loss, terms in parts) / sum(terms for _, terms in parts)
    assert ours.risk.loss().value == pytest.approx(loss.item(), rel=2e-6)
    v = ours.risk.space.random("gaussian", seed=1, index=0)
    wanted = dense(loss, [trained[name] for name in ours.risk.space.names]) @ flat(v)
    for product in ("double-backward", "layered"):
        found = choose_operator(ours.risk, kind="hessian", product=product, seed=0).operator.matvec(v)
        assert np.linalg.norm(flat(found) - wanted) < 1e-5 * np.linalg.norm(wanted)
    bare = planned(tmp_path / "adapter").model
    assert {name: p.shape for name, p in bare.named_parameters()} == {
        name: p.shape for name, p in ours.checkpoint.model.named_parameters()
    }


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_rows_of_new_tokens_that_nobody_has_are_no_random_numbers(tied, tmp_path):
    save_wider({**QV, "modules_to_save": ["embed_tokens"]}, tmp_path, tied=tied)
    assert subject(tmp_path, **{"data.pack": False}).checkpoint.vocab_size == heads.VOCAB + 3
    # As it is saved where PEFT does not see that the embeddings grew: the trained embedding alone.
    extra = ("lm_head", "original_module", "modules_to_save")
    restore(tmp_path / "adapter", lambda s: [s.pop(name) for name in list(s) if any(part in name for part in extra)])
    lacking = "model.embed_tokens.weight" if tied else "lm_head.weight"
    with pytest.raises(UnavailableError, match=rf"'adapter' does not bring {lacking}, and its base model"):
        subject(tmp_path, **{"data.pack": False})
