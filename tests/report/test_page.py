"""The page of a run or a sweep: nothing from elsewhere, nothing of a report's text as markup, all that was measured."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import known_reports
import pytest

from hesscli.report.document import write_report
from hesscli.report.page.dark import contrast, in_the_dark
from hesscli.report.page.links import address
from hesscli.report.page.run import run_page
from hesscli.report.page.sweep import sweep_page
from hesscli.report.schema import Gate, Metric, Warning_
from hesscli.report.sweep import Axis, Cell, Manifest

EVIL = "<script>alert(1)</script>\"'&--><img src=x onerror=alert(2)>"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """A page as a browser would see its elements; fails where an element is not closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words, self.sections = [], [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"]
            self.sections[self.section] = ""

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)
            if self.sections and "section" in self.open:
                self.sections[self.section] += data

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


REPORTS = {
    "density": known_reports.density_report,
    "topk": known_reports.topk_report,
    "blockdiag": lambda **changes: known_reports.blockdiag_report(5, **changes),
    "trace": known_reports.trace_report,
}


@pytest.fixture(scope="module", params=REPORTS)
def page(request):
    report = REPORTS[request.param](gates=[Gate(expr="trace < 5", verdict="fail", text="it is 910")], verdict="fail")
    commands = {"From the command line": "hess trace demo"}
    text = run_page(report, recipe="probe: trace\n", commands=commands, files={"trace.csv": "./trace.csv"})
    return report, text, Page(text)


def test_a_page_says_every_metric_with_its_interval_and_each_part_of_its_error(page):
    report, _, found = page
    words = found.sections["metrics"]
    for name, metric in report.metrics.items():
        assert name in words
        assert metric.value is not None or metric.reason in words
    assert "95 %: " in words


def test_a_page_has_the_parts_of_its_report(page):
    report, _, found = page
    expected = {"figures", "metrics", "trust", "measured", "cost", "recipe", "gates", "files"}
    expected |= {"eigenpairs"} if report.eigenpairs else set()
    expected |= {"blocks"} if report.blocks else set()
    expected |= {"warnings"} if report.warnings else set()
    assert set(found.sections) == expected
    assert {a["href"][1:] for a in found.all("a") if a["href"].startswith("#")} == {*expected, "content"}
    assert "it is 910" in found.sections["gates"]
    assert "hess trace demo" in found.sections["recipe"]
    assert found.text.count("org/model-70m@step3000") >= 2


