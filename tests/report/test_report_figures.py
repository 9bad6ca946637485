"""Figures: a picture, a drawing and a table of each, the same twice, from the report alone."""

import csv
import subprocess
import sys
import warnings
from xml.etree import ElementTree

import known_reports
import numpy as np
import pytest

from hesscli.errors import UsageError
from hesscli.report.figures import draw
from hesscli.report.figures.blocks import baseline
from hesscli.report.figures.rows import labels
from hesscli.report.schema import Spectrum

DENSITY = ["density.png", "density.svg", "density.csv", "density_nodes.csv", "density_outliers.csv", "density_band.csv"]


def files(*names):
    return [f"{name}.{ending}" for name in names for ending in ("png", "svg", "csv")]


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def drawn(report, folder, formats=("png", "svg")):
    """Draw with every warning an error: a missing letter or a layout that does not fit is a fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return draw(report, folder, formats)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (known_reports.density_report, DENSITY),
        (known_reports.topk_report, files("topk")),
        (known_reports.blockdiag_report, files("blockdiag", "coupling")),
        (known_reports.trace_report, files("trace")),
    ],
)
def test_every_command_has_its_figures(make, expected, tmp_path):
    assert drawn(make(), tmp_path) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(expected)
    for path in tmp_path.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000
    for path in tmp_path.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_what_the_report_does_not_hold_is_not_drawn(tmp_path):
    assert drawn(known_reports.trace_report(blocks=[]), tmp_path) == []
    assert drawn(known_reports.report("solve"), tmp_path) == []
    assert drawn(known_reports.density_report(spectrum=None), tmp_path) == []
    assert drawn(known_reports.density_report(), tmp_path, ()) == []


def test_an_unknown_format_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="'bmp' is not a format"):
        draw(known_reports.topk_report(), tmp_path, ["png", "bmp"])


def spectrum(nodes, weights=None, residual=1e-3, dimension=1000):
    weights = weights or [[1 / len(row)] * len(row) for row in nodes]
    return Spectrum(
        nodes=nodes, weights=weights, residuals=[[residual] * len(row) for row in nodes], dimension=dimension
    )


@pytest.mark.parametrize(
    "found",
    [
        spectrum([[0.5]]),
        spectrum([[-0.5]]),
        spectrum([[0.0, 0.0]]),
        spectrum([[1.0, 2.0, 3.0]], residual=0.0, dimension=3),
        spectrum([[-3.0, -2.0, -1.0]] * 3),
        spectrum([[1e-9, 2e-9, 3e-9], [1e-9, 2.5e-9, 3.5e-9]], residual=1e-10),
        spectrum([[-1e6, 1e-6, 1e12]], residual=1e-7, dimension=10**10),
        spectrum([[0.1, 0.2, 0.9], [0.2, 0.3]], residual=0.5),
    ],
)
def test_unusual_spectra_are_drawn(found, tmp_path):
    report = known_reports.density_report(spectrum=found)
    assert "density.png" in drawn(report, tmp_path, ["png"])


def test_unusual_reports_are_drawn(tmp_path):
    unsure = [pair.model_copy(update={"converged": False}) for pair in known_reports.topk_report().eigenpairs]
    drawn(known_reports.topk_report(eigenpairs=unsure), tmp_path, ["png"])
    drawn(known_reports.topk_report(eigenpairs=unsure[-1:]), tmp_path, ["png"])
    drawn(known_reports.topk_report(eigenpairs=unsure * 10), tmp_path, ["png"])
    report = known_reports.blockdiag_report(3)
    report.blocks[1].metrics = {"relative_error": known_reports.metric(None), "cosine": known_reports.metric(0.3)}
    report.blocks[2].name = "model." + "very_long_" * 12 + "name"
    drawn(report, tmp_path, ["png"])
    trace = known_reports.trace_report(2, status="not_converged", status_text="more probes are needed: raise --probes")
    trace.blocks[0].metrics = {}
    drawn(trace, tmp_path, ["png"])


@pytest.mark.parametrize("make", [known_reports.density_report, known_reports.blockdiag_report])
def test_a_drawing_is_the_same_twice(make, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        drawn(make(), tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_a_drawing_has_no_date(tmp_path):
    drawn(known_reports.topk_report(), tmp_path, ["svg"])
    assert "<dc:date>" not in (tmp_path / "topk.svg").read_text()


def test_the_density_table_integrates_to_one_and_shows_bulk_and_outlier(tmp_path):
    drawn(known_reports.density_report(), tmp_path, ["svg"])
    table = rows(tmp_path / "density.csv")
    x, u, mean = (np.array([float(row[key]) for row in table]) for key in ("x", "asinh_x_over_l0", "density_mean"))
    assert np.sum((mean[1:] + mean[:-1]) / 2 * np.diff(u)) == pytest.approx(1, abs=0.01)
    assert (np.abs(x) < 1e-3).sum() > 0.1 * len(x)
    assert x.max() > 500
    assert all(float(row["density_low"]) <= float(row["density_high"]) for row in table)


def test_the_tables_hold_what_the_report_holds(tmp_path):
    report = known_reports.density_report()
    drawn(report, tmp_path, ["svg"])
    nodes = rows(tmp_path / "density_nodes.csv")
    assert [float(row["node"]) for row in nodes] == [node for probe in report.spectrum.nodes for node in probe]
    assert len(rows(tmp_path / "density_band.csv")) == len(report.spectrum.band.x)
    report = known_reports.topk_report()
    drawn(report, tmp_path, ["svg"])
    pairs = rows(tmp_path / "topk.csv")
    assert [float(row["value"]) for row in pairs] == sorted((p.value for p in report.eigenpairs), reverse=True)
    assert [row["converged"] for row in pairs].count("false") == 1
    drawn(known_reports.blockdiag_report(), tmp_path, ["svg"])
    assert len(rows(tmp_path / "blockdiag.csv")) == 32
    assert len(rows(tmp_path / "coupling.csv")) == 32 * 32


def test_an_unconverged_pair_says_so_in_words(tmp_path):
    from matplotlib.text import Text

    from hesscli.report.figures.stems import figure

    words = " ".join(text.get_text() for text in figure(known_reports.topk_report()).findobj(Text))
    assert "NOT\nconverged" in words
    assert "upper end, NOT converged" in words


def test_the_title_says_what_was_measured_and_what_cannot_be_trusted():
    from matplotlib.text import Text

    from hesscli.report.figures.density import figure

    report = known_reports.density_report(status="not_converged", status_text="raise --steps")
    words = " ".join(text.get_text() for text in figure(report).findobj(Text))
    for word in ("org/model-70m@step3000", "Hessian", "32,704 tokens", "float32", "6 probes × 60 steps"):  # noqa: RUF001
        assert word in words
    assert "NOT CONVERGED: raise --steps" in words


def test_the_baseline_is_that_of_a_matrix_without_structure():
    generator = np.random.default_rng(0)
    count, size = 4, 300
    full = generator.normal(size=(count * size, count * size))
    vector = generator.normal(size=count * size)
    image = (full @ vector).reshape(count, size)
    own = np.stack([full[i : i + size, i : i + size] @ vector[i : i + size] for i in range(0, count * size, size)])
    error = np.linalg.norm(image - own, axis=1) / np.linalg.norm(image, axis=1)
    cosine = (image * own).sum(axis=1) / np.linalg.norm(image, axis=1) / np.linalg.norm(own, axis=1)
    # 300 rows a block: one standard error of the mean over four blocks is about 1 / sqrt(1200) = 0.03.
    assert baseline([1] * count) == pytest.approx((error.mean(), cosine.mean()), abs=0.09)


@pytest.mark.parametrize(
    ("names", "short", "prefix"),
    [
        (
            ["model.embed", "model.layers.0", "model.layers.1", "lm_head"],
            ["embed", "layers.0", "layers.1", "lm_head"],
            "model.",
        ),
        (["h.0", "h.1"], ["h.0", "h.1"], ""),
        (["a", "b"], ["a", "b"], ""),
        (["model.layers.0"], ["model.layers.0"], ""),
    ],
)
def test_names_lose_what_they_share(names, short, prefix):
    assert labels(names) == (short, prefix)


def test_reports_are_read_drawn_and_printed_without_torch_and_matplotlib_waits_until_something_is_drawn():
    code = (
        "import sys, hesscli.report, hesscli.report.document, hesscli.report.figures, hesscli.report.terminal;"
        "assert 'matplotlib' not in sys.modules;"
        "sys.path.insert(0, sys.argv[1]); import known_reports;"
        "from hesscli.report.figures import draw; draw(known_reports.topk_report(), sys.argv[2]);"
        "assert 'torch' not in sys.modules; assert 'matplotlib.pyplot' not in sys.modules"
    )
    import pathlib
    import tempfile

    here = str(pathlib.Path(__file__).parent)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", code, here, folder], check=True)


def test_the_baseline_of_unequal_blocks_is_that_of_their_sizes():
    error, cosine = baseline([99, 1])
    assert cosine == pytest.approx((0.99**0.5 + 0.1) / 2)
    assert error == pytest.approx((0.1 + 0.99**0.5) / 2)
