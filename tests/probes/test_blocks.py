"""Norms of blocks with intervals that cover, the share of each block, and where the top curvature lives."""

import numpy as np
import pytest
from simulation import LEAST, SPECTRA, WIDEST, operator_with, simulate

from hesscli.curvature.selection import partition_by_globs
from hesscli.errors import UsageError
from hesscli.events import ignore
from hesscli.linalg.statistics import Estimate
from hesscli.probes.blockdiag import BlockDiagonal, blockdiag
from hesscli.probes.top_curvature import top_curvature
from hesscli.recipe.blocks import load_blocks
from hesscli.run.figures.blocks import top_block_curvature

BLOCKS = [frozenset({0}), frozenset({1, 2})]
SIZES = [100, 40, 160]


def squares_of(operator):
    ends = np.cumsum([0, 100, 200])
    table = operator.matrix**2
    return np.array([[table[ends[a] : ends[a + 1], ends[b] : ends[b + 1]].sum() for b in (0, 1)] for a in (0, 1)])


@pytest.mark.parametrize("spectrum", ["language model", "flat"])
def test_intervals_of_block_norms_cover_and_are_not_idly_wide(spectrum):
    operator = operator_with(SPECTRA[spectrum], sizes=SIZES)
    squares = squares_of(operator)
    truth_cells = np.sqrt(squares[[0, 0, 1], [0, 1, 1]])
    shares = np.diag(squares) / squares.sum(axis=1)

    def run(seed):
        result = blockdiag(operator, blocks=BLOCKS, probes=10, seed=seed, on_event=ignore)
        found = result.coupling()
        cells = [
            Estimate(found.norms[a, b], None, (found.low[a, b], found.high[a, b]), 10)
            for a, b in ((0, 0), (0, 1), (1, 1))
        ]
        return [*cells, result.share(0), result.share(1), result.off_block_fraction]

    outside = 1 - np.trace(squares) / squares.sum()
    covered, widths, _ = simulate(run, np.array([*truth_cells, *shares, outside]))
    assert (covered >= LEAST).all(), covered
    assert (widths <= WIDEST).all(), widths


def test_the_coupling_of_a_block_of_a_single_entry_is_covered():
    # ||H_ab v_b|| is the same for every probe there, and ||H_ba v_a||^2 is as long-tailed as squares can be.
    operator = operator_with(SPECTRA["flat"], sizes=[100, 1, 199])
    truth, blocks = np.linalg.norm(operator.matrix[:100, 100]), [frozenset({i}) for i in range(3)]

    def run(seed):
        found = blockdiag(operator, blocks=blocks, probes=8, seed=seed, on_event=ignore).coupling()
        return [Estimate(found.norms[0, 1], None, (found.low[0, 1], found.high[0, 1]), 8)]

    covered, widths, _ = simulate(run, np.array([truth]), seeds=200)
    assert covered[0] >= LEAST
    assert widths[0] <= WIDEST


@pytest.mark.parametrize("probes", [4, 10])
@pytest.mark.parametrize("spectrum", ["language model", "flat"])
def test_relative_error_and_cosine_cover_the_roots_of_shares(spectrum, probes):
    # Of the matrix: 1 - relative error^2 = cosine^2 = ||H_bb||_F^2 / sum_a ||H_ba||_F^2, for each block.
    operator = operator_with(SPECTRA[spectrum], sizes=SIZES)
    squares = squares_of(operator)
    shares = np.diag(squares) / squares.sum(axis=1)
    relative, cosines = np.sqrt(1 - shares), np.sqrt(shares)

    def run(seed):
        result = blockdiag(operator, blocks=BLOCKS, probes=probes, seed=seed, on_event=ignore)
        error, cosine = result.relative_error, result.cosine
        blocks = [figures.at(b) for figures in (error, cosine) for b in (0, 1)]
        return [*blocks, error.mean(), cosine.mean()]

    truths = np.array([*relative, *cosines, relative.mean(), cosines.mean()])
    covered, widths, _ = simulate(run, truths)
    assert (covered >= LEAST).all(), covered
    assert (widths <= (WIDEST if probes == 10 else 2 * WIDEST)).all(), widths


def test_a_mean_of_ratios_is_another_number():
    # Three probes weigh the rows a hundredfold, three do not: the mean of ratios counts all alike.
    rows = np.array([100.0, 100, 100, 1, 1, 1])[:, None]
    inside = np.array([50.0, 50, 50, 1, 1, 1])[:, None]
    result = BlockDiagonal(rows - inside, inside, rows, inside[:, :, None], np.zeros(6))
    assert result.relative_error.values == pytest.approx(np.sqrt(150 / 303))
    assert result.cosine.values == pytest.approx(np.sqrt(153 / 303))
    assert result.relative_errors.mean() == pytest.approx(np.sqrt(0.5) / 2)
    alone = BlockDiagonal(*(x[:1] for x in (rows - inside, inside, rows, inside[:, :, None], np.zeros(6))))
    assert alone.relative_error.mean().ci is None


