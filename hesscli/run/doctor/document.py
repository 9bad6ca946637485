"""What the doctor found, as JSON."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA: Literal["hess.doctor/1"] = "hess.doctor/1"
Answer = Literal["yes", "no", "wrong"]


class Part(BaseModel):
    """A piece of what was found."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True)


class Device(Part):
    """A place to compute."""

    name: str
    """`cpu`, `cuda:0`."""
    hardware: str
    total_bytes: int
    free_bytes: int
    fp32_error: float
    """||AB - C|| / ||C|| of a float32 matrix product A B against float64: about 1e-7, and 3e-4 in TF32."""


class Tried(Part):
    """An operation's second derivatives on one device, tried and held against differences of its values."""

    operation: str
    device: str
    dtype: str
    double_backward: Answer
    forward_mode: Answer
    """Forward over reverse, as the layered product has it."""
    errors: tuple[float | None, float | None]
    """Of v.Hv by the two ways, relative; None where there is none."""
    relied_on: bool
    """Whether exact products go through it; fused attention is replaced while they are made."""
    reason: str = ""


class SelfTest(Part):
    """One figure of the self-test and the limit that it must not pass."""

    name: str
    device: str
    error: float | None
    limit: float
    passed: bool
    reason: str = ""


class Trouble(Part):
    """What stands in the way of a measurement, and what to do."""

    failed: bool
    """Whether a self-test failed; else it is worth knowing."""
    text: str
    remedy: str


class Examination(Part):
    """Everything the doctor found."""

    schema_: Annotated[Literal["hess.doctor/1"], Field(alias="schema")] = SCHEMA
    verdict: Literal["ok", "failed"]
    versions: dict[str, str]
    extras: dict[str, str | None]
    """Optional packages with their versions; None where one is not there."""
    settings: dict[str, str]
    devices: list[Device]
    derivatives: list[Tried]
    self_tests: list[SelfTest]
    troubles: list[Trouble]
    seconds: float
