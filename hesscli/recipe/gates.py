"""The recipe's assertions on its own report."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from hesscli.errors import UsageError


class GateSection(BaseModel):
    """One assertion, and the baseline that it speaks of."""

    assert_: str = Field(alias="assert", description="such as `lambda_max <= base * 1.10`")
    baseline: str | None = Field(None, description="a baseline or report, in the recipe's folder or below it")

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


def baseline_path(gate: GateSection, place: int, *, folder: Path) -> Path | None:
    """The baseline of the recipe's gate number `place`, seen from the folder of the recipe.

    Raises UsageError where it lies outside: a recipe from elsewhere reads nothing but what came with it.
    """
    if gate.baseline is None:
        return None
    path = folder / gate.baseline
    if not path.resolve().is_relative_to(folder.resolve()):
        field, what = f"gates.{place}.baseline", f"{gate.baseline!r} lies outside the recipe's folder"
        raise UsageError(field, what, "put it beside the recipe, or give --baseline FILE")
    return path
