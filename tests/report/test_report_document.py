"""Reports on disk: nothing lost, nothing half-written, every fault one line."""

import json
import os

import known_reports
import pytest

from hesscli.errors import UntrustworthyError, UsageError
from hesscli.report.document import dumps, read_report, write_report
from hesscli.report.files import write_whole

ALL = [
    known_reports.density_report,
    known_reports.topk_report,
    known_reports.blockdiag_report,
    known_reports.trace_report,
]


@pytest.mark.parametrize("make", ALL)
def test_a_report_comes_back_as_it_was_written(make, tmp_path):
    report = make()
    write_report(report, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == report


def test_the_file_is_plain_json_with_sorted_keys_and_the_field_names_of_the_contract(tmp_path):
    report = known_reports.density_report()
    text = dumps(report)
    content = json.loads(text)
    assert text.endswith("}\n")
    assert list(content) == sorted(content)
    assert content["schema"] == "hess.report/1"
    assert content["model"]["class"] == "Qwen3ForCausalLM"
    assert content == report.model_dump(mode="json", by_alias=True)


def test_lists_of_numbers_are_filled_and_no_line_is_very_long():
    lines = dumps(known_reports.density_report()).splitlines()
    assert max(map(len, lines)) <= 112
    assert len(lines) < 1500


def test_writing_is_the_same_twice():
    assert dumps(known_reports.blockdiag_report()) == dumps(known_reports.blockdiag_report())


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_refused_by_its_path(number, tmp_path):
    report = known_reports.topk_report()
    report.metrics["lambda_max"].value = number
    with pytest.raises(UntrustworthyError, match=r"metrics\.lambda_max\.value"):
        write_report(report, tmp_path / "report.json")
    assert os.listdir(tmp_path) == []
    free = known_reports.topk_report(estimator={"probes": 1, "nested": [{"tolerance": number}]})
    with pytest.raises(UntrustworthyError, match=r"estimator\.nested\.0\.tolerance"):
        dumps(free)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_report_and_nothing_beside_it(step, tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_report(known_reports.trace_report(), path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        patch.setattr("pathlib.Path.replace", fail)
        with pytest.raises(UsageError, match="No space left"):
            write_report(known_reports.topk_report(), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_report_is_seen_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    seen = []
    real = os.fsync

    def look(descriptor):
        seen.append(path.exists())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    write_report(known_reports.trace_report(), path)
    assert seen == [False]
    assert path.exists()


def test_a_link_is_followed_and_a_stream_is_written_to_and_not_replaced(tmp_path):
    file, link, pipe = tmp_path / "real.json", tmp_path / "link.json", tmp_path / "pipe"
    file.write_text("old")
    link.symlink_to(file)
    write_whole("new", link, field="report")
    assert link.is_symlink()
    assert file.read_text() == "new"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole("through", pipe, field="report")
    assert os.read(reader, 99) == b"through"
    os.close(reader)
    assert sorted(os.listdir(tmp_path)) == ["link.json", "pipe", "real.json"]


def test_writing_into_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UsageError) as caught:
        write_report(known_reports.trace_report(), tmp_path / "no" / "report.json")
    assert_one_line(caught.value)


def change(path, *keys, to):
    """Set one key of a written report; `...` takes it away."""
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    if to is ...:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = to
    path.write_text(json.dumps(content))


VIOLATIONS = [
    (("schema",), "hess.report/2", "schema 'hess.report/2'"),
    (("schema",), ..., "no schema version"),
    (("metrics", "trace", "value"), "many", r"metrics\.trace\.value"),
    (("metrics", "trace", "value"), None, r"metrics\.trace: .*needs a reason"),
    (("metrics", "trace", "sigma"), 1.0, r"metrics\.trace\.sigma"),
    (("model", "num_parameters"), ..., r"model\.num_parameters"),
    (("spectrum", "weights"), [[1.0]], "same shape"),
    (("spectrum", "nodes"), [], "at least one probe"),
    (("spectrum", "band", "low"), [0.0], "same number of points"),
    (("command",), "dance", "command"),
]


@pytest.mark.parametrize(("keys", "to", "words"), VIOLATIONS)
def test_a_field_at_fault_is_named(keys, to, words, tmp_path):
    path = tmp_path / "report.json"
    write_report(known_reports.density_report(), path)
    change(path, *keys, to=to)
    with pytest.raises(UsageError, match=words) as caught:
        read_report(path)
    assert_one_line(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b'{"schema": "hess.report/1",', "not JSON"),
        (b'{"schema": "hess.report/1", "seconds": NaN}', "NaN"),
        (b"[]", "no JSON object"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_file_that_is_no_report_is_one_line(content, words, tmp_path):
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=words) as caught:
        read_report(path)
    assert_one_line(caught.value)


def test_a_missing_file_and_a_folder_are_one_line(tmp_path):
    with pytest.raises(UsageError, match="no such file") as missing:
        read_report(tmp_path / "report.json")
    with pytest.raises(UsageError, match="is a folder") as folder:
        read_report(tmp_path)
    assert_one_line(missing.value)
    assert_one_line(folder.value)


def assert_one_line(error):
    assert error.exit_code == 2
    assert "\n" not in str(error)
    assert len(str(error)) < 400
    assert error.remedy
