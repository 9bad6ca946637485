"""The plan as JSON: what a run needs on each device by placement and product, and what is recommended."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA: Literal["hess.plan/1"] = "hess.plan/1"
Placement = Literal["single", "layerwise", "offloaded", "fsdp"]


class Part(BaseModel):
    """A piece of a plan."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True)


class PlannedModel(Part):
    """Which model, by its config alone."""

    id: str
    class_name: str = Field(alias="class")
    task: str
    dtype: str
    num_parameters: int
    num_selected: int
    active_parameters: int
    """Those that a token goes through; fewer than all of them in a mixture of experts."""
    num_layers: int
    """0 where layers are not understood."""
    weights_bytes: int
    vector_bytes: int
    largest_layer_bytes: int
    outside_bytes: int
    """Weights outside of layers: embeddings, the final norm, the head."""


class PlannedData(Part):
    """The slice as it would be with every row full."""

    sequences: int
    length: int
    batch_size: int
    num_batches: int


class BlockSize(Part):
    """Parameters of one block."""

    name: str
    num_parameters: int


class Gradient(Part):
    """What one gradient of a batch takes."""

    activations_bytes: int
    """What autograd saves in a forward pass, scores included."""
    scores_bytes: int
    """One tensor of scores of a batch."""
    score_chunk_bytes: int
    """The same of the tokens that the head takes at a time."""
    peak_bytes: int | None
    """At its worst moment beside weights and the result."""
    teraflops: float
    """Floating-point operations of the slice's gradient by 6 x active parameters x tokens (Kaplan et al. 2020)."""


class Way(Part):
    """One placement and product: bytes on the fullest device."""

    placement: Placement
    product: str
    """As `--product` names it; `jacobian` is a Gauss-Newton product with a batch's graph."""
    graph_kept: bool
    """Double backward with the graphs of all batches kept between products."""
    exact: bool
    batch_size: int
    together: int
    """Vectors that are multiplied at once, at most."""
    gradients: float
    """What a product costs, in gradients."""
    demand: str
    """How the probe runs: its basis."""
    matvecs: int
    num_devices: int
    weights_bytes: int
    vectors_bytes: int
    basis_bytes: int
    product_bytes: int | None
    """The product's own: activations, derivatives, scores, gradients that are not yet added up.

    None, and not counted, where all else alone does not fit.
    """
    activations_bytes: int | None
    """Of these what grows with the rows of a batch."""
    total_bytes: int
    """Without a product that is not counted, which comes on top."""
    host_bytes: int
    """On the host beside, where weights or vectors are kept there."""
    disk_bytes: int
    fits: bool
    seconds: float | None = None
    """Of all products, where a gradient was measured."""


class Uncounted(Part):
    """A product whose memory could not be counted, and why."""

    product: str
    reason: str


class Devices(Part):
    """What there is, or what was said to be."""

    count: Annotated[int, Field(ge=1)]
    bytes_each: int
    host_bytes: int | None
    """None: not judged."""
    found: bool
    """Measured on this machine, rather than given."""

    @property
    def accelerate(self) -> bool:
        """Whether they stand beside a host, and are not the host itself: told by what is said of them."""
        return self.count > 1 or self.host_bytes is not None


class Calibration(Part):
    """What was measured on this machine."""

    gradient_seconds: float
    product: str
    matvec_seconds: float


class Recommended(Part):
    """What to type."""

    command: str
    why: str


class Enough(Part):
    """The fewest devices of the size given, in powers of two, that hold it, where those that there are do not."""

    num_devices: int
    placement: Placement
    product: str


class Plan(Part):
    """Everything that `hess plan` says."""

    schema_: Annotated[Literal["hess.plan/1"], Field(alias="schema")] = SCHEMA
    command: str
    model: PlannedModel
    data: PlannedData
    estimator: dict[str, Any]
    blocks: list[BlockSize]
    devices: Devices
    gradient: Gradient
    ways: list[Way]
    uncounted: list[Uncounted] = Field(default_factory=list)
    recommended: Recommended | None = None
    enough: Enough | None = None
    calibration: Calibration | None = None
    notes: list[str] = Field(default_factory=list)
