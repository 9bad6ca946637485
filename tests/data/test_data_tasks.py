# ruff: noqa: E501 - one case, one row
"""What each task makes of its rows: prompts without loss, hidden tokens, decoder inputs, classes, images."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from characters import BEGIN, EOS, PAD, VOCAB_SIZE, codes, ids_of, load, make_tokenizer, no_tokenizer, spell
from heads import LABELS, save_images
from PIL import Image

from hesscli.data import IGNORED, Sequence, Slice
from hesscli.errors import UsageError

MASK = VOCAB_SIZE - 1  # "~", which no text here holds


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def framed():
    return make_tokenizer(specials=True)


def masking():
    words = make_tokenizer(specials=True)
    words.mask_token, words.bos_token = "~", "<s>"
    return words


def test_the_loss_of_a_row_with_a_prompt_is_on_its_solution(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"question": "1+1=", "text": "two"}, {"question": "", "text": "x"}])
    found = load(path, mask_prompt="question", max_length=20, tokenizer=framed)
    assert ids_of(found) == [[BEGIN, *spell("1+1=two"), EOS], [BEGIN, *spell("x"), EOS]]
    first, second = (s.targets.tolist() for s in found.sequences)
    assert first == [IGNORED] * 4 + [*spell("two"), EOS, IGNORED]
    assert second == [*spell("x"), EOS, IGNORED]
    assert found.num_terms == 4 + 2
    assert not found.packed
    bare = load(path, mask_prompt="question", max_length=20).sequences[0]
    assert bare.targets.tolist() == [IGNORED] * 3 + [*spell("two"), IGNORED]


def test_a_row_whose_solution_is_cut_away_is_left_out_and_counted(tmp_path):
    rows = [{"p": "a" * n, "text": "bcd"} for n in (2, 5, 6, 7)] + [{"p": "abc", "text": ""}]
    found = load(write(tmp_path / "a.jsonl", rows), mask_prompt="p", max_length=8, tokenizer=framed)
    # 6 places beside the frame: 3, 1, 0 and 0 tokens of the solution are left; the frame's end closes what there is
    assert [s.num_terms for s in found.sequences] == [4, 2]
    assert ids_of(found)[1] == [BEGIN, *spell("aaaaab"), EOS]
    notes = dict(found.notes)
    assert notes["rows-without-loss"] == "3 rows without a loss term took no part"
    assert notes["truncated-rows"] == "3 rows of text cut to 8 tokens"


@pytest.mark.parametrize("pack", [True, False])
def test_hidden_tokens_follow_their_row_and_place_alone(tmp_path, pack):
    path = tmp_path / "a.txt"
    path.write_text("".join("abcdefghij"[i % 10] * 30 + "\n" for i in range(40)))
    options = {"task": "masked-lm", "pack": pack, "max_length": 32, "tokenizer": masking}
    whole, part = load(path, **options), load(path, **options, limit=7)
    for own, other in zip(part.sequences, whole.sequences, strict=False):
        assert torch.equal(own.inputs["input_ids"], other.inputs["input_ids"])
        assert torch.equal(own.targets, other.targets)
    assert load(path, **options).fingerprint == whole.fingerprint
    assert load(path, **options, seed=1).fingerprint != whole.fingerprint
    assert "masked-tokens" in codes(whole)
    assert "no-eos-token" not in codes(whole)


def test_hidden_tokens_are_fifteen_per_cent_in_the_shares_of_bert(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(("c" * 98 + "\n") * 400)
    found = load(path, task="masked-lm", pack=False, max_length=100, limit=400, tokenizer=masking)
    ids = torch.stack([s.inputs["input_ids"] for s in found.sequences])
    targets = torch.stack([s.targets for s in found.sequences])
    assert set(targets[:, [0, -1]].flatten().tolist()) == {IGNORED}  # the frame is special
    assert set(targets.flatten().tolist()) == {IGNORED, spell("c")[0]}
    chosen, count = targets != IGNORED, 400 * 98
    shown, letter = ids[chosen], spell("c")[0]
    for number, of, share in (
        (int(chosen.sum()), count, 0.15),
        (int((shown == MASK).sum()), len(shown), 0.8 + 0.1 / VOCAB_SIZE),
        (int((shown == letter).sum()), len(shown), 0.1 + 0.1 / VOCAB_SIZE),
    ):
        assert abs(number / of - share) < 4 * np.sqrt(share * (1 - share) / of)
    random = shown[(shown != MASK) & (shown != letter)]
    assert len(set(random.tolist())) > 0.9 * VOCAB_SIZE
    assert (ids[~chosen] == torch.tensor([BEGIN, letter, EOS]).view(3, 1)).any(dim=0).all()


def test_rows_of_ids_are_masked_too_or_bring_their_labels(tmp_path):
    bare = write(tmp_path / "a.jsonl", [{"input_ids": [9] * 40 + [PAD] * 9, "attention_mask": [1] * 40 + [0] * 9}])
    found = load(bare, task="masked-lm", tokenizer=masking)
    (row,) = found.sequences
    assert len(row.targets) == 40
    assert set(row.targets.tolist()) == {IGNORED, 9}
    labels = [
        {"input_ids": [5, 6, 7], "labels": [IGNORED, 8, 9], "attention_mask": [1, 1, 0], "token_type_ids": [0, 1, 1]}
    ]
    path = write(tmp_path / "b.jsonl", labels)
    (own,) = load(path, task="masked-lm", tokenizer=no_tokenizer, num_token_types=2).sequences
    assert own.targets.tolist() == [IGNORED, 8]
    assert own.inputs["token_type_ids"].tolist() == [0, 1]
    assert "unused-column" in codes(load(path, task="masked-lm", tokenizer=no_tokenizer))


def test_a_decoder_reads_its_labels_shifted_and_padding_has_no_term(tmp_path):
    rows = [{"text": "abc", "target": "xy"}, {"text": "d", "target": "uvwxyz"}]
    found = load(write(tmp_path / "a.jsonl", rows), task="seq2seq-lm", tokenizer=framed, pad_token_id=PAD)
    (batch,) = found.batches(2)
    first, second = [BEGIN, *spell("xy"), EOS], [BEGIN, *spell("uvwxyz"), EOS]
    assert batch.targets.tolist() == [first + [IGNORED] * 4, second]
    assert batch.inputs["decoder_input_ids"].tolist() == [[PAD, *first[:-1], *[PAD] * 4], [PAD, *second[:-1]]]
    assert batch.inputs["input_ids"].tolist() == [[BEGIN, *spell("abc"), EOS], [BEGIN, *spell("d"), EOS, PAD, PAD]]
    assert batch.inputs["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert found.num_tokens == 5 + 4 + 3 + 8
    assert found.num_terms == 4 + 8
    ids = [{"input_ids": [5], "labels": [6, IGNORED, 7, IGNORED]}, {"input_ids": [5], "labels": [IGNORED]}]
    (row,) = load(write(tmp_path / "b.jsonl", ids), task="seq2seq-lm", tokenizer=no_tokenizer).sequences
    assert row.targets.tolist() == [6, IGNORED, 7]


def classes(path, rows, **options):
    own = {"task": "sequence-classification", "num_labels": 3, "label2id": LABELS, "tokenizer": framed}
    return load(write(path / "a.jsonl", rows), **(own | options))


def test_a_class_is_a_number_or_a_name_of_the_model(tmp_path):
    rows = [{"text": "ab", "label": name} for name in ("owl", "Cat", "DOG")]
    assert [s.targets.tolist() for s in classes(tmp_path, rows).sequences] == [[2], [0], [1]]
    rows = [{"text": "ab", "sort": number} for number in (2, 0, 1)]
    found = classes(tmp_path, rows, target_column="sort")
    assert [s.targets.tolist() for s in found.sequences] == [[2], [0], [1]]
    assert found.num_terms == 3
    assert "one-label" not in codes(found)
    assert "one-label" in codes(classes(tmp_path, [{"text": text, "label": 1} for text in "ab"]))


def test_names_of_the_data_set_decide_where_the_model_knows_them(tmp_path):
    import datasets

    def parquet(names):
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 2]}, features=features)
        data.to_parquet(tmp_path / "a.parquet")
        return load(tmp_path / "a.parquet", task="sequence-classification", num_labels=3, label2id=LABELS)

    turned = parquet(["owl", "dog", "cat"])
    assert [int(s.targets) for s in turned.sequences] == [LABELS["owl"], LABELS["cat"]]
    strange = parquet(["x", "y", "z"])
    assert [int(s.targets) for s in strange.sequences] == [0, 2]
    assert "labels-by-number" in codes(strange)
    with pytest.raises(UsageError, match=r"^label: row 1 holds 'fox', .*give cat, dog, owl"):
        parquet(["owl", "dog", "fox"])


class Halves:
    """An image processor of one line: the upper left 2 x 2 pixels, over 255."""

    def __call__(self, images, return_tensors):
        assert return_tensors == "pt"
        pixels = np.stack([np.atleast_3d(np.asarray(image))[:2, :2].transpose(2, 0, 1) / 255 for image in images])
        return {"pixel_values": torch.from_numpy(pixels)}


def pictures(source, **options):
    own = {"task": "image-classification", "num_labels": 3, "label2id": LABELS, "image_processor": Halves}
    return load(source, tokenizer=no_tokenizer, **(own | options))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_class_folders_are_read_in_turn_with_the_models_numbers(tmp_path, split):
    made = save_images(tmp_path / "zoo", 3, split=split)
    turned = {"owl": 0, "dog": 1, "cat": 2}
    found = pictures(tmp_path / "zoo", split=split, label2id=turned, limit=7)
    assert [int(s.targets) for s in found.sequences] == [2, 1, 0, 2, 1, 0, 2]
    for place, name in enumerate(["cat", "dog", "owl"] * 2):
        truth = np.asarray(made[name][place // 3])[:2, :2].transpose(2, 0, 1) / 255
        pixels = found.sequences[place].inputs["pixel_values"]
        assert pixels.dtype == torch.float32
        assert np.allclose(pixels.numpy(), truth)
    assert (found.num_tokens, found.num_terms, found.max_length) == (7, 7, 0)
    (batch,) = found.batches(7)
    assert batch.inputs["pixel_values"].shape == (7, 3, 2, 2)
    assert "attention_mask" not in batch.inputs


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_images_are_decoded_turned_upright_and_coloured(tmp_path, kind):
    grey = Image.new("L", (4, 2), 50)
    grey.putpixel((3, 0), 200)
    held = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: to be turned by 90 degrees
    grey.save(held, "png", exif=exif)
    import datasets

    rows = {"image": [{"bytes": held.getvalue(), "path": None}], "label": [1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    if kind == "parquet":
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    else:
        (tmp_path / "zoo/dog").mkdir(parents=True)
        (tmp_path / "zoo/dog/0.png").write_bytes(held.getvalue())
    (row,) = pictures(tmp_path / ("a.parquet" if kind == "parquet" else "zoo")).sequences
    upright = np.rot90(np.asarray(grey), k=-1)[:2, :2] / 255
    assert np.allclose(row.inputs["pixel_values"].numpy(), np.stack([upright] * 3))


MODES = {"RGBA": "png", "LA": "png", "P": "gif", "1": "bmp", "CMYK": "jpeg"}


@pytest.mark.parametrize("mode", MODES)
def test_an_image_of_any_mode_is_read_in_its_colours(tmp_path, mode):
    draw = np.random.default_rng(0)
    colours = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    picture = colours.convert(mode)
    if "A" in mode:
        picture.putalpha(Image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8)))
    (tmp_path / "zoo/dog").mkdir(parents=True)
    file = tmp_path / f"zoo/dog/0.{MODES[mode]}"
    picture.save(file)
    (row,) = pictures(tmp_path / "zoo").sequences
    truth = np.asarray(
        Image.open(file).convert("RGBA").convert("RGB") if mode != "CMYK" else Image.open(file).convert("RGB")
    )
    assert np.allclose(row.inputs["pixel_values"].numpy(), truth[:2, :2].transpose(2, 0, 1) / 255)
    (grey,) = pictures(tmp_path / "zoo", num_channels=1).sequences
    assert grey.inputs["pixel_values"].shape == (1, 2, 2)


@pytest.mark.parametrize(("dtype", "words"), [("uint16", "numbers of more than 8 bits"), ("float32", "fractions")])
def test_an_image_of_wide_numbers_is_refused_and_not_cut_off(tmp_path, dtype, words):
    (tmp_path / "zoo/dog").mkdir(parents=True)
    Image.fromarray(np.full((4, 4), 700, dtype=dtype)).save(tmp_path / "zoo/dog/0.tiff")
    with pytest.raises(UsageError, match=rf"^image: row 0 holds {words}; .*0 \.\.\. 255"):
        pictures(tmp_path / "zoo")


def test_pixels_are_used_as_they_stand(tmp_path):
    values = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).round(3)
    path = write(tmp_path / "a.jsonl", [{"pixel_values": v.tolist(), "label": i} for i, v in enumerate(values)])
    found = pictures(path, image_processor=None)
    for s, v in zip(found.sequences, values, strict=True):
        assert np.array_equal(s.inputs["pixel_values"].numpy(), v.astype("f4"))
    assert found.column == "pixel_values"


def test_the_fingerprint_sees_each_pixel_and_the_shape():
    def mark(pixels):
        return Slice((Sequence({"pixel_values": pixels}, torch.tensor([1])),), id="x").fingerprint

    pixels = torch.arange(12.0).view(1, 3, 4)
    assert mark(pixels) == mark(pixels.clone())
    assert mark(pixels) != mark(pixels.view(1, 4, 3))
    assert mark(pixels) != mark(pixels.nextafter(torch.tensor(100.0)))


TEXT, DECODER, CLASS, PICTURE = (
    {"task": "masked-lm", "tokenizer": masking},
    {"task": "seq2seq-lm", "tokenizer": framed},
    {"task": "sequence-classification", "num_labels": 3, "label2id": LABELS, "tokenizer": framed},
    {"task": "image-classification", "num_labels": 3, "label2id": LABELS, "image_processor": Halves},
)
PIXELS = [[[0.5, 1.0]], [[0.5, 1.0]], [[0.5, 1.0]]]
PNG = base64.b64encode(b"no image at all").decode()
BAD = {
    "no prompt column": ([{"text": "a"}], {"mask_prompt": "p"}, r"mask_prompt: 'p' is not a column .*it has: text"),
    "null prompt": ([{"text": "a", "p": "b"}, {"text": "a", "p": None}], {"mask_prompt": "p"}, r"mask_prompt: 'p' holds nulls in row 1"),
    "chat as a prompt": ([{"text": "a", "p": [{"role": "user"}]}], {"mask_prompt": "p"}, r"mask_prompt: 'p' holds lists of objects.*chat template"),
    "prompt of ids": ([{"input_ids": [1, 2], "p": "a"}], {"mask_prompt": "p", "column": "input_ids"}, r"mask_prompt: .*labels of -100"),
    "nothing but prompts": ([{"text": "", "p": "abc"}], {"mask_prompt": "p"}, r"column: 'text' .*no sequence in which a token is predicted"),
    "no mask token": ([{"text": "a"}], TEXT | {"tokenizer": framed}, r"tokenizer: .*no mask token.*input_ids and labels"),
    "masked labels of another length": ([{"input_ids": [1, 2], "labels": [1]}], TEXT, r"labels: row 0 has 1 of them for 2"),
    "masked labels beyond the vocabulary": ([{"input_ids": [1, 2], "labels": [1, 999]}], TEXT, r"labels: row 0 holds 999"),
    "token types beyond the model's": ([{"input_ids": [1], "labels": [1], "token_type_ids": [4]}], TEXT | {"num_token_types": 2}, r"token_type_ids: row 0 holds 4, .* 2 types"),
    "no target column": ([{"text": "a", "summary": "b"}], DECODER, r"target_column: 'target' is not a column .*--target-column"),
    "null target": ([{"text": "a", "target": "b"}, {"text": "a", "target": None}], DECODER, r"target_column: 'target' holds nulls in row 1"),
    "ids without labels": ([{"input_ids": [1]}], DECODER, r"labels: 'labels' is not a column"),
    "no token for the encoder": ([{"input_ids": [], "labels": [1]}], DECODER, r"input_ids: row 0 holds no token"),
    "only padding to decode": ([{"input_ids": [1], "labels": [-100]}], DECODER, r"labels: none of the 1 rows"),
    "too much to decode": ([{"input_ids": [1], "labels": [1] * 9}], DECODER | {"max_positions": 8}, r"labels: row 0 has 9 tokens, above the model's 8"),
    "no label column": ([{"text": "a", "sort": 1}], CLASS, r"target_column: 'label' is not a column .*it has: text, sort.*--target-column"),
    "label too large": ([{"text": "a", "label": 0}, {"text": "a", "label": 3}], CLASS, r"label: row 1 holds 3, outside the model's 3 labels; use numbers from 0 to 2$"),
    "hidden label": ([{"text": "a", "label": -1}], CLASS, r"label: row 0 holds -1.*a split that has labels"),
    "label of another model": ([{"text": "a", "label": "fox"}], CLASS, r"label: row 0 holds 'fox', .*give cat, dog, owl, or their numbers"),
    "label that is a fraction": ([{"text": "a", "label": 0.5}], CLASS, r"label: row 0 holds floats, no label"),
    "label that is a yes": ([{"text": "a", "label": True}], CLASS, r"label: row 0 holds booleans, no label"),
    "text that is none": ([{"text": 3, "label": 1}], CLASS, r"column: 'text' holds integers in row 0"),
    "class of no token": ([{"input_ids": [5], "attention_mask": [0], "label": 1}], CLASS, r"input_ids: row 0 holds no token"),
    "pixels of two levels": ([{"pixel_values": [[1.0]], "label": 1}], PICTURE, r"pixel_values: row 0 holds no numbers of \(channels, height, width\)"),
    "pixels of two shapes": ([{"pixel_values": PIXELS, "label": 1}, {"pixel_values": [[[1.0]]] * 3, "label": 1}], PICTURE, r"pixel_values: row 1 is 3x1x1, the first is 3x1x2"),
    "pixels channels last": ([{"pixel_values": [[[1.0, 2.0, 3.0]]], "label": 1}], PICTURE, r"pixel_values: row 0 is 1x1x3, and the model reads 3 channels"),
    "image that is text": ([{"image": PNG, "label": 1}], PICTURE, r"image: row 0 holds strings, no image"),
    "no image column": ([{"picture": PNG, "label": 1}], PICTURE, r"column: 'image' is not a column .*it has: picture, label"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_one_line_that_names_it(case, tmp_path):
    rows, options, line = BAD[case]
    with pytest.raises(UsageError, match=f"^{line}") as caught:
        load(write(tmp_path / "a.jsonl", rows), **options)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda root: (root / "cat/0.png").write_bytes(b"no image"), r"image: row 0 cannot be read as an image"),
        (lambda root: (root / "x.png").write_bytes(b""), r"dataset: x.png of folder zoo lies in no class folder"),
        (lambda root: (root / "dog").rename(root / "cow"), r"label: row 1 holds 'cow'.*give cat, dog, owl"),
    ],
)
def test_a_bad_folder_of_images_is_one_line(tmp_path, make, line):
    save_images(tmp_path / "zoo")
    make(tmp_path / "zoo")
    with pytest.raises(UsageError, match=f"^{line}"):
        pictures(tmp_path / "zoo")
    with pytest.raises(UsageError, match=r"^split: folder zoo has no folder 'test'"):
        pictures(tmp_path / "zoo", split="test")
