"""`--kernel-width`: a picture is drawn again without a product, and a run is not another one for it."""

import csv
import json
from pathlib import Path

import pytest

from hesscli.report.document import read_report

pytestmark = pytest.mark.usefixtures("small_demo")
SMALL = ["demo", "-L", "2", "--max-length", "16", "--params", "*norm*", "--probes", "2", "--steps", "6"]


def curve(folder):
    with (Path(folder) / "density.csv").open() as file:
        return [row["density_mean"] for row in csv.DictReader(file)]


def test_an_equal_run_is_drawn_again_and_not_measured_again(hess):
    first = json.loads(hess("density", *SMALL, "--plots", "svg", "--json").out)
    path = Path(hess("density", *SMALL, "-q").out.strip())
    before = curve(path.parent)
    ended = hess("density", *SMALL, "--kernel-width", "2%", "--json")
    again = json.loads(ended.out)
    assert "drawn again with density.kernel_width 2%; nothing was measured" in ended.err
    assert again["run_id"] == first["run_id"]
    assert again["created"] == first["created"]
    assert again["metrics"] == first["metrics"]
    nodes = [node for row in again["spectrum"]["nodes"] for node in row]
    assert again["spectrum"]["kernel_width"] == pytest.approx(0.02 * (max(nodes) - min(nodes)))
    wide = curve(path.parent)
    assert wide != before
    assert "kernel_width: 2%" in (path.parent / "recipe.yaml").read_text()
    assert read_report(path).spectrum.kernel_width == again["spectrum"]["kernel_width"]
    assert "drawn again" not in hess("density", *SMALL, "--kernel-width", "2%", "-q").err
    assert "drawn again" not in hess("run", str(path.parent / "recipe.yaml"), "-q").err
    assert {p.name for p in path.parent.iterdir()} >= {"density.svg", "density.csv", "report.json", "journal.jsonl"}
    assert not list(path.parent.glob(".*"))
    hess("density", *SMALL, "-q")  # as the recipe says: auto
    assert curve(path.parent) == before


def test_plot_draws_a_report_with_another_kernel_and_leaves_the_report(hess, tmp_path):
    path = Path(hess("density", *SMALL, "--plots", "none", "-q").out.strip())
    kept = path.read_bytes()
    curves = []
    for width in ([], ["--kernel-width", "0.05"], ["--kernel-width", "10%"], ["--kernel-width", "auto"]):
        ended = hess("plot", str(path), *width, "--plots", "svg", "-o", str(tmp_path / "drawn"))
        assert ended.code == 0, ended.err
        curves.append(curve(tmp_path / "drawn"))
    assert curves[0] == curves[3]
    assert len({tuple(c) for c in curves}) == 3
    assert path.read_bytes() == kept


@pytest.mark.parametrize("width", ["0", "-1", "wide", "%", "0%", "nan", "1e999"])
def test_a_width_that_is_none_is_refused_in_the_same_words_everywhere(hess, tmp_path, width):
    path = hess("density", *SMALL, "--plots", "none", "-q").out.strip()
    for words in (["density", *SMALL, f"--kernel-width={width}"], ["plot", path, f"--kernel-width={width}"]):
        ended = hess(*words)
        assert ended.code == 2
        assert "kernel_width: " in ended.err
        assert "such as 0.05, or a share of their range such as 1%" in ended.err


def test_what_has_no_density_has_no_kernel(hess):
    path = hess("trace", *SMALL[:7], "--probes", "4", "--steps", "4", "--plots", "none", "-q").out.strip()
    ended = hess("plot", path, "--kernel-width", "1%")
    assert ended.code == 2
    assert "has no density to draw; leave --kernel-width out" in ended.err
    ended = hess("run", "topk-sharpness", "density.kernel_width=1%")
    assert "density.kernel_width: is not read by topk" in ended.err
