# ruff: noqa: E501 - one case, one row
"""Which task a checkpoint has the head of, by its config alone; and what the loaded model says of its inputs."""

import heads
import pytest
import torch
from transformers import AutoConfig, BertConfig, BertForPreTraining, MarianConfig, MarianMTModel

from hesscli.checkpoint.tasks import TASKS, find_task
from hesscli.curvature.selection import select_parameters
from hesscli.errors import HessError, UsageError
from hesscli.events import Warned


def found(kind, *names, asked="auto", auto_map=None, **settings):
    raw = {"model_type": kind, "architectures": list(names), **({"auto_map": auto_map} if auto_map else {})}
    return find_task(AutoConfig.for_model(kind, **settings), raw, asked=asked, id="x").name


HEADS = {
    "causal-lm": [("llama", "LlamaForCausalLM"), ("gpt2", "GPT2LMHeadModel"), ("gpt2",), ("llama", "LlamaModel"), ("gemma3", "Gemma3ForConditionalGeneration"), ("bart", "BartForCausalLM"), ("mamba", "MambaForCausalLM")],
    "masked-lm": [("bert", "BertForMaskedLM"), ("bert", "BertForPreTraining"), ("roberta", "RobertaForMaskedLM"), ("modernbert", "ModernBertForMaskedLM"), ("distilbert", "DistilBertForMaskedLM"), ("flaubert", "FlaubertWithLMHeadModel")],
    "seq2seq-lm": [("t5", "T5ForConditionalGeneration"), ("t5", "T5WithLMHeadModel"), ("t5",), ("bart", "BartForConditionalGeneration"), ("bart", "BartModel"), ("marian", "MarianMTModel"), ("mbart", "MBartForConditionalGeneration"), ("t5gemma", "T5GemmaForConditionalGeneration")],
    "sequence-classification": [("bert", "BertForSequenceClassification"), ("llama", "LlamaForSequenceClassification"), ("gpt2", "GPT2ForSequenceClassification"), ("bart", "BartForSequenceClassification")],
    "image-classification": [("vit", "ViTForImageClassification"), ("deit", "DeiTForImageClassificationWithTeacher"), ("resnet", "ResNetForImageClassification"), ("convnext", "ConvNextForImageClassification"), ("swin", "SwinForImageClassification")],
}  # fmt: skip


@pytest.mark.parametrize(("task", "names"), [(task, names) for task, many in HEADS.items() for names in many])
def test_the_task_is_that_of_the_head(task, names):
    assert found(*names) == task
    assert found(*names, asked=task) == task


@pytest.mark.parametrize(
    ("task", "names"), [(task, names) for task, many in HEADS.items() for names in many if "For" in names[-1]]
)
def test_no_other_task_is_taken_for_it(task, names):
    for other in set(TASKS) - {task}:
        with pytest.raises(UsageError, match=rf"has the head of {task} \({names[-1]}\)"):
            found(*names, asked=other)


@pytest.mark.parametrize("task", TASKS)
def test_code_of_its_own_says_what_it_is(task):
    auto_map = {TASKS[task].loader.__name__: "modeling_own.OwnNet"}
    assert found("llama", "OwnNet", auto_map=auto_map, asked="auto") == task


