"""A check as others read it: lines in a terminal, JUnit XML, annotations and a summary of GitHub Actions."""

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from hesscli.report.gating.check import Check, Judged, OnInconclusive
from hesscli.report.schema import Gate

_WORDS = {"pass": "PASS", "fail": "FAIL", "inconclusive": "INCONCLUSIVE"}
# What XML 1.0 has no way to hold.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def lines(check: Check) -> Iterator[str]:
    """Yield the verdict of every assertion, and the sum of them."""
    several = len(check.reports) > 1
    for one in check.reports:
        if several:
            yield f"{one.report}  {one.model}"
        for note in one.notes:
            yield f"note: {note}"
        for gate in one.gates:
            yield f"{_WORDS[gate.verdict]}  {gate.expr}"
            yield f"      {gate.text}"
    yield summary(check)


def summary(check: Check) -> str:
    """Return how many assertions hold, in one line."""
    gates = [gate for one in check.reports for gate in one.gates]
    counts = {word: sum(gate.verdict == word for gate in gates) for word in _WORDS}
    parts = [f"{counts['pass']} of {len(gates)} passed"]
    others = (("fail", "failed"), ("inconclusive", "inconclusive"))
    parts += [f"{counts[word]} {said}" for word, said in others if counts[word]]
    return ", ".join(parts)


def junit(check: Check) -> str:
    """Return JUnit XML: a test suite a report, a test case an assertion.

    One that is inconclusive is a failure where the check says so, skipped with its reason where it warns, and else
    passed.
    """
    suites = ElementTree.Element("testsuites", name="hess check")
    totals = _counts([gate for one in check.reports for gate in one.gates], check.on_inconclusive)
    suites.attrib.update(totals)
    for one in check.reports:
        suite = ElementTree.SubElement(suites, "testsuite", name=_xml(f"{one.command} {one.model}"))
        suite.attrib.update(_counts(one.gates, check.on_inconclusive))
        for gate in one.gates:
            case = ElementTree.SubElement(suite, "testcase", classname=_xml(one.report), name=_xml(gate.expr))
            outcome = _outcome(gate, check.on_inconclusive)
            if outcome != "pass":
                tag = "failure" if outcome == "failure" else "skipped"
                found = ElementTree.SubElement(case, tag, message=_xml(gate.text), type=gate.verdict)
                found.text = _xml(f"{gate.expr}: {gate.text}")
            else:
                ElementTree.SubElement(case, "system-out").text = _xml(gate.text)
    ElementTree.indent(suites)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(suites, encoding="unicode")}\n'


def annotations(check: Check) -> Iterator[str]:
    """Yield a workflow command of GitHub Actions for each assertion that did not pass.

    The escapes are those of the runner's toolkit: `%`, line ends, and in properties `:` and `,` too.
    """
    for one in check.reports:
        for gate in one.gates:
            outcome = _outcome(gate, check.on_inconclusive)
            if outcome != "pass":
                level = "error" if outcome == "failure" else "warning"
                title = _escaped(f"hess: {gate.verdict}: {gate.expr}").replace(":", "%3A").replace(",", "%2C")
                yield f"::{level} title={title}::{_escaped(f'{one.model} ({one.report}): {gate.text}')}"


def markdown(check: Check) -> str:
    """Return a table for the summary of a GitHub Actions job."""
    out = [f"### hess check: {check.verdict}", "", "| report | assertion | verdict | figures |", "|---|---|---|---|"]
    for one in check.reports:
        for gate in one.gates:
            cells = (_model(one), _code(gate.expr), _WORDS[gate.verdict].lower(), _cell(gate.text))
            out.append(f"| {' | '.join(cells)} |")
    notes = [f"- {_cell(note)}" for one in check.reports for note in one.notes]
    return "\n".join([*out, "", *notes, ""]) if notes else "\n".join([*out, ""])


def _model(one: Judged) -> str:
    return f"{_cell(one.model)} ({one.command})"


def _outcome(gate: Gate, on_inconclusive: OnInconclusive) -> str:
    if gate.verdict == "inconclusive":
        return {"fail": "failure", "warn": "skipped", "pass": "pass"}[on_inconclusive]
    return "failure" if gate.verdict == "fail" else "pass"


def _counts(gates: list[Gate], on_inconclusive: OnInconclusive) -> dict[str, str]:
    outcomes = [_outcome(gate, on_inconclusive) for gate in gates]
    return {
        "tests": str(len(gates)),
        "failures": str(outcomes.count("failure")),
        "errors": "0",
        "skipped": str(outcomes.count("skipped")),
    }


def _xml(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _code(text: str) -> str:
    """A code span: only the pipe of the table, and the mark that ends it, mean anything in one."""
    return f"`` {' '.join(text.split()).replace('|', chr(92) + '|').replace('``', '` `')} ``"


def _cell(text: str) -> str:
    """A cell of a Markdown table in which nothing is markup."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return plain.replace("|", "\\|").replace("`", "&#96;")
