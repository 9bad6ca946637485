"""A finished run that is asked for with another kernel, or more figures: drawn from its report, nothing measured."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from hesscli.errors import UsageError
from hesscli.events import Noted, OnEvent
from hesscli.recipe import Recipe
from hesscli.recipe.document import dump
from hesscli.report.document import write_report
from hesscli.report.figures import FORMATS, draw
from hesscli.report.files import write_whole
from hesscli.report.kernel import KERNEL, with_kernel
from hesscli.report.schema import Report


def drawn_as_asked(report: Report, folder: Path, recipe: Recipe, *, on_event: OnEvent) -> Report:
    """The report of the run in `folder`, drawn as the recipe says: its density as wide, and figures that are not there.

    Each file is replaced whole, the report last, so that what was cut off is done again. Nothing is written where
    nothing is asked for anew. Raises UsageError where the folder cannot be written.
    """
    again = with_kernel(report, recipe.density.kernel_width)
    is_anew = again.spectrum is not None and again.spectrum != report.spectrum
    there = [kind for kind in FORMATS if any(name.endswith(f".{kind}") for name in report.artifacts)]
    missing = [kind for kind in recipe.output.plots if kind not in there]
    if not (is_anew or missing):
        return report
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".drawing.") as place:
            names = draw(again, place, [*there, *missing] if is_anew else missing)
            for name in names:
                (Path(place) / name).replace(folder / name)
        if not (is_anew or names):
            return report
        again = again.model_copy(update={"artifacts": [*dict.fromkeys([*again.artifacts, *names])]})
        replayed = recipe.model_copy(update={"gates": []})
        write_whole(dump(replayed), folder / "recipe.yaml", field="output.dir")
        write_report(again, folder / "report.json")
    except OSError as error:
        what = f"{folder.name} cannot be written ({error.strerror or error})"
        raise UsageError(KERNEL if is_anew else "output.plots", what, "draw elsewhere with hess plot -o DIR") from error
    on_event(Noted(f"drawn again with {_said(recipe, is_anew, missing)}; nothing was measured"))
    return again


def _said(recipe: Recipe, is_anew: bool, missing: Sequence[str]) -> str:
    return f"{KERNEL} {recipe.density.kernel_width}" if is_anew else f"output.plots {','.join(missing)}"