def test_the_top_curvature_is_that_of_the_dense_eigenvectors():
    operator = operator_with(SPECTRA["language model"], sizes=SIZES)
    values, vectors = np.linalg.eigh(operator.matrix)
    found = top_curvature(operator, blocks=BLOCKS, count=3, seed=0, on_event=ignore)
    assert len(found) == 3
    assert operator.num_matvecs <= 40 + 3 * 2
    for rank, one in enumerate(found, start=1):
        u = vectors[:, -rank]
        parts = [np.where(np.arange(300) < 100, u, 0), np.where(np.arange(300) >= 100, u, 0)]
        dense = np.array([[a @ operator.matrix @ b for b in parts] for a in parts])
        assert one.value == pytest.approx(values[-rank], rel=1e-5)
        assert one.matrix == pytest.approx(dense, rel=1e-2, abs=1e-2 * values[-rank])
        assert abs(one.inside - np.trace(dense) / values[-rank]) <= one.inside_error


def test_all_of_a_block_diagonal_matrix_is_inside():
    operator = operator_with(np.ones(60), sizes=[30, 10, 20])
    operator.matrix = np.zeros((60, 60))
    rng = np.random.default_rng(0)
    for block in (slice(0, 30), slice(30, 60)):
        part = rng.standard_normal((30, 30))
        operator.matrix[block, block] = part @ part.T
    one = top_curvature(operator, blocks=BLOCKS, count=1, seed=0, on_event=ignore)[0]
    assert one.inside == pytest.approx(1, abs=1e-12)
    result = blockdiag(operator, blocks=BLOCKS, probes=3, seed=0, on_event=ignore)
    assert result.share(0).value == pytest.approx(1, abs=1e-12)


def test_the_interval_of_a_share_holds_beside_a_larger_eigenvalue_and_a_zero_has_none():
    # A pair of 1 beside one of -1000: what its vector has of the other is a thousand times what its own is.
    operator = operator_with(np.concatenate([[-1000.0, 1.0], np.linspace(-0.5, 0.5, 298)]), sizes=SIZES)
    u = np.linalg.eigh(operator.matrix)[1][:, -1]
    truth = u[:100] @ operator.matrix[:100, :100] @ u[:100] + u[100:] @ operator.matrix[100:, 100:] @ u[100:]
    for seed in range(5):
        one = top_curvature(operator, blocks=BLOCKS, count=1, seed=seed, on_event=ignore)[0]
        assert abs(one.inside - truth) <= one.inside_error
    operator.matrix = np.zeros((300, 300))
    one = top_curvature(operator, blocks=BLOCKS, count=1, seed=0, on_event=ignore)[0]
    assert top_block_curvature(one, noise=1e-7).inside.value is None


NAMES = ["embed.weight", "layers.0.a", "layers.0.b", "layers.1.a"]


def test_globs_make_blocks_in_their_order():
    blocks = partition_by_globs(NAMES, {"deep": ["layers.*"], "words": ["embed*"]})
    assert [(b.name, sorted(b.parts)) for b in blocks] == [("deep", [1, 2, 3]), ("words", [0])]


@pytest.mark.parametrize(
    ("globs", "said"),
    [
        ({"a": ["embed*"], "b": ["layers.0.*"]}, "'layers.1.a' is in no block"),
        ({"a": ["*"], "b": ["layers.0.*"]}, "'layers.0.a' is in 'a' and in 'b'"),
        ({"a": ["*"], "b": ["head*"]}, "block 'b' matches no parameter"),
    ],
)
def test_a_parameter_in_two_blocks_or_in_none_is_named(globs, said):
    with pytest.raises(UsageError, match=r"operator\.blocks") as error:
        partition_by_globs(NAMES, globs)
    assert said in str(error.value)


def test_a_file_of_blocks_is_read_with_bare_stars(tmp_path):
    path = tmp_path / "blocks.yaml"
    path.write_text("# by hand\nfirst: *embed*, layers.0.*  # early\nlater:\n  - layers.1.*\n")
    assert load_blocks(path) == {"first": ["*embed*", "layers.0.*"], "later": ["layers.1.*"]}


@pytest.mark.parametrize("text", ["", "- a\n", "a: 3\n", "a: ''\n", "a: [b\n", "a: b\na: c\n", "a: {b: c}\n"])
def test_a_file_of_blocks_that_is_not_one_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "blocks.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"operator\.blocks") as error:
        load_blocks(path)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="cannot be read"):
        load_blocks(tmp_path / "missing.yaml")
