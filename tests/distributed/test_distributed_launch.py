"""Runs and sweeps of three processes that are stopped by a signal, fail or are judged, as the shell sees it."""

import json
import signal
from pathlib import Path

import pytest
from reports import differences
from run.test_resume import without_times
from spawned import in_shells
from spawned_attempts import make_place

from hesscli.report.sweep import read_manifest

RUN = "topk tiny -d rows.jsonl -L 2 --params *layers.0*norm* --k 1 --which largest --steps 6 --plots none"
SWEEP = (
    "sweep tiny other --probe topk data.id=rows.jsonl data.limit=2 "
    "operator.params=['*layers.0*norm*'] estimator.k=1 estimator.which=largest estimator.steps=6 output.plots=none"
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """By name: (exit code, stdout, stderr, processes that are left)."""
    place = tmp_path_factory.mktemp("launches")
    make_place(place)
    run, sweep = [*RUN.split(), "-o", f"{place}/out"], [*SWEEP.split(), "-o", f"{place}/swept"]
    calls = {
        "terminated": (run, {"at": (1, 2, "waits"), "sent": signal.SIGTERM}),
        "interrupted": (run, {"at": (0, 2, "waits"), "sent": signal.SIGINT}),
        "broken": (run, {"at": (2, 2, "faulty")}),
        "killed": (run, {"at": (2, 2, "dies")}),
        "judged": ([*run, "--assert", "lambda_max < 0", "-q", "--log-to", "tensorboard"], {}),
        "whole": ([*RUN.split(), "-o", f"{place}/whole", "--json"], {}),
        "alone": ([*RUN.split(), "-o", f"{place}/alone", "--json"], {"processes": 1}),
        "sweep stopped": (sweep, {"at": (1, 15, "waits"), "sent": signal.SIGTERM, "processes": 2}),
        "swept": ([*sweep, "-q"], {"processes": 2}),
        "different": (run, {"more": ["--seed", "7", "--no-resume"]}),
        "mistyped": (run, {"more": ["--nonsense"], "machines": 2, "processes": 2}),
        "looked at": (["ls", str(place / "whole"), "-q"], {"processes": 2}),
    }
    return in_shells(place, calls) | {"place": place}


def test_a_signal_to_the_launcher_ends_all_and_the_run_goes_on(found):
    codes = {name: found[name][0] for name in ("terminated", "interrupted", "broken", "killed", "judged", "whole")}
    assert codes == {"terminated": 143, "interrupted": 130, "broken": 2, "killed": 137, "judged": 3, "whole": 0}
    for name, word in (("terminated", "terminated"), ("interrupted", "interrupted")):
        _, out, said, left = found[name]
        assert (out, left) == ("", [])
        assert said.splitlines()[-1].startswith(f"{word}: no report was written; the same command goes on")
    assert found["killed"][2].splitlines()[-1] == "error: ranks: rank 2 was ended by SIGKILL; the same command goes on"


def test_three_processes_of_which_one_has_no_row_give_the_report_of_one(found):
    one, three = (json.loads(found[name][1]) for name in ("alone", "whole"))
    assert differences(one, three) == []
    assert (one["data"]["sequences"], three["environment"]["processes"]) == (2, "3")


def test_faulty_data_on_one_rank_is_one_line(found):
    _, out, said, left = found["broken"]
    assert (out, left) == ("", [])
    assert [line for line in said.splitlines() if line.startswith("error")] == [
        "error: rank 2: data.column: row 7 is broken; mend it"
    ]


def test_stopped_four_times_the_report_is_that_of_an_undisturbed_run(found):
    _, out, _, left = found["judged"]
    assert left == []
    (line,) = out.splitlines()
    one, other = without_times(line), without_times(next((found["place"] / "whole").rglob("report.json")))
    assert (one.pop("verdict"), other.pop("verdict")) == ("fail", None)
    assert [gate["verdict"] for gate in one.pop("gates")] == ["fail"]
    assert one | {"gates": []} == other
    journal = [json.loads(text) for text in next((found["place"] / "out").rglob("journal.jsonl")).open()]
    assert [part["attempt"] for part in journal if part["kind"] == "started"] == [1, 2, 3, 4, 5]
    assert not list((found["place"] / "out").rglob("*.part"))


def test_a_sweep_that_is_stopped_keeps_its_cells_and_goes_on(found):
    assert (found["sweep stopped"][0], found["swept"][0]) == (143, 0)
    manifest = read_manifest(found["swept"][1].strip())
    assert [cell.status for cell in manifest.cells] == ["done", "done"]
    folders = [found["place"] / "swept" / cell.folder for cell in manifest.cells]
    kinds = [[json.loads(text)["kind"] for text in (folder / "journal.jsonl").open()] for folder in folders]
    assert [own.count("started") for own in kinds] == [1, 2]


def test_one_process_logs_to_a_tracker_and_judges(found):
    _, out, said, _ = found["judged"]
    assert "--log-to" not in said  # as a warning would
    assert [path.parent for path in (found["place"] / "out").rglob("*tfevents*")] == [Path(out.strip()).parent]


def test_one_process_does_what_is_not_shared(found):
    code, out, _, left = found["looked at"]
    assert (code, left, len(out.splitlines())) == (0, [], 1)


def test_what_processes_are_asked_for_must_be_the_same(found):
    code, out, said, left = found["different"]
    assert (code, out, left) == (2, "", [])
    what = "rank 0 is to measure with --no-resume false, estimator.seed 0, and rank 2 with --no-resume true, "
    assert said == f"error: ranks: {what}estimator.seed 7; give every process the same command\n"


def test_a_process_that_never_comes_says_why_to_those_on_other_machines(found):
    code, out, said, left = found["mistyped"]
    assert (code, out, left) == (2, "", [])
    assert said == "error: rank 1: --nonsense: hess topk has no such option; did you mean --no-resume?\n"
