"""The verb that plans: memory, products and time before anything is loaded."""

import inspect
from typing import Annotated, Any

import typer
from rich.markup import escape

from hesscli.cli.measuring import model_layer, typed_words
from hesscli.cli.options import measuring_parameters, recipe_values, with_parameters
from hesscli.cli.output import progress_console, result_console, say
from hesscli.errors import DoesNotFitError
from hesscli.recipe import PROBES, Recipe
from hesscli.recipe.document import resolve

_HELP = "What a run will need, from a config alone: bytes on each device, products, and a command that fits."
# Options of the measuring commands that a plan does not take: where the model goes is what it says itself, and a basis
# by another product is not counted. Those that change nothing here, as the data set, go into the recommended command.
_NOT_TAKEN = ("model__placement", "model__device_map", "model__max_memory", "model__offload_dir")
_NOT_COUNTED = ("estimator__basis_product",)

ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL[@REVISION]|CONFIG.json",
        help=escape("hub id, local folder, a config alone, or demo [HESS_MODEL, else demo]"),
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Put the verb on the app."""
    app.command("plan", help=_HELP)(with_parameters(_plan, _parameters()))


def _parameters() -> list[inspect.Parameter]:
    """The options of all probes, each once, in the order of their panels."""
    found = {p.name: p for probe in reversed(PROBES) for p in measuring_parameters(probe)}
    panels = ("model", "data", "operator", "estimator", "density", "output")
    order = {name: panels.index(name.partition("__")[0]) for name in found}
    return [found[name] for name in sorted(found, key=order.__getitem__) if name not in (*_NOT_TAKEN, *_NOT_COUNTED)]


def _plan(
    model: ModelArgument = None,
    context: typer.Context = None,  # type: ignore[assignment] # typer gives it
    probe: Annotated[
        str, typer.Option("--probe", metavar="PROBE", help=f"what is planned: {', '.join(PROBES)}")
    ] = "density",
    devices: Annotated[
        str | None,
        typer.Option(
            "--devices",
            metavar="NxSIZE",
            help=escape("as 8x80GiB, or 8x80GiB,host=1TiB [what is free here]"),
            show_default=False,
        ),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", metavar="", help="load the weights, and measure a gradient and a product")
    ] = False,
    json: Annotated[
        bool,
        typer.Option("--json", metavar="", help="the plan and nothing else on stdout; its schema: hess schema plan"),
    ] = False,
    **options: Any,
) -> None:
    recipe, _ = resolve([("flag", {"probe": probe}), *model_layer(model), ("flag", recipe_values(options))])
    show_plan(recipe, json=json, typed=typed_words(context, model), devices=devices, calibrate=calibrate)


def show_plan(
    recipe: Recipe, *, json: bool, typed: list[str] | None, devices: str | None = None, calibrate: bool = False
) -> None:
    """Print the plan of a recipe's run; without the words that were `typed` no command is recommended.

    Raises DoesNotFitError where nothing fits.
    """
    from hesscli.run.planning.devices import found_devices, given_devices

    wanted = given_devices(devices) if devices is not None else found_devices(recipe.model.max_memory)
    from hesscli.run.planning.build import make_plan
    from hesscli.run.planning.recommend import none_fits
    from hesscli.run.planning.table import render
    from hesscli.run.progress import ProgressListener

    with ProgressListener(progress_console(), quiet=json) as listener:
        plan = make_plan(recipe, devices=wanted, typed=typed or [], on_event=listener)
        if calibrate:
            from hesscli.run.planning.calibrate import calibrated

            plan = calibrated(plan, recipe, on_event=listener)
    nothing = plan.recommended is None
    if typed is None:
        plan = plan.model_copy(update={"recommended": None})
    if json:
        say(plan.model_dump_json(by_alias=True, indent=2))
    else:
        console = result_console()
        with console.capture() as text:
            render(plan, console)
        say(text.get().rstrip("\n"))
    if nothing:
        raise DoesNotFitError(*none_fits(plan))
