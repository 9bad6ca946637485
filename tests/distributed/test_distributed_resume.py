"""Runs and sweeps over ranks that are killed or fail: they go on, and end with the same report."""

import json
import random
import signal
from contextlib import suppress

import pytest
from run.test_resume import without_times
from spawned import free_port, on_ranks
from spawned_attempts import attempts, make_place, recipe_in

from hesscli.distributed import ALONE
from hesscli.errors import UsageError
from hesscli.linalg.space import ParameterSpace
from hesscli.report.sweep import read_manifest
from hesscli.run.journal import read_journal
from hesscli.run.session import run
from hesscli.run.storage.product_log import ProductLog
from hesscli.run.storage.state import State

KILLED = -signal.SIGKILL
WRITING = ("half", "after")


def harms(seed):
    """Kills of one rank, of the other, and of both: after so many further requests, and when.

    Both come to the same request: a rank that is gone keeps the other from going further.
    """
    draw, found = random.Random(seed), []
    for who, moments in ([1], ("before", "half", "after")), ([0], ("before", "half", "after")), ([0, 1], WRITING):
        count = draw.randint(2, 3)
        found.append({rank: (count, draw.choice(moments)) for rank in who})
    return found


HARMS = harms(6)


class Cut(BaseException):
    pass


def made_by_one_process(folder, count=None):
    """A run by one process, cut off after so many requests; its notes."""
    add, left, notes = ProductLog.add, [count], []

    def counted(self, *given):
        add(self, *given)
        left[0] -= 1
        if left[0] == 0:
            raise Cut

    recipe = recipe_in(folder)
    with pytest.MonkeyPatch.context() as patch:
        if count is not None:
            patch.setattr(ProductLog, "add", counted)
        with suppress(Cut):
            run(recipe, force=False, resume=True, on_event=lambda event: notes.append(getattr(event, "text", "")))
    return notes


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each attempt came to, by rank."""
    place = tmp_path_factory.mktemp("attempts")
    make_place(place)
    made_by_one_process(place / "whole", 2)
    made = {
        "whole": (2, "measured", (str(place / "whole"),)),
        **{f"kill {i}": (2, "measured", (str(place / "killed"), harm)) for i, harm in enumerate(HARMS)},
        "last": (2, "measured", (str(place / "killed"),)),
        "full": (2, "measured", (str(place / "full"), {1: (4, "full")})),
        "sweep": (2, "swept", (str(place / "swept"), {1: (4, "too-large")})),
        "retried": (2, "swept", (str(place / "swept"), None, True, (1, 3))),
        "lost": (2, "swept", (str(place / "lost"), {1: (3, "before")})),
        "four": (4, "measured", (str(place / "four"),)),
        "four killed": (4, "measured", (str(place / "four killed"), {1: (3, "half"), 3: (3, "after")})),
        "four again": (4, "measured", (str(place / "four killed"),)),
    }
    every = on_ranks(4, attempts, [free_port() for _ in made], list(made.values()), join=False, seconds=400)
    by_name = {name: [rank[i] for rank in every[:count]] for i, (name, (count, *_)) in enumerate(made.items())}
    return by_name | {"place": place}


def ended(found, name):
    """The codes of an attempt, and what each rank returned or said."""
    return tuple(zip(*found[name], strict=True))


def report_in(folder):
    (report,) = folder.glob("tiny/*/*/report.json")
    return report


def test_killed_at_random_products_two_ranks_end_with_the_same_report(found):
    for i, harm in enumerate(HARMS):
        assert [code == KILLED for code in ended(found, f"kill {i}")[0]] == [rank in harm for rank in (0, 1)]
    assert ended(found, "last")[0] == (0, 0)
    report = report_in(found["place"] / "killed")
    assert without_times(report) == without_times(report_in(found["place"] / "whole"))
    assert [path.name for path in report.parent.parent.iterdir()] == [report.parent.name]
    assert not (report.parent / "state").exists()


def test_what_every_rank_has_is_not_made_again(found):
    _, notes = ended(found, "last")
    assert "going on with a run that was cut off; --no-resume starts again" in notes[0]
    lines = read_journal(report_in(found["place"] / "killed").parent / "journal.jsonl")
    last = max(i for i, line in enumerate(lines) if line["kind"] == "started")
    replayed = [line["replayed"] for line in lines[last:] if line["kind"] == "product"]
    kept = [min(count - (moment != "after") for count, moment in harm.values()) for harm in HARMS]
    assert sum(replayed) == sum(kept)
    assert replayed == sorted(replayed, reverse=True)


def test_four_ranks_of_which_two_are_killed_go_on_with_the_products_that_all_have(found):
    assert [code == KILLED for code in ended(found, "four killed")[0]] == [False, True, False, True]
    codes, notes = ended(found, "four again")
    assert codes == ended(found, "four")[0] == (0, 0, 0, 0)
    assert "going on with a run that was cut off; --no-resume starts again" in notes[0]
    report = report_in(found["place"] / "four killed")
    assert without_times(report) == without_times(report_in(found["place"] / "four"))
    lines = read_journal(report.parent / "journal.jsonl")
    assert sum(line.get("replayed") is True for line in lines if line["kind"] == "product") == 2


def test_products_of_another_number_of_processes_are_not_read_and_not_lost(found):
    _, notes = ended(found, "whole")
    assert any("by one process was cut off, which 2 under torchrun cannot go on from" in note for note in notes[0])
    code, said = found["full"][0]
    assert code == 2
    assert said.startswith("rank 1: output.dir: the disk is full; give another folder with -o")
    state = next((found["place"] / "full").glob("tiny/*/*.part/state"))
    kept = sorted(path.name for path in state.glob("*.safetensors"))
    assert kept == [f"{i:06d}-rank{rank}of2.safetensors" for i in range(3) for rank in (0, 1)]
    notes = made_by_one_process(found["place"] / "full", 2)
    assert any("by 2 processes was cut off, which one process cannot go on from" in note for note in notes)
    assert {path.name for path in state.glob("*.safetensors")} == {*kept, "000000.safetensors", "000001.safetensors"}
    made_by_one_process(found["place"] / "full")
    report = json.loads(report_in(found["place"] / "full").read_text())
    assert (report["operator"]["placement"], report["status"]) == ("single", "not_converged")
    assert not list((found["place"] / "full").rglob("*of2*"))


def test_a_cell_that_fails_on_one_rank_has_failed_and_the_others_go_on(found):
    codes, (cells, failures) = ended(found, "sweep")
    assert codes == (0, 0)
    assert [(status, code) for status, _, code in cells] == [("failed", 5), ("failed", 6), ("done", None)], cells
    assert cells[0][1].startswith("rank 1: memory: the product does not fit; lower --max-length")
    assert cells[1][1].startswith("model: ")
    assert [failure.partition(":")[0] for failure in failures] == ["memory", "rank 0"]
    assert {path.name for path in (found["place"] / "swept" / "sweeps").glob("*/*") if path.is_file()} == {
        *("manifest.json", "results.csv", "results.jsonl", "results.md")
    }


def test_a_failed_cell_of_a_shard_is_tried_again_from_its_products(found):
    codes, (cells, failures) = ended(found, "retried")
    assert (codes, failures) == ((0, 0), [])
    assert [status for status, _, _ in cells] == ["done", "failed", "done"]
    (report,) = (found["place"] / "swept").glob("tiny/*/*/report.json")
    lines = read_journal(report.parent / "journal.jsonl")
    assert [line["resumed"] for line in lines if line["kind"] == "started"] == [False, True]
    assert sum(line.get("replayed") is True for line in lines if line["kind"] == "product") == 3


def test_a_rank_that_is_killed_ends_the_sweep_and_no_cell_has_failed(found):
    codes, said = ended(found, "lost")
    assert codes == (1, KILLED)
    assert said[0].startswith("ranks: another process has ended")
    (manifest,) = (found["place"] / "lost" / "sweeps").glob("*/manifest.json")
    assert [cell.status for cell in read_manifest(manifest).cells] == ["missing"] * 3


def test_a_machine_that_cannot_have_the_folder_of_products_says_so(tmp_path):
    (tmp_path / "out").touch()
    log = ProductLog(State(tmp_path / "out" / "state", ALONE), ParameterSpace([], []))
    with pytest.raises(
        UsageError, match=r"^output\.dir: .*/out/state' cannot be made .*; give a folder with -o that every"
    ):
        log.add([], [], {})
