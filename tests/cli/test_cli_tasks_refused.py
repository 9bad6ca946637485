# ruff: noqa: E501 - one case, one row
"""What a task cannot read or a checkpoint cannot do is its exit code and one line, and leaves nothing behind."""

import json
import re

import heads
import pytest

ONE_LINE = re.compile(r"error: [^:\s][^:]*: .*\S; \S.*")


def config(**changes):
    def make(here):
        path = here / "model/config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return make


def remove(name):
    return lambda here: (here / "model" / name).unlink()


def rows(*values):
    return lambda here: heads.write(here / "rows.jsonl", values)


def nothing(_here):
    pass


LABELLED, PAIR = {"text": "ab", "label": 1}, {"text": "ab", "target": "c"}
PIXELS = {"pixel_values": [[[0.5] * 8] * 8] * 3, "label": 1}
# checkpoint; what is put in place; what is typed; the exit code; words of the line, in order
BAD = {
    "another head than asked": ("causal", nothing, "--task sequence-classification", 2, ("model.task: ", "has the head of causal-lm (LlamaForCausalLM)", "random numbers", "leave --task out")),
    "a classifier asked for text": ("bert-cls", nothing, "--task masked-lm", 2, ("model.task: ", "the head of sequence-classification (BertForSequenceClassification)")),
    "an unknown task": ("causal", nothing, "--task masked", 2, ("model.task", "'masked' is not allowed", "did you mean masked-lm")),
    "a head for tokens": ("bert-mlm", config(architectures=["BertForTokenClassification"]), "", 2, ("model", "a token-classification checkpoint (BertForTokenClassification)", "hess measures causal-lm, masked-lm")),
    "a head for answers": ("bert-mlm", config(architectures=["BertForQuestionAnswering"]), "", 2, ("model", "a question-answering checkpoint")),
    "a head for choices": ("bert-mlm", config(architectures=["BertForMultipleChoice"]), "", 2, ("model", "a multiple-choice checkpoint")),
    "no head, two that it may have": ("bert-mlm", config(architectures=["BertModel"]), "", 2, ("model.task: ", "may be for causal-lm or masked-lm", "say --task")),
    "no head, one that is asked for": ("bert-mlm", config(architectures=["BertModel"]), "--task sequence-classification", 6, ("weights", "lacks", "BertForSequenceClassification", "random numbers")),
    "an encoder as a causal model": ("bert-mlm", config(architectures=["BertLMHeadModel"]), "", 2, ("model", "sees the token that it should predict", "--task masked-lm")),
    "a regression": ("bert-cls", config(problem_type="regression"), "", 2, ("model", "problem_type regression", "softmax cross-entropy")),
    "one label": ("bert-cls", config(id2label={"0": "a"}, label2id={"a": 0}), "", 2, ("model", "num_labels 1", "softmax cross-entropy")),
    "several labels a row": ("bert-cls", config(problem_type="multi_label_classification"), "", 2, ("model", "problem_type multi_label_classification")),
    "no start for the decoder": ("t5", config(decoder_start_token_id=None), "", 2, ("model", "lacks decoder_start_token_id", "add the ids")),
    "packed pairs": ("t5", nothing, "--pack", 2, ("data.pack: ", "is not read by seq2seq-lm, which reads max_length, target_column")),
    "packed classes": ("bert-cls", nothing, "--no-pack", 2, ("data.pack: ", "is not read by sequence-classification")),
    "a prompt to classify": ("bert-cls", nothing, "--mask-prompt text", 2, ("data.mask_prompt: ", "is not read by sequence-classification")),
    "a prompt to mask": ("bert-mlm", nothing, "--mask-prompt text", 2, ("data.mask_prompt: ", "is not read by masked-lm, which reads max_length, pack")),
    "a prompt in packed rows": ("causal", nothing, "--mask-prompt text --pack", 2, ("data.pack: ", "is on with mask_prompt", "leave one of them out")),
    "a target of a causal model": ("causal", nothing, "--target-column label", 2, ("data.target_column: ", "is not read by causal-lm")),
    "a length of images": ("vit", rows(PIXELS), "--max-length 9", 2, ("data.max_length: ", "is not read by image-classification, which reads target_column")),
    "no target": ("t5", rows(LABELLED), "", 2, ("data.target_column: ", "'target' is not a column", "--target-column")),
    "no label": ("bert-cls", rows(PAIR), "", 2, ("data.target_column: ", "'label' is not a column", "--target-column")),
    "a label of another model": ("bert-cls", rows({"text": "ab", "label": "fox"}), "", 2, ("label", "row 0 holds 'fox'", "give cat, dog, owl")),
    "a label too many": ("llama-cls", rows({"text": "ab", "label": 3}), "", 2, ("label", "row 0 holds 3, outside the model's 3 labels", "0 to 2")),
    "too long for its positions": ("roberta-mlm", rows(LABELLED), "--max-length 23", 2, ("data.max_length: ", "23 is above the model's 22 positions")),
    "no mask token": ("bert-mlm", lambda here: edit_tokenizer(here, mask_token=None), "", 2, ("tokenizer", "no mask token", "input_ids and labels")),
    "rows that share no batch": ("gpt2-cls", nothing, "-b 2", 2, ("data.batch_size: ", "2 rows cannot share a batch", "pad_token_id")),
    "no image processor": ("vit", remove("preprocessor_config.json"), "-d zoo", 2, ("model", "has no preprocessor_config.json", "pixel_values")),
    "a damaged image processor": ("vit", lambda here: (here / "model/preprocessor_config.json").write_text("{"), "-d zoo", 6, ("model", "image processor", "cannot be read")),
    "images of another size": ("vit", rows(PIXELS), "", 2, ("pixel_values", "does not take images of 3x8x8", "trained on")),
    "text for images": ("vit", rows(LABELLED), "", 2, ("data.column: ", "'image' is not a column", "--column")),
    "images for text": ("bert-cls", nothing, "-d zoo", 2, ("data.column: ", "'text' is not a column", "it has: image, label")),
    "classes of another model": ("vit", lambda here: (here / "zoo/cat").rename(here / "zoo/fox"), "-d zoo", 2, ("label", "'fox', which is none of the model's labels", "give cat, dog, owl")),
}  # fmt: skip


def edit_tokenizer(here, **changes):
    path = here / "model/tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("case", BAD)
def test_bad_input_of_a_task_is_one_line(case, hess, tmp_path):
    name, make, typed, code, words = BAD[case]
    heads.save(name, tmp_path / "model")
    heads.save_images(tmp_path / "zoo")
    heads.write(tmp_path / "rows.jsonl", [{"text": "ab", "label": 1, "target": "c"}] * 2)
    make(tmp_path)
    ended = hess("trace", "model", *([] if "-d " in typed else ["-d", "rows.jsonl"]), *typed.split())
    assert ended.code == code, ended.err
    lines = [line for line in ended.err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert ONE_LINE.fullmatch(lines[0])
    assert "Traceback" not in ended.err
    place = 0
    for word in words:
        place = lines[0].find(word, place)
        assert place >= 0, f"no {word!r} in this order in {lines[0]!r}"
    assert str(tmp_path) not in ended.err
    assert ended.out == ""
    assert not (tmp_path / "outputs").exists() or not any((tmp_path / "outputs").rglob("*"))
