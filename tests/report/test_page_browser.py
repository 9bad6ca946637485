"""The page in a real browser: it is laid out, its tables sort, and it says and asks nothing."""

import json
import re
import shutil
import subprocess

import known_reports
import pytest

from hesscli.report.page.run import run_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=2000",
]
# Put into a copy of the page whose policy is widened for it: presses heads of columns, writes down what it finds.
PROBE = """
const order = (table) => [...table.tBodies[0].rows].map((row) => row.cells[0].firstChild.textContent);
const said = { sections: {}, loaded: performance.getEntriesByType("resource").map((e) => e.name) };
const table = document.querySelector("#metrics table");
const heads = [...table.querySelectorAll("thead button")];
const press = (name) => heads.find((head) => head.textContent.startsWith(name)).click();
said.before = order(table);
press("value"); said.falling = order(table);
press("value"); said.rising = order(table);
press("metric"); said.named = order(table);
said.sort = [...table.tHead.rows[0].cells].map((cell) => cell.getAttribute("aria-sort"));
for (const section of document.querySelectorAll("section, figure svg")) {
  const box = section.getBoundingClientRect();
  said.sections[section.id || "drawing"] = [box.width, box.height];
}
said.sideways = document.documentElement.scrollWidth - document.documentElement.clientWidth;
said.ink = getComputedStyle(document.body).color;
const out = document.createElement("pre");
out.id = "said"; out.textContent = JSON.stringify(said); document.body.append(out);
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


def browse(tmp_path, text, *flags):
    """What the probe wrote down, and what the browser's console said."""
    page = tmp_path / "page.html"
    widened, count = re.subn(r"script-src &#39;[^&]*&#39;", "script-src 'unsafe-inline'", text)
    assert count == 1
    page.write_text(widened.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [CHROMIUM, *FLAGS, *flags, profile, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (said,) = re.findall(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(said.replace("&amp;", "&")), console


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1200, 0), (420, 1)])
def test_a_page_is_laid_out_and_sorts_in_a_browser(tmp_path, width, dark):
    report = known_reports.density_report()
    # Blink's values: 0 is dark, 1 is light.
    flags = [f"--window-size={width},1600", f"--blink-settings=preferredColorScheme={1 - dark}"]
    said, console = browse(tmp_path, run_page(report), *flags)
    assert console == []
    assert said["loaded"] == []
    assert said["before"] == list(report.metrics)
    valued = sorted((m.value, name) for name, m in report.metrics.items() if m.value is not None)
    assert said["rising"] == [name for _, name in valued] + ["effective_rank"]
    assert said["falling"] == [name for _, name in reversed(valued)] + ["effective_rank"]
    assert said["named"] == sorted(report.metrics)
    assert [sort for sort in said["sort"] if sort] == ["ascending"]
    assert {"figures", "metrics", "trust", "measured", "cost", "recipe", "drawing"} <= set(said["sections"])
    for wide, high in said["sections"].values():
        assert wide > 300
        assert high > 60
    assert said["sideways"] == 0  # only tables and drawings scroll, within their boxes
    light = int(re.findall(r"\d+", said["ink"])[0])
    assert light > 200 if dark else light < 60


@pytest.mark.slow
def test_the_policy_of_a_page_lets_its_own_style_and_script_through_and_no_other(tmp_path):
    page = tmp_path / "page.html"
    text = run_page(known_reports.trace_report(3))
    added = "<script>document.title = 'broken in'</script><img src='https://example.invalid/x.png'></body>"
    page.write_text(text.replace("</body>", added), encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "<title>broken in" not in done.stdout
    assert done.stdout.count('<button type="button">') > 8
    refused = [line for line in done.stderr.splitlines() if "Content Security Policy" in line]
    assert len(refused) == 2
