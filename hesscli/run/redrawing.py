"""A finished run whose density is asked for with another kernel: drawn again from its report, nothing measured."""

import tempfile
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
    """The report of the run in `folder`, its density as wide as the recipe says, and its figures and recipe with it.

    Each file is replaced whole, the report last, so that what was cut off is done again. Nothing is written where the
    kernel is the same. Raises UsageError where the folder cannot be written.
    """
    again = with_kernel(report, recipe.density.kernel_width)
    if again.spectrum is None or again.spectrum == report.spectrum:
        return report
    formats = [name for name in FORMATS if f"density.{name}" in report.artifacts]
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".drawing.") as place:
            for name in draw(again, place, formats):
                (Path(place) / name).replace(folder / name)
        replayed = recipe.model_copy(update={"gates": []})
        write_whole(dump(replayed), folder / "recipe.yaml", field="output.dir")
        write_report(again, folder / "report.json")
    except OSError as error:
        what = f"{folder.name} cannot be written ({error.strerror or error})"
        raise UsageError(KERNEL, what, "draw elsewhere with hess plot -o DIR --kernel-width") from error
    on_event(Noted(f"drawn again with {KERNEL} {recipe.density.kernel_width}; nothing was measured"))
    return again
