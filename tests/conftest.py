"""One thread a process: tests run side by side, and two pools of threads on two cores wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_demo_folder(tmp_path_factory):
    """What stands in for the embedded checkpoint; not to be changed."""
    from small_demo import write_small_demo

    return write_small_demo(tmp_path_factory.mktemp("small_demo"))


@pytest.fixture
def small_demo(small_demo_folder, monkeypatch):
    """`demo` is a hundredth of the embedded checkpoint, under its name, with its revisions and its text."""
    monkeypatch.setattr("hesscli.demo._FOLDER", small_demo_folder)
    return small_demo_folder
