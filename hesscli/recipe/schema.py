"""The recipe: pydantic models whose fields are the options of the command line and the keys of the YAML."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Probe = Literal["density", "topk", "trace", "blockdiag"]
PROBES: tuple[str, ...] = ("density", "topk", "trace", "blockdiag")
PresetName = Literal["quick", "standard", "publication"]

Positive = Annotated[int, Field(ge=1)]

# Budgets by preset and probe. Steps of topk are a ceiling: it stops when its pairs have converged.
# Density: steps for a run that finds the outliers, then as many for each probe; at 1e5 parameters and more one
# probe places the bulk (Chen, Trogdon and Ubaru 2021), several are for the spread of the figures. Trace: half of
# the products find what dominates, the other half samples the rest.
PRESETS: dict[str, dict[str, dict[str, int]]] = {
    "quick": {
        "density": {"probes": 3, "steps": 20},
        "topk": {"steps": 40},
        "trace": {"probes": 8, "steps": 8},
        "blockdiag": {"probes": 3},
    },
    "standard": {
        "density": {"probes": 4, "steps": 40},
        "topk": {"steps": 100},
        "trace": {"probes": 16, "steps": 16},
        "blockdiag": {"probes": 5},
    },
    "publication": {
        "density": {"probes": 10, "steps": 100},
        "topk": {"steps": 200},
        "trace": {"probes": 64, "steps": 64},
        "blockdiag": {"probes": 16},
    },
}


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class ModelSection(Section):
    """Which weights, and how they are loaded."""

    id: str = Field("demo", description="hub id, local folder, or demo")
    revision: str | None = Field(None, description="branch, tag or commit")
    task: Literal["auto", "causal-lm"] = Field("auto", description="what the checkpoint does")
    dtype: Literal["float32", "bfloat16", "float64", "auto"] = Field("float32", description="dtype of the weights")
    placement: Literal["auto", "single", "layerwise"] = Field("auto", description="where the weights lie")
    device_map: str | dict[str, str | int] | None = Field(
        None, description="auto, balanced, sequential, a device, or a JSON map"
    )
    max_memory: dict[str | int, str | int] | None = Field(None, description="limit per device, 0=40GiB,cpu=100GiB")
    attn: str = Field("auto", description="attention implementation: auto, eager, sdpa")
    trust_remote_code: bool = Field(False, description="run code that comes with the checkpoint")
    allow_pickle: bool = Field(False, description="accept weights that are pickles")
    offline: bool = Field(False, description="use what is cached, ask nobody")


class DataSection(Section):
    """The slice that the loss is taken on."""

    id: str = Field("demo", description="hub id, file, folder, or demo (the embedded text)")
    config_name: str | None = Field(None, description="configuration of a hub data set")
    split: str = Field("train", description="split of the data set")
    column: str | None = Field(None, description="column to read: input_ids if there is one, else text")
    revision: str | None = Field(None, description="revision of a hub data set")
    limit: Positive = Field(64, description="sequences, at most")
    max_length: Annotated[int, Field(ge=2)] | None = Field(
        None, description="tokens per sequence: 512, or the model's positions if those are fewer"
    )
    batch_size: Positive | Literal["auto"] = Field("auto", description="sequences per batch")
    pack: bool = Field(True, description="fill sequences across documents")


class OperatorSection(Section):
    """The matrix and its product."""

    kind: Literal["hessian", "ggn", "fisher", "empirical-fisher"] = Field(
        "hessian", description="which curvature matrix; fisher samples labels, empirical-fisher takes the data's"
    )
    product: Literal["auto", "double-backward", "layered"] = Field(
        "auto", description="how it is multiplied with a vector"
    )
    params: list[str] = Field(["*"], description="parameters to take, a glob of names; repeat for more", min_length=1)
    exclude: list[str] = Field([], description="parameters to leave out, likewise")
    by: Literal["layer", "module", "parameter"] = Field("layer", description="what a block is")


class EstimatorSection(Section):
    """The probe's budget. What is left out comes from the preset."""

    preset: PresetName = Field("standard", description="budget of products")
    probes: Positive | None = Field(None, description="random probe vectors")
    steps: Positive | None = Field(None, description="Lanczos steps")
    k: Positive = Field(5, description="eigenpairs at each end")
    which: Literal["both", "largest", "smallest"] = Field("both", description="which end of the spectrum")
    tolerance: Annotated[float, Field(gt=0, lt=1)] = Field(
        1e-3, description="residual over value that counts as converged"
    )
    reorthogonalise: Literal["auto", "full", "none"] = Field("auto", description="keep the basis and its orthogonality")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of the probe vectors")


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


# Which keys of the estimator a probe reads; the others are refused for it rather than ignored.
READ_BY: dict[str, frozenset[str]] = {
    "density": frozenset({"probes", "steps", "reorthogonalise"}),
    "topk": frozenset({"steps", "k", "which", "tolerance"}),
    "trace": frozenset({"probes", "steps"}),
    "blockdiag": frozenset({"probes"}),
}
COMMON = frozenset({"preset", "seed"})


def unread(probe: str, keys: Iterable[str]) -> dict[str, str]:
    """The keys of the estimator that the probe does not read, each with the words that say so."""
    known = READ_BY[probe] | COMMON
    what = f"is not read by {probe}, which reads {', '.join(sorted(known))}"
    return {key: what for key in sorted(keys) if key in EstimatorSection.model_fields and key not in known}


class Recipe(Section):
    """Everything that determines a run."""

    schema_: Annotated[Literal["hess.recipe/1"], Field(alias="schema")] = "hess.recipe/1"
    name: str | None = Field(None, description="a name for people")
    probe: Probe
    model: ModelSection = Field(default_factory=ModelSection)
    data: DataSection = Field(default_factory=DataSection)
    operator: OperatorSection = Field(default_factory=OperatorSection)
    estimator: EstimatorSection = Field(default_factory=EstimatorSection)
    output: OutputSection = Field(default_factory=OutputSection)

    model_config = ConfigDict(extra="forbid", validate_default=True, populate_by_name=True)

    @model_validator(mode="after")
    def _estimator_is_read(self) -> "Recipe":
        if faults := unread(self.probe, self.estimator.model_fields_set):
            msg = "; ".join(f"estimator.{key} {what}" for key, what in faults.items())
            raise ValueError(msg)
        return self

    def budget(self, name: Literal["probes", "steps"]) -> int:
        """The number of probes or steps: as asked, else the preset's."""
        asked = getattr(self.estimator, name)
        return int(asked) if asked is not None else PRESETS[self.estimator.preset][self.probe][name]
