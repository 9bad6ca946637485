"""The report: one JSON object, versioned, from which every table and figure can be made again."""

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA: Literal["hess.report/1"] = "hess.report/1"


class Part(BaseModel):
    """A piece of a report: unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Errors(Part):
    """The parts of a metric's error, one standard error or bound each, in the metric's own unit.

    None: not measured by this run (the report's warnings say why where it matters).
    """

    numeric: float | None = None
    """How far the algorithm is from its limit: a residual bound, or half the width of a quadrature bracket."""
    probe: float | None = None
    """Monte Carlo: one standard error over probe vectors."""
    data: float | None = None
    """One standard error over batches of the slice."""
    precision: float | None = None
    """What the product's own noise floor does to this figure."""


class Metric(Part):
    """A figure with its error. `value` is None, with a `reason`, where it could not be had."""

    value: float | None
    stderr: float | None = None
    ci: tuple[float, float] | None = None
    level: float = 0.95
    errors: Errors = Field(default_factory=Errors)
    n: dict[str, int] = Field(default_factory=dict)
    """What the figure was averaged over: `probes`, `batches`, `blocks`."""
    reason: str | None = None

    @model_validator(mode="after")
    def _null_has_a_reason(self) -> "Metric":
        if self.value is None and not self.reason:
            msg = "a metric without a value needs a reason"
            raise ValueError(msg)
        return self


class Model(Part):
    """Which weights were measured."""

    id: str
    revision: str | None = None
    commit: str | None = None
    weights_sha256: str | None = None
    class_name: str = Field(alias="class")
    task: str = "causal-lm"
    num_parameters: int
    num_selected: int
    dtype: str
    attention: str
    tied: bool
    base: str | None = None
    """Of an adapter: the model that it stands in, as `ID@COMMIT`, or `ID` for a folder."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Data(Part):
    """Which slice the loss was taken on."""

    id: str
    split: str | None = None
    config_name: str | None = None
    revision: str | None = None
    column: str | None = None
    sequences: int
    tokens: int
    loss_terms: int
    max_length: int
    packed: bool
    fingerprint: str


class Loss(Part):
    """The value of the loss whose curvature this is; `stderr` over sequences. None, with a reason, if not finite."""

    value: float | None
    stderr: float | None = None
    normalisation: str = "mean over loss terms"
    reason: str | None = None


class Preflight(Part):
    """Self-tests of the product before the run; relative errors, None where a test does not apply."""

    symmetry: float | None = None
    repeat: float | None = None
    linearity: float | None = None
    known_answer: float | None = None
    slope: float | None = None
    """Of the gradient against a difference of the loss alone; good to 1e-2."""
    curvature: float | None = None
    """Of the product against a second difference of the loss alone, good to 1e-2, or of its derivatives in float64."""
    rounding: float | None = None
    """Of products along random vectors against the same in a wider dtype on these weights: float32 if they are narrow,
    float64 else."""
    rounding_at_ends: float | None = None
    """The same along vectors that lean to the ends of the spectrum."""


class Operator(Part):
    """Which matrix, by which product, over which parameters."""

    kind: Literal["hessian", "ggn", "fisher", "empirical-fisher"]
    product: str
    why: str
    params: list[str]
    exclude: list[str] = Field(default_factory=list)
    placement: str
    batch_size: int
    preflight: Preflight
    steps: tuple[float, float] | None = None
    """The smallest and the largest step of finite differences along a unit vector; None for an exact product."""
    error_estimate: float | None = None
    """The largest estimated error of their products, over the product's length; None for an exact product."""
    choices: int | None = None
    """Under finite differences: the model's choices on the slice, as of a token's experts in a layer; None without."""
    switched: int | None = None
    """The most of them that changed within one product's step: each adds a jump that no estimate holds."""


class Eigenpair(Part):
    """A Ritz pair. `residual` is ||H y - value y|| for a unit y: an eigenvalue lies within it of `value`."""

    value: float
    residual: float
    converged: bool
    end: Literal["upper", "lower"] | None = None
    """Which end of the spectrum it is of: both may be positive, as of a Gauss-Newton matrix. None: told by its sign."""
    bar: float | None = None
    """Half-width of an interval that holds an eigenvalue, the product's noise in it: residual^2 / gap where the gap
    to all other eigenvalues is established, else the residual."""
    product_error: float | None = None
    """The product's own error along the eigenvector, relative to the value; None where it is not measured."""
    slice_error: float | None = None
    """One standard error over the slice's rows, at a fixed eigenvector; None with too few rows (see the warnings)."""
    held_out: float | None = None
    """The Rayleigh quotient of the eigenvector on the held-out sequences: nearer to what other data would give."""
    held_out_error: float | None = None
    """One standard error of it over those sequences."""


class Band(Part):
    """The cumulative distribution at points x: it lies between low and high."""

    x: list[float]
    low: list[float]
    high: list[float]

    @model_validator(mode="after")
    def _same_length(self) -> "Band":
        if not len(self.x) == len(self.low) == len(self.high) >= 2:
            msg = "x, low and high need the same number of points, at least two"
            raise ValueError(msg)
        if any(left >= right for left, right in pairwise(self.x)):
            msg = "x needs to increase"
            raise ValueError(msg)
        return self


class Unresolved(Part):
    """The zone around zero where the bounds of the distribution first leave less than half open at its ends."""

    low: float
    high: float
    mass_low: float
    """The least share of the eigenvalues that lies in the zone."""
    mass_high: float


class Spectrum(Part):
    """Quadrature per probe: nodes (probes, steps) and weights that sum to 1 over each row."""

    nodes: list[list[float]]
    weights: list[list[float]]
    residuals: list[list[float]]
    """||H y - node y|| of each Ritz pair: how sharply a node is an eigenvalue."""
    dimension: int = Field(gt=0)
    band: Band | None = None
    unresolved: Unresolved | None = None
    kernel_width: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Standard deviation of the Gaussians that the density is drawn with; None: each as wide as its node's place is
    unknown. A matter of drawing alone: it is here so that the picture can be drawn again as it was."""

    @model_validator(mode="after")
    def _same_shape(self) -> "Spectrum":
        shapes = [[len(row) for row in rows] for rows in (self.nodes, self.weights, self.residuals)]
        if not shapes[0] or 0 in shapes[0]:
            msg = "nodes need at least one probe with at least one step"
            raise ValueError(msg)
        if not shapes[0] == shapes[1] == shapes[2]:
            msg = "nodes, weights and residuals need the same shape"
            raise ValueError(msg)
        return self


class Block(Part):
    """One block of the block-diagonal test."""

    name: str
    num_parameters: int
    metrics: dict[str, Metric]


class Diagonal(Part):
    """Where the entries stand, and the mean entry of each parameter."""

    file: str
    """Safetensors beside the report: NAME the estimates, NAME.standard_error one standard error of each."""
    tensors: list[Block]


class TopCurvature(Part):
    """One top eigenvector u and K_ab = u_a.(H u_b)_a over the blocks: the entries sum to its eigenvalue."""

    value: float
    residual: float
    inside: Metric
    """The share of the eigenvalue that the diagonal blocks give, tr K over the sum of K."""
    matrix: list[list[float]]


class Coupling(Part):
    """Frobenius norms of the blocks of the matrix, symmetrised, with one standard error each."""

    blocks: list[str]
    frobenius: list[list[float]]
    stderr: list[list[float]]
    low: list[list[float]] | None = None
    """The ends of 95 % intervals, on the log scale over probes."""
    high: list[list[float]] | None = None
    top: list[TopCurvature] = Field(default_factory=list)

    @model_validator(mode="after")
    def _square(self) -> "Coupling":
        count = len(self.blocks)
        tables = (self.frobenius, self.stderr, self.low, self.high)
        if any(rows is not None and [len(row) for row in rows] != [count] * count for rows in tables):
            msg = "frobenius, stderr, low and high need a row and a column per block"
            raise ValueError(msg)
        return self


class NegativeCurvature(Part):
    """A direction p with p.Hp / p.p not above -damping: H + damping I is not positive definite."""

    rayleigh_quotient: float
    bar: float
    """What the product's own noise does to it."""


class System(Part):
    """One solve of (H + damping I) x = b. Residuals are relative to ||b||."""

    damping: float
    converged: bool
    ending: Literal["converged", "zero", "steps_spent", "stagnated", "negative_curvature", "singular", "least_squares"]
    residuals: list[float]
    """As the solver's recurrence has them, after each iteration and first at x = 0: blind to the product's noise."""
    true_residuals: list[tuple[int, float]]
    """(iteration, residual) from products of their own; the last is the solution's."""
    metrics: dict[str, Metric]
    negative_curvature: NegativeCurvature | None = None
    file: str | None = None
    """The solution, as safetensors by parameter name, in the report's folder."""


class Solve(Part):
    """Linear solves, in the order of the dampings asked for. The report's metrics are those of the smallest damping."""

    solver: Literal["cg", "minres"]
    rhs: str
    rhs_norm: float
    tolerance: float
    preconditioner: Literal["none", "low-rank", "diagonal"]
    preconditioner_rank: int | None = None
    preconditioner_matvecs: int = 0
    systems: list[System] = Field(min_length=1)


class Samples(Part):
    """The draws behind a figure's errors, so that two reports with the same draws can be compared pair by pair."""

    probe: list[float] = Field(default_factory=list)
    """The figure from each probe vector alone; their mean is the value."""
    data: list[float] = Field(default_factory=list)
    """The figure with one group of rows left out, for each group (jackknife)."""


Verdict = Literal["pass", "fail", "inconclusive"]


class Gate(Part):
    """An assertion on the report and its verdict."""

    expr: str
    verdict: Verdict
    text: str = ""


class NonFinite(Part):
    """How many entries that are NaN or Inf were met, in loss, gradient and products, and where the first ones were."""

    nan: int = 0
    inf: int = 0
    where: Literal["loss", "gradient", "product"] | None = None
    product: int | None = None
    """The number of the product, from 1."""
    parameter: str | None = None


class Cost(Part):
    """What the run spent, and what came in its way."""

    matvecs: int
    seconds_per_matvec: float | None = None
    gradient_seconds: float | None = None
    peak_bytes: dict[str, int] = Field(default_factory=dict)
    non_finite: NonFinite = Field(default_factory=NonFinite)
    retreats: int = 0
    """How often memory ran out and less of it was asked for; each is a warning."""


class Warning_(Part):  # noqa: N801 - `Warning` is a builtin
    """Something that a reader of the figures must know."""

    code: str
    text: str


Status = Literal["ok", "not_converged", "untrustworthy"]


class Report(Part):
    """Everything a run says."""

    schema_: Annotated[Literal["hess.report/1"], Field(alias="schema")] = SCHEMA
    status: Status
    status_text: str = ""
    command: Literal["density", "topk", "trace", "blockdiag", "solve"]
    run_id: str
    created: str
    seconds: float
    model: Model
    data: Data
    loss: Loss
    operator: Operator
    estimator: dict[str, Any]
    metrics: dict[str, Metric] = Field(default_factory=dict)
    samples: dict[str, Samples] = Field(default_factory=dict)
    eigenpairs: list[Eigenpair] = Field(default_factory=list)
    spectrum: Spectrum | None = None
    blocks: list[Block] = Field(default_factory=list)
    coupling: Coupling | None = None
    diagonal: Diagonal | None = None
    solve: Solve | None = None
    gates: list[Gate] = Field(default_factory=list)
    verdict: Verdict | None = None
    cost: Cost
    environment: dict[str, str]
    artifacts: list[str] = Field(default_factory=list)
    warnings: list[Warning_] = Field(default_factory=list)

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True)
