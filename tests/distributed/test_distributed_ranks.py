"""The processes of a run: sums and agreement, what they send, and one failure for all."""

import os
import signal
import time
from contextlib import suppress

import numpy as np
import pytest
import torch.distributed as dist
from spawned import on_ranks, under_torchrun
from spawned_light import agreeing, raising, waiting

from hesscli.distributed import ALONE, joined, ranks
from hesscli.distributed.failure import in_words
from hesscli.distributed.greeting import compare, greet
from hesscli.errors import UsageError


@pytest.fixture(scope="module")
def agreed():
    return on_ranks(3, agreeing)


def test_sums_are_the_same_bits_on_every_rank(agreed):
    assert len({found["sum"] for found in agreed}) == 1
    assert np.frombuffer(agreed[0]["sum"]) == pytest.approx([0.6, 3.0], rel=1e-15)


def test_what_one_rank_knows_is_agreed(agreed):
    assert [found["agreed"] for found in agreed] == [0, 0, 0]
    assert [found["least"] for found in agreed] == [8, 8, 8]


def test_rows_are_put_together_and_taken_apart_as_they_were(agreed):
    assert [found["rows"] for found in agreed] == [[3, 1, 2], [3, 0, 2], [1, 0, 0]]
    assert all(found["whole"] and found["sums"] for found in agreed)


def test_one_process_is_alone():
    assert ranks() is ALONE
    with joined(wanted=False) as found:
        assert found is ALONE
    assert ALONE.sum(np.array([1.0])).tolist() == [1.0]


def test_processes_that_nobody_started_are_asked_for(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(UsageError, match=r"^model\.placement: .*RANK is not set; start it with torchrun"),
        joined(wanted=True),
    ):
        pass


def test_the_failure_of_one_rank_is_that_of_all():
    begun = time.monotonic()
    said = on_ranks(3, raising, "usage", expect=2)
    assert time.monotonic() - begun < 60
    assert said[1].strip().endswith("estimator.k: too many; ask for fewer")
    for other in (said[0], said[2]):
        assert "rank 1: estimator.k: too many; ask for fewer" in other


def test_a_bug_and_a_signal_have_words_and_a_code_for_the_other_ranks():
    stopped = KeyboardInterrupt()
    stopped.number = signal.SIGTERM
    assert in_words(TypeError("not this.")) == ("TypeError: not this; this is a bug, HESS_DEBUG=1 shows where", 1)
    assert in_words(stopped) == ("stopped by a signal", 143)


def test_a_rank_that_is_killed_leaves_no_other_waiting():
    said = on_ranks(2, raising, "kill", expect=[1, -signal.SIGKILL])
    assert "ranks: another process has ended" in said[0]


def running(numbers):
    found = []
    for number in numbers:
        with suppress(ProcessLookupError):
            os.kill(number, 0)
            found.append(number)
    return found


def test_processes_whose_launcher_is_killed_end_by_themselves(tmp_path):
    with under_torchrun(tmp_path, 2, waiting, str(tmp_path)) as launcher:
        end = time.monotonic() + 100
        while len(numbers := [int(file.suffix[1:]) for file in tmp_path.glob("[01].*")]) < 2:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert running(numbers) == numbers
        launcher.kill()
        while running(numbers) and time.monotonic() < end:
            time.sleep(0.1)
        assert running(numbers) == []


def test_processes_of_other_versions_are_named(monkeypatch):
    store = dist.HashStore()
    greet(store, 0, {}, device="cpu")
    greet(store, 1, {}, device="cpu")
    compare(store, 2)
    monkeypatch.setattr("hesscli.distributed.greeting.__version__", "0.0.9")
    greet(store, 2, {}, device="cuda")
    with pytest.raises(
        UsageError, match=r"rank 0 has device cpu, hess [0-9.]+, and rank 2 has device cuda, hess 0\.0\.9; "
    ):
        compare(store, 3)


@pytest.fixture
def sent(over_ranks):
    """For each of two ranks: what each product sends, and the sizes of parameters with their padding."""
    return [found["traffic"] for found in over_ranks[2]]


def test_a_difference_sends_what_two_gradients_send(sent):
    for found in sent:
        by_what = found["sent"]
        assert by_what["difference"] == {name: 2 * count for name, count in by_what["gradient"].items()}


def test_a_gradient_sends_the_weights_twice_and_their_gradients_once(sent):
    # What lies outside of layers stays whole from forward to backward: it is sent once.
    for found in sent:
        by_what, whole = found["sent"], found["whole"]
        assert by_what["gradient"]["reduce-scatter"] == whole
        assert whole < by_what["gradient"]["all-gather"] < 2 * whole


def test_a_head_in_chunks_sends_nothing_more(sent):
    for found in sent:
        assert found["sent"]["gradient in chunks"] == found["sent"]["gradient"]


def test_an_exact_product_sends_less_than_a_difference(sent):
    # Weights and vectors forward and back, but for what stays: outside of layers, and where the sweep turns back.
    for found in sent:
        by_what, whole = found["sent"], found["whole"]
        once = 2 * whole - found["outside"] - found["last layer"]
        assert by_what["exact"] == {"all-gather": 2 * once, "reduce-scatter": whole}
        assert by_what["two vectors"] == {"all-gather": 3 * once, "reduce-scatter": 2 * whole}
        assert sum(by_what["exact"].values()) < sum(by_what["difference"].values())


def test_a_layer_is_gathered_while_the_one_before_it_computes_and_sent_while_the_next_does(over_ranks):
    for size in (2, 4):
        for found in over_ranks[size]:
            (first, second), same = found["on the way"]
            # Two layers forward; the last, which has stayed, and the first one back; what lies outside of them.
            assert first == [(0, 0), (0, 0), (0, 1), (0, 1), (0, 1)]
            assert second == [(1, 0), (0, 0), (1, 1), (0, 1), (0, 1)]
            assert same
