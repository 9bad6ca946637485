"""The recipe: pydantic models whose fields are the options of the command line and the keys of the YAML."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hesscli.recipe.gates import GateSection
from hesscli.recipe.matrix import Cells, Matrix

Probe = Literal["density", "topk", "trace", "blockdiag", "solve"]
PROBES: tuple[str, ...] = ("density", "topk", "trace", "blockdiag", "solve")
PresetName = Literal["quick", "standard", "publication"]

Positive = Annotated[int, Field(ge=1)]
Damping = Annotated[float, Field(ge=0, allow_inf_nan=False)]

# Budgets by preset and probe. Steps of topk and solve are a ceiling: they stop when they have converged.
# Density: steps for a run that finds the outliers, then as many for each probe; at 1e5 parameters and more one
# probe places the bulk (Chen, Trogdon and Ubaru 2021), several are for the spread of the figures. Trace: half of
# the products find what dominates, the other half samples the rest.
PRESETS: dict[str, dict[str, dict[str, int]]] = {
    "quick": {
        "density": {"probes": 3, "steps": 20},
        "topk": {"steps": 40},
        "trace": {"probes": 8, "steps": 8},
        "blockdiag": {"probes": 3},
        "solve": {"steps": 50},
    },
    "standard": {
        "density": {"probes": 4, "steps": 40},
        "topk": {"steps": 100},
        "trace": {"probes": 16, "steps": 16},
        "blockdiag": {"probes": 5},
        "solve": {"steps": 200},
    },
    "publication": {
        "density": {"probes": 10, "steps": 100},
        "topk": {"steps": 200},
        "trace": {"probes": 64, "steps": 64},
        "blockdiag": {"probes": 16},
        "solve": {"steps": 500},
    },
}


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class ModelSection(Section):
    """Which weights, and how they are loaded."""

    id: str = Field("demo", description="hub id, local folder, or demo")
    revision: str | None = Field(None, description="branch, tag or commit")
    task: Literal["auto", "causal-lm", "masked-lm", "seq2seq-lm", "sequence-classification", "image-classification"] = (
        Field("auto", description="what the checkpoint's head does")
    )
    dtype: Literal["float32", "bfloat16", "float64", "auto"] = Field("float32", description="dtype of the weights")
    placement: Literal["auto", "single", "layerwise", "fsdp"] = Field(
        "auto", description="where the weights lie; fsdp: over the processes of torchrun"
    )
    device_map: str | dict[str, str | int] | None = Field(
        None, description="auto, balanced, sequential, a device, or a JSON map"
    )
    max_memory: dict[str | int, str | int] | None = Field(None, description="limit per device, 0=40GiB,cpu=100GiB")
    offload_dir: str | None = Field(None, description="folder for vectors where layers stay on disk")
    attn: str = Field("auto", description="attention implementation: auto, eager, sdpa")
    trust_remote_code: bool = Field(False, description="run code that comes with the checkpoint")
    allow_pickle: bool = Field(False, description="accept weights that are pickles")
    offline: bool = Field(False, description="use what is cached, ask nobody")


class DataSection(Section):
    """The slice that the loss is taken on."""

    id: str = Field("demo", description="hub id, file, folder, or demo (the embedded text)")
    config_name: str | None = Field(None, description="configuration of a hub data set")
    split: str = Field("train", description="split of the data set")
    column: str | None = Field(
        None, description="column to read: input_ids or pixel_values if there is one, else text or image"
    )
    target_column: str | None = Field(
        None, description="class of a row [label or labels], or the text to be decoded [target]"
    )
    mask_prompt: str | None = Field(None, description="prompt before the text of a row: it is read and has no loss")
    revision: str | None = Field(None, description="revision of a hub data set")
    limit: Positive = Field(64, description="sequences, at most")
    max_length: Annotated[int, Field(ge=2)] | None = Field(
        None, description="tokens per sequence: 512, or the model's positions if those are fewer"
    )
    batch_size: Positive | Literal["auto"] = Field("auto", description="sequences per batch")
    pack: bool | None = Field(None, description="fill sequences across documents; rows with a prompt stand alone [on]")


class OperatorSection(Section):
    """The matrix and its product."""

    kind: Literal["hessian", "ggn", "fisher", "empirical-fisher"] = Field(
        "hessian", description="which curvature matrix; fisher samples labels, empirical-fisher takes the data's"
    )
    product: Literal["auto", "double-backward", "layered", "finite-difference"] = Field(
        "auto", description="how it is multiplied with a vector"
    )
    step: Literal["auto"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        "auto", description="of finite-difference, along a unit vector: auto, its best for each, or X for all of them"
    )
    params: list[str] = Field(
        ["*"],
        description="parameters to take, a glob of names; repeat for more; an adapter's own by *, all by **",
        min_length=1,
    )
    exclude: list[str] = Field([], description="parameters to leave out, likewise")
    by: Literal["layer", "module", "parameter"] = Field("layer", description="what a block is")
    blocks: str | None = Field(
        None, description="a YAML file of blocks, `name: glob, glob`, in place of --by; every parameter in one of them"
    )

    @field_validator("step")
    @classmethod
    def _step_is_of_differences(cls, step: float | str, info: ValidationInfo) -> float | str:
        if step != "auto" and info.data.get("product") not in (None, "finite-difference"):
            raise PydanticCustomError("no_differences", "auto, or with operator.product finite-difference")
        return step


def _right_hand_side(text: str) -> str:
    row = text.removeprefix("row:")
    if text in ("gradient", "random") or (row != text and row.isascii() and row.isdigit()):
        return text
    raise PydanticCustomError("right_hand_side", "gradient, random, or row:N with a row of the slice from 0")


def _known_reorthogonalisation(text: str) -> str:
    size = text.removeprefix("window:")
    if text in ("auto", "full", "none") or (size != text and size.isascii() and size.isdigit() and int(size) > 0):
        return text
    raise PydanticCustomError("reorthogonalisation", "auto, full, none, or window:N with N vectors from 1")


class EstimatorSection(Section):
    """The probe's budget. What is left out comes from the preset."""

    preset: PresetName = Field("standard", description="budget of products")
    probes: Positive | None = Field(None, description="random probe vectors")
    steps: Positive | None = Field(None, description="Lanczos steps, or iterations of a solver")
    k: Positive = Field(5, description="eigenpairs at each end")
    which: Literal["both", "largest", "smallest"] = Field("both", description="which end of the spectrum")
    tolerance: Annotated[float, Field(gt=0, lt=1)] = Field(
        1e-3, description="residual over value, or over the right-hand side, that counts as converged"
    )
    damping: Annotated[list[Damping], Field(min_length=1)] = Field(
        [0.1], description="what is added to every eigenvalue before the solve; repeat for more"
    )
    solver: Literal["auto", "cg", "minres"] = Field(
        "auto", description="cg, or minres for the Hessian, which may be indefinite"
    )
    preconditioner: Literal["none", "low-rank", "diagonal"] = Field(
        "none", description="of cg: none, low-rank (a short Lanczos run), diagonal (a mean for each tensor)"
    )
    rhs: Annotated[str, AfterValidator(_right_hand_side)] = Field(
        "gradient", description="right-hand side: gradient of the slice, row:N for that of one row, or random"
    )
    reorthogonalise: Annotated[str, AfterValidator(_known_reorthogonalisation)] = Field(
        "auto", description="against which earlier vectors: auto, full, window:N (the last N, which are held), none"
    )
    method: Literal["auto", "krylov", "hutchinson", "hutch++", "xtrace"] = Field(
        "auto", description="estimator that spends the budget of steps + probes products; auto is krylov"
    )
    diagonal: bool = Field(False, description="estimate every diagonal entry too, into a file; not with xtrace")
    krylov_dim: Positive | None = Field(
        None, description="basis vectors held, with restarts; left out: as many as steps, or as fit in memory"
    )
    basis: Literal["device", "host", "disk"] = Field(
        "device", description="where basis vectors are held: device, host, or disk (TMPDIR)"
    )
    basis_dtype: Literal["float32", "bfloat16", "int8"] = Field(
        "float32", description="how wide; float32 stands for the dtype of the vectors themselves"
    )
    basis_product: Literal["auto", "double-backward", "layered", "finite-difference"] = Field(
        "auto", description="product that builds the basis; auto is the one that certifies"
    )
    held_out: Positive | None = Field(
        None, description="sequences after the slice's own, for a Rayleigh quotient on other data"
    )
    held_out_from: Positive | None = Field(
        None, description="first of them, counted from 0; for slices of several sizes the same [after the slice]"
    )
    data_error: Literal["auto", "on", "off"] = Field(
        "auto",
        description="error that the slice's rows make, from groups of them; auto where it costs ten products or fewer",
    )
    top: Annotated[int, Field(ge=0)] = Field(
        1, description="top eigenvectors whose curvature is split over the blocks, 0 for none"
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of the probe vectors")

    @field_validator("krylov_dim")
    @classmethod
    def _room_for_restarts(cls, krylov_dim: int | None, info: ValidationInfo) -> int | None:
        k, which = info.data.get("k"), info.data.get("which")
        if krylov_dim is not None and k is not None and which is not None:
            least = (k + 6) * (2 if which == "both" else 1)
            if krylov_dim < least:
                msg = f"at least {least} for {k} pairs: 6 more than them at each end"
                raise PydanticCustomError("krylov_dim", msg)
        return krylov_dim

    @field_validator("held_out_from")
    @classmethod
    def _held_out_from_has_a_number(cls, first: int | None, info: ValidationInfo) -> int | None:
        if first is not None and info.data.get("held_out") is None:
            raise PydanticCustomError("no_held_out", "with estimator.held_out, the number of sequences")
        return first

    @field_validator("diagonal")
    @classmethod
    def _diagonal_has_a_method(cls, diagonal: bool, info: ValidationInfo) -> bool:
        if diagonal and info.data.get("method") == "xtrace":
            msg = "off with estimator.method xtrace, which gives no diagonal"
            raise PydanticCustomError("no_diagonal", msg)
        return diagonal


def parse_kernel_width(width: float | str) -> float | str:
    """auto, a positive number, or a share such as 1%; a number that is given as text becomes one."""
    try:
        if width == "auto":
            return width
        number = float(str(width).removesuffix("%"))
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        msg = "auto, a width in the unit of eigenvalues such as 0.05, or a share of their range such as 1%"
        raise PydanticCustomError("kernel_width", msg)
    return str(width).strip() if str(width).endswith("%") else number


class DensitySection(Section):
    """How a density is drawn. No figure of the report depends on it."""

    kernel_width: Annotated[float | str, AfterValidator(parse_kernel_width)] = Field(
        "auto", description="of the drawn density: X or X% of the range for Gaussians of one sigma; auto: resolution"
    )


class OutputSection(Section):
    """Where the run is written."""

    dir: str = Field("outputs", description="folder of run folders")
    plots: list[Literal["png", "svg"]] = Field(["png", "svg"], description="figure formats: png, svg, or none")

    @model_validator(mode="before")
    @classmethod
    def _comma_separated(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("plots"), str):
            words = [w.strip() for w in data["plots"].split(",") if w.strip()]
            data = {**data, "plots": [] if words == ["none"] else words}
        return data


_STORAGE = frozenset({"basis", "basis_dtype"})
# Which keys of the estimator a probe reads; the others are refused for it rather than ignored.
READ_BY: dict[str, frozenset[str]] = {
    "density": frozenset({"probes", "steps", "reorthogonalise"}) | _STORAGE,
    "topk": frozenset({"steps", "k", "which", "tolerance", "krylov_dim", "basis_product"})
    | frozenset({"held_out", "held_out_from"})
    | _STORAGE,
    "trace": frozenset({"probes", "steps", "method", "diagonal"}) | _STORAGE,
    "blockdiag": frozenset({"probes", "top"}),
    "solve": frozenset({"steps", "tolerance", "damping", "solver", "preconditioner", "rhs"}),
}
COMMON = frozenset({"preset", "seed", "data_error"})


# Keys of the operator that only some probes read.
BLOCK_KEYS: dict[str, tuple[str, ...]] = {"by": ("trace", "blockdiag"), "blocks": ("trace", "blockdiag")}


def is_read(probe: str, section: str, key: str) -> bool:
    """Whether a probe reads a key of a recipe."""
    if section == "estimator":
        return key in READ_BY[probe] | COMMON
    if section == "density":
        return probe == "density"
    return section != "operator" or probe in BLOCK_KEYS.get(key, PROBES)


def unread(probe: str, paths: Iterable[str]) -> dict[str, str]:
    """The keys among these dotted paths that the probe does not read, each with the words that say so."""
    sections: dict[str, type[BaseModel]] = {"estimator": EstimatorSection, "operator": OperatorSection}
    sections["density"] = DensitySection
    out = {}
    for path in sorted(paths):
        section, _, key = path.partition(".")
        if section in sections and key in sections[section].model_fields and not is_read(probe, section, key):
            reads = f", which reads {', '.join(sorted(READ_BY[probe] | COMMON))}" if section == "estimator" else ""
            out[path] = f"is not read by {probe}{reads}"
    return out


class Recipe(Section):
    """Everything that determines a run."""

    schema_: Annotated[Literal["hess.recipe/1"], Field(alias="schema")] = "hess.recipe/1"
    name: str | None = Field(None, description="a name for people")
    description: str | None = Field(None, description="what it is for, in one line")
    probe: Probe
    model: ModelSection = Field(default_factory=ModelSection)
    data: DataSection = Field(default_factory=DataSection)
    operator: OperatorSection = Field(default_factory=OperatorSection)
    estimator: EstimatorSection = Field(default_factory=EstimatorSection)
    density: DensitySection = Field(default_factory=DensitySection)
    output: OutputSection = Field(default_factory=OutputSection)
    gates: list[GateSection] = Field([], description="assertions on the report, each with the baseline it speaks of")
    matrix: Matrix = Field({}, description="hess sweep: values by dotted path, one cell for each combination")
    include: Cells = Field([], description="hess sweep: values that join the cells they agree with, else new cells")
    exclude: Cells = Field([], description="hess sweep: cells that agree with one of these are dropped")

    model_config = ConfigDict(extra="forbid", validate_default=True, populate_by_name=True)

    @model_validator(mode="after")
    def _keys_are_read(self) -> "Recipe":
        given = [f"estimator.{key}" for key in self.estimator.model_fields_set]
        given += [f"operator.{key}" for key in self.operator.model_fields_set]
        given += [f"density.{key}" for key in self.density.model_fields_set]
        if faults := unread(self.probe, given):
            msg = "; ".join(f"{path} {what}" for path, what in faults.items())
            raise ValueError(msg)
        return self

    def budget(self, name: Literal["probes", "steps"]) -> int:
        """The number of probes or steps: as asked, else the preset's."""
        asked = getattr(self.estimator, name)
        return int(asked) if asked is not None else PRESETS[self.estimator.preset][self.probe][name]
