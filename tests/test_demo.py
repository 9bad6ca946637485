"""The embedded checkpoint: it loads, it was trained, its text is right and was held out."""

import json
import math
import re
import subprocess
import sys
from collections import Counter
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hesscli.demo import REVISIONS, checkpoint_folder, slice_file
from hesscli.demo.make import HELD_OUT_SEEDS, TRAINING_SEEDS
from hesscli.demo.program import program
from hesscli.demo.text import arithmetic, document, story
from hesscli.errors import UnavailableError


@pytest.fixture(scope="module")
def held_out() -> list[str]:
    return [json.loads(line)["text"] for line in slice_file().read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def losses_and_tokens(held_out):
    losses = []
    for revision in REVISIONS:
        folder = checkpoint_folder(revision)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        end = tokenizer.eos_token_id
        tokens = [t for text in held_out for t in [*tokenizer(text)["input_ids"], end]]
        rows = torch.tensor(tokens[: len(tokens) // 128 * 128]).view(-1, 128)[:32]
        with torch.no_grad():
            losses.append(float(model(input_ids=rows, labels=rows).loss))
    return losses, tokens


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_revision_is_small_and_loads_by_itself(revision):
    folder = checkpoint_folder(revision)
    assert (folder / "model.safetensors").stat().st_size <= 4 * 2**20
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert model.dtype == torch.float32
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert 300_000 <= sum(p.numel() for p in model.parameters()) <= 1_000_000


@pytest.mark.parametrize("revision", REVISIONS)
def test_the_saved_tokenizer_keeps_text_and_splits_digits(revision, held_out):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_folder(revision), local_files_only=True)
    assert len(tokenizer) <= 512
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 0
    for text in [*held_out, "bytes outside the corpus: é λ 漢 \t"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("407") == ["4", "0", "7"]


def test_the_loss_falls_along_the_revisions_far_below_the_unigram_entropy(losses_and_tokens):
    (early, middle, final), tokens = losses_and_tokens
    unigram = -sum(c / len(tokens) * math.log(c / len(tokens)) for c in Counter(tokens).values())
    assert early > middle > final
    assert early < unigram
    assert final < 0.25 * unigram


def test_the_slice_is_enough_for_30_sequences_of_128_tokens(losses_and_tokens):
    _, tokens = losses_and_tokens
    assert len(tokens) >= 30 * 128


def test_no_file_that_ships_names_a_place_on_a_machine():
    root = checkpoint_folder().parent
    for file in root.rglob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert "_name_or_path" not in text
        assert re.search(r"/(home|root|tmp|work|Users)\b", text) is None


def test_held_out_documents_are_the_generators_and_not_in_the_training_corpus(held_out):
    assert not set(TRAINING_SEEDS) & set(HELD_OUT_SEEDS)
    assert set(held_out) <= {document(seed) for seed in HELD_OUT_SEEDS}
    assert len(set(held_out)) == len(held_out)
    assert not set(held_out) & {document(seed) for seed in TRAINING_SEEDS}


def test_a_document_is_a_function_of_its_seed():
    assert [document(seed) for seed in range(50)] == [document(seed) for seed in range(50)]
    assert len({document(seed) for seed in range(50)}) == 50


def test_every_equation_is_right():
    for seed in range(200):
        for line in arithmetic(Random(seed)).splitlines():
            python = line if "<" in line or ">" in line else line.replace("=", "==")
            assert eval(python), line


def test_every_program_prints_what_it_says():
    for seed in range(200):
        *lines, shown = re.split(r"\n(?=> )", program(Random(seed)), maxsplit=1)
        source = []
        for line in lines[0].splitlines():
            line = re.sub(r"^(\s*)print (\w)$", r"\1out.append(\2)", line.replace("let ", ""))
            line = re.sub(r"^(\s*)repeat (\d+)$", r"\1for _ in range(\2):", line)
            line = re.sub(r"^(\s*)(if .*|else)$", r"\1\2:", line)
            line = re.sub(r"^(\s*)(\w) = (.*)$", r"\1\2 = (\3) % 100", line)
            source += [] if line.strip() == "end" else [line]
        out: list[int] = []
        exec("\n".join(source), {"out": out})
        assert [int(value) for value in re.findall(r"> (\d+)", shown)] == out


def test_a_story_ends_where_it_began():
    for seed in range(100):
        text = story(Random(seed))
        hero, home = re.match(r"(\w+) was an? \w+ in (\w+)", text).groups()
        colour, thing = re.search(r"had a (\w+) (\w+) that", text).groups()
        place = re.search(rf"took the {thing} and put it ([^.]+)\.", text).group(1)
        assert f'"Where is my {colour} {thing}?" asked {hero}. "It is {place},"' in text
        assert text.endswith(f"{hero} stayed in {home} with the {thing}.")


@pytest.mark.parametrize("revision", [None, "main", "final"])
def test_no_revision_and_main_mean_final(revision):
    assert checkpoint_folder(revision).name == "final"


@pytest.mark.parametrize("revision", ["step51", "", "..", "final/"])
def test_an_unknown_revision_says_which_exist(revision):
    with pytest.raises(UnavailableError, match="use step50, step200 or final"):
        checkpoint_folder(revision)


def test_finding_the_demo_loads_nothing_heavy():
    code = "import sys, hesscli.demo; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
