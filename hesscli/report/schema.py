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
    num_parameters: int
    num_selected: int
    dtype: str
    attention: str
    tied: bool

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


class Eigenpair(Part):
    """A Ritz pair. `residual` is ||H y - value y|| for a unit y: an eigenvalue lies within it of `value`."""

    value: float
    residual: float
    converged: bool
    bar: float | None = None
    """Half-width of an interval that holds an eigenvalue: the residual, widened by the product's noise."""


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


class Spectrum(Part):
    """Quadrature per probe: nodes (probes, steps) and weights that sum to 1 over each row."""

    nodes: list[list[float]]
    weights: list[list[float]]
    residuals: list[list[float]]
    """||H y - node y|| of each Ritz pair: how sharply a node is an eigenvalue."""
    dimension: int = Field(gt=0)
    band: Band | None = None

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


class Coupling(Part):
    """Frobenius norms of the blocks of the matrix, symmetrised, with one standard error each."""

    blocks: list[str]
    frobenius: list[list[float]]
    stderr: list[list[float]]

    @model_validator(mode="after")
    def _square(self) -> "Coupling":
        count = len(self.blocks)
        if any([len(row) for row in rows] != [count] * count for rows in (self.frobenius, self.stderr)):
            msg = "frobenius and stderr need a row and a column per block"
            raise ValueError(msg)
        return self


class Gate(Part):
    """An assertion on the report and its verdict."""

    expr: str
    verdict: Literal["pass", "fail", "inconclusive"]
    text: str = ""


class Cost(Part):
    """What the run spent."""

    matvecs: int
    seconds_per_matvec: float | None = None
    gradient_seconds: float | None = None
    peak_bytes: dict[str, int] = Field(default_factory=dict)


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
    eigenpairs: list[Eigenpair] = Field(default_factory=list)
    spectrum: Spectrum | None = None
    blocks: list[Block] = Field(default_factory=list)
    coupling: Coupling | None = None
    gates: list[Gate] = Field(default_factory=list)
    verdict: Literal["pass", "fail", "inconclusive"] | None = None
    cost: Cost
    environment: dict[str, str]
    artifacts: list[str] = Field(default_factory=list)
    warnings: list[Warning_] = Field(default_factory=list)

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True)