def test_a_page_loads_nothing_and_its_policy_allows_nothing_but_its_own(page):
    _, text, found = page
    policy = next(m["content"] for m in found.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    for tag, kind in (("style", "style-src"), ("script", "script-src")):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag, attrs in found.elements:
        assert "style" not in attrs, tag  # the policy would drop it
        assert not [key for key in attrs if key.startswith("on")]
        target = attrs.get("src") or attrs.get("href") or ""
        assert target.startswith(("#", "./", "data:")) or not target
    assert not re.findall(r"url\((?!#)", text)
    assert "http://" not in text
    assert "https://" not in text


def test_names_are_unique_and_references_lead_somewhere(page):
    _, text, found = page
    ids = [attrs["id"] for _, attrs in found.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    assert used <= set(ids)
    labels = {attrs["aria-labelledby"] for _, attrs in found.elements if "aria-labelledby" in attrs}
    assert labels <= set(ids)


def test_a_drawing_has_words_for_who_does_not_see_it(page):
    _, _, found = page
    drawings = found.all("svg")
    assert drawings
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in drawings)


def test_no_text_of_a_report_becomes_markup():
    gate = Gate(expr=EVIL, verdict="fail", text=EVIL)
    report = known_reports.blockdiag_report(3, warnings=[Warning_(code=EVIL, text=EVIL)], gates=[gate], verdict="fail")
    report.model.id = report.model.revision = report.data.id = report.model.class_name = EVIL
    report.blocks[0].name = report.coupling.blocks[0] = EVIL
    report.environment[EVIL] = EVIL
    report.metrics["cosine"].reason = EVIL
    report.status, report.status_text = "not_converged", EVIL
    text = run_page(report, recipe=EVIL, commands={EVIL: EVIL}, files={EVIL: "./x"})
    found = Page(text)
    assert len(found.all("script")) == 1
    assert not found.all("img")
    assert "alert(1)" not in re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[0]
    assert found.text.count(EVIL) > 10


def test_what_cannot_be_trusted_shows_no_figure_in_large_letters():
    found = Page(run_page(known_reports.topk_report(status="untrustworthy", status_text="not symmetric")))
    assert "not trustworthy" in found.text
    assert "These figures cannot be trusted: not symmetric." in found.text
    assert not [attrs for attrs in found.all("dl") if attrs["class"] == "cards"]


def test_numbers_are_sorted_by_their_value_and_not_by_their_letters():
    found = Page(run_page(known_reports.trace_report(4)))
    orders = [float(attrs["data-order"]) for attrs in found.all("td") if attrs.get("data-order")]
    assert 910.0 in orders
    assert pytest.approx(40 * -0.98999, abs=1e-3) in orders


def test_a_value_with_one_long_arm_is_not_rounded_away():
    report = known_reports.trace_report(2)
    report.metrics["trace"] = Metric(value=49.2, ci=(46.7, 28_000.0))
    assert "49.2 +28000 −2.5" in Page(run_page(report)).sections["metrics"]  # noqa: RUF001 - a minus sign


def manifest_of(folder, *reports, **cells):
    """A sweep over revisions, whose runs lie where a manifest expects them."""
    file = folder / "sweeps" / "steps-1234" / "manifest.json"
    file.parent.mkdir(parents=True)
    found = []
    for report in reports:
        place = f"m/{report.model.revision}/{report.command}-{report.run_id}"
        (folder / place).mkdir(parents=True)
        write_report(report, folder / place / "report.json")
        values = {"model.revision": report.model.revision}
        found.append(Cell(values=values, status="done", report_status=report.status, folder=place, seconds=2.0))
    found.append(Cell(values={"model.revision": "step9"}, status="failed", error=f"model: {EVIL}", exit_code=6))
    revisions = [cell.values["model.revision"] for cell in found]
    manifest = Manifest(
        name="steps",
        sweep_id="1234",
        probe="trace",
        created="2026-01-02T03:04:05Z",
        updated="2026-01-02T03:05:05Z",
        axes=[Axis(key="model.revision", values=revisions)],
        cells=found,
    )
    return manifest, file


def step(revision, value):
    report = known_reports.trace_report(2, run_id=revision)
    report.model.revision = revision
    report.metrics["trace"] = known_reports.metric(value, 3.0, probe=1.5)
    return report


def test_the_page_of_a_sweep_has_a_row_for_each_cell_and_a_link_to_each_run(tmp_path):
    manifest, file = manifest_of(tmp_path, step("step2", 71.0), step("step10", 43.0))
    target = file.with_name("report.html")
    (tmp_path / "m/step10/trace-step10/report.html").write_text("")
    found = Page(sweep_page(manifest, file, target, files={"manifest.json": "./manifest.json"}))
    assert "2 of 3 cells are done; 1 failed." in found.text
    words = found.sections["cells"]
    assert "71.0 ± 3.0" in words
    assert "43.0 ± 3.0" in words
    assert EVIL in found.sections["failures"]
    assert "(exit 6)" in found.sections["failures"]
    links = [a["href"] for a in found.all("a")]
    assert "../../m/step2/trace-step2/report.json" in links
    assert "../../m/step10/trace-step10/report.html" in links
    for link in links:
        assert link.startswith("#") or link == "./manifest.json" or (file.parent / link).is_file()
    assert len(found.all("svg")) == 1


def test_the_page_of_a_sweep_that_is_sent_away_has_no_links(tmp_path):
    manifest, file = manifest_of(tmp_path, step("step2", 71.0))
    found = Page(sweep_page(manifest, file, tmp_path / "away.html", files={}))
    assert all(a["href"].startswith("#") for a in found.all("a"))


def test_an_address_is_escaped_and_never_reads_as_a_scheme(tmp_path):
    assert address(tmp_path / "javascript:alert(1)", tmp_path / "p.html") == "./javascript%3Aalert%281%29"
    assert address(tmp_path / "a b#c?.csv", tmp_path / "p.html") == "./a%20b%23c%3F.csv"
    assert address(tmp_path / "x" / "r.json", tmp_path / "y" / "p.html") == "../x/r.json"


@pytest.mark.parametrize("colour", ["#440154", "#0072b2", "#d55e00", "#1a1a1a", "#000000", "#555555", "#31688e"])
def test_lines_and_words_show_in_the_dark(colour):
    shown = in_the_dark(colour)
    assert contrast(tuple(int(shown[i : i + 2], 16) / 255 for i in (1, 3, 5))) >= 4.5


@pytest.mark.parametrize("colour", ["#e4e4e4", "#f3f3f3"])
def test_rules_and_stripes_stay_in_the_background_in_the_dark(colour):
    shown = in_the_dark(colour)
    assert contrast(tuple(int(shown[i : i + 2], 16) / 255 for i in (1, 3, 5))) < 1.6


def test_contrast_is_that_of_the_standard():
    # White on #181c21 by the formula of WCAG 2.2: luminance .0113, so 1.05 / .0613.
    assert contrast((1.0, 1.0, 1.0)) == pytest.approx(17.13, abs=0.1)
    assert contrast((24 / 255, 28 / 255, 33 / 255)) == pytest.approx(1)
