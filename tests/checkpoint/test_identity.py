"""The hash of the weights: what it depends on, and what it does not."""

import hashlib
import os
import shutil

import pytest

from hesscli.checkpoint.identity import weights_sha256
from hesscli.events import ignore


def test_the_hash_of_one_file_is_its_sha256(load, made_once):
    expected = hashlib.sha256((made_once / "plain" / "model.safetensors").read_bytes()).hexdigest()
    assert load(made_once / "plain").identity.weights_sha256 == expected


def test_the_hash_of_shards_is_that_of_their_bytes_in_the_order_of_names(load, made_once):
    folder = made_once / "sharded"
    joined = b"".join(file.read_bytes() for file in sorted(folder.glob("model-*.safetensors")))
    assert load(folder).identity.weights_sha256 == hashlib.sha256(joined).hexdigest()
    files = sorted(folder.glob("model-*.safetensors"))
    assert weights_sha256(files[::-1], on_event=ignore) == weights_sha256(files, on_event=ignore)


def test_one_bit_of_one_weight_changes_the_hash(load, copy_of):
    folder = copy_of("plain")
    before = load(folder).identity.weights_sha256
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-4] ^= 1  # the lowest bit of the last float32's mantissa
    (folder / "model.safetensors").write_bytes(data)
    assert load(folder).identity.weights_sha256 != before


def test_times_and_the_folder_do_not_change_the_identity_but_for_its_name(load, copy_of):
    folder = copy_of("plain")
    before = load(folder).identity
    os.utime(folder / "model.safetensors", (1, 1))
    moved = folder.parent / "elsewhere" / "plain"
    shutil.move(folder, moved)
    assert load(moved).identity == before


def test_the_same_weights_in_other_shards_have_another_hash(load, made_once):
    """The documented limit: the hash is of bytes, so equal hashes mean equal weights and not the reverse."""
    assert load(made_once / "plain").identity.weights_sha256 != load(made_once / "sharded").identity.weights_sha256


def test_files_that_are_not_loaded_do_not_enter_the_hash(load, copy_of):
    folder = copy_of("plain")
    before = load(folder).identity.weights_sha256
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    (folder / "model.fp16.safetensors").write_bytes(b"never read")
    assert load(folder).identity.weights_sha256 == before


@pytest.mark.parametrize("way", ["absolute", "relative", "dot"])
def test_the_id_of_a_folder_is_its_name_and_never_a_path(load, made_once, monkeypatch, way):
    monkeypatch.chdir(made_once / "plain" if way == "dot" else made_once)
    model = {"absolute": made_once / "plain", "relative": "plain", "dot": "."}[way]
    identity = load(model).identity
    assert (identity.id, identity.revision, identity.commit) == ("plain", None, None)
    assert identity.class_name == "LlamaForCausalLM"