REFUSED = {
    "decoders may be encoders": (("bert", "BertLMHeadModel"), {}, "model: .*sees the token that it should predict"),
    "permutations see all": (("xlnet", "XLNetLMHeadModel"), {}, "model: .*sees the token that it should predict"),
    "one class for two tasks": (("xlm", "XLMWithLMHeadModel"), {}, "task: .*may be for causal-lm or masked-lm"),
    "a masked encoder-decoder": (("bart", "BartForConditionalGeneration"), {"asked": "masked-lm"}, "task: .*has the head of seq2seq-lm"),
    "speech": (("whisper", "WhisperForConditionalGeneration"), {}, "model: .*no seq2seq-lm model for 'whisper'"),
    "speech that transformers counts as text": (("qwen2_audio", "Qwen2AudioForConditionalGeneration"), {"asked": "seq2seq-lm"}, "model: .*is no encoder-decoder of text"),
    "next sentences": (("bert", "BertForNextSentencePrediction"), {}, "model: .*a next-sentence-prediction checkpoint"),
    "objects": (("detr", "DetrForObjectDetection"), {}, "model: .*an? object-detection checkpoint"),
    "a regression": (("bert", "BertForSequenceClassification"), {"num_labels": 1}, "model: .*num_labels 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_hess_cannot_measure_is_refused(case):
    names, settings, line = REFUSED[case]
    with pytest.raises(HessError, match=f"^{line}"):
        found(*names, **settings)


def test_a_flag_makes_an_encoder_a_decoder():
    assert found("bert", "BertLMHeadModel", is_decoder=True) == "causal-lm"
    assert found("xlm", "XLMWithLMHeadModel", asked="causal-lm", causal=True) == "causal-lm"
    assert found("xlm", "XLMWithLMHeadModel", asked="masked-lm") == "masked-lm"


def test_what_pretraining_left_beside_the_masked_head_is_said(load, tmp_path):
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=20)
    BertForPreTraining(config).save_pretrained(tmp_path / "bert")
    events = []
    checkpoint = load(tmp_path / "bert", on_event=events.append)
    assert checkpoint.identity.class_name == "BertForMaskedLM"
    assert checkpoint.identity.task == "masked-lm"
    assert any("seq_relationship" in e.text for e in events if isinstance(e, Warned))


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_decoder_reads_what_the_model_makes_of_labels(load, tmp_path, name):
    checkpoint = load(heads.save(name, tmp_path / name))
    labels = torch.tensor([5, -100, 7, heads.END])
    start = heads.PAD if name == "t5" else heads.END
    assert checkpoint.decoder_input_ids(labels).tolist() == [start, 5, heads.PAD, 7]
    given = {"input_ids": torch.tensor([[6, 8, 9]])}
    shifted = checkpoint.model(**given, decoder_input_ids=checkpoint.decoder_input_ids(labels)[None]).logits
    assert torch.equal(shifted, checkpoint.model(**given, labels=labels[None]).logits)


def test_positions_of_roberta_start_behind_its_pad_token(load, tmp_path):
    checkpoint = load(heads.save("roberta-mlm", tmp_path / "roberta"))
    assert checkpoint.max_positions == 22
    checkpoint.model(input_ids=torch.full((1, 22), 5))
    with pytest.raises((IndexError, RuntimeError)):
        checkpoint.model(input_ids=torch.full((1, 23), 5))


def test_padding_is_the_models_own(load, tmp_path):
    wide = heads.save("llama-cls", tmp_path / "wide")
    assert load(wide).pad_token_id == heads.PAD
    for pad in (None, heads.VOCAB, -1):
        config = load(wide).model.config
        config.pad_token_id = pad
        checkpoint = load(wide)
        checkpoint.model.config.pad_token_id = pad
        assert checkpoint.pad_token_id is None
        assert checkpoint.one_row_a_batch


def test_the_settings_hash_sees_settings_and_not_where_they_lie(load, tmp_path):
    first = load(heads.save("vit", tmp_path / "a"))
    again = load(heads.save("vit", tmp_path / "b"))
    assert first.config_sha256 == again.config_sha256
    again.model.config.layer_norm_eps *= 2
    assert first.config_sha256 != again.config_sha256


def test_what_the_model_does_not_train_is_a_constant(tmp_path, load):
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=19,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=32,
        pad_token_id=0,
        decoder_start_token_id=0,
        eos_token_id=1,
        forced_eos_token_id=1,
    )
    MarianMTModel(config).save_pretrained(tmp_path)
    checkpoint = load(str(tmp_path))
    names = list(select_parameters(checkpoint.model, params=["*"], exclude=[], adapter=()))
    assert [n for n, _ in checkpoint.model.named_parameters() if n not in names] == [
        "model.encoder.embed_positions.weight",
        "model.decoder.embed_positions.weight",
    ]
