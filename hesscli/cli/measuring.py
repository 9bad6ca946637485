"""The verbs that measure: density, topk, trace, blockdiag, solve, and run for a recipe."""

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from hesscli.cli.gates import Asserts, BaselineFile, Inconclusive, announce_run, policy_of
from hesscli.cli.options import measuring_parameters, recipe_values, with_parameters
from hesscli.cli.output import complain, is_first, progress_console, result_console, say
from hesscli.errors import UntrustworthyError, UsageError
from hesscli.recipe import PROBES
from hesscli.recipe.document import Values, dump, load_recipe, parse_overrides, resolve, without
from hesscli.recipe.matrix import SWEEP_KEYS
from hesscli.recipe.shipped import find_recipe
from hesscli.report.files import write_whole

Json = Annotated[bool, typer.Option("--json", metavar="", help="the report and nothing else on stdout")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", metavar="", help="the report's path and nothing else on stdout")]
Strict = Annotated[bool, typer.Option("--strict", metavar="", help="exit 4 unless every wanted pair converged")]
ReportFile = Annotated[
    str | None, typer.Option("--report", metavar="FILE", help="copy the report here", rich_help_panel="Output")
]
Force = Annotated[
    bool, typer.Option("--force", metavar="", help="measure again what is measured already", rich_help_panel="Output")
]
NoResume = Annotated[
    bool,
    typer.Option("--no-resume", metavar="", help="keep no state, and use none that is there", rich_help_panel="Output"),
]
Print = Annotated[
    bool,
    typer.Option(
        "--print-config", metavar="", help="print each value and its origin, measure nothing", rich_help_panel="Output"
    ),
]
LogTo = Annotated[
    list[str] | None,
    typer.Option(
        "--log-to",
        metavar="TRACKER",
        help="tensorboard, wandb or mlflow, when the run has ended; repeat for more",
        rich_help_panel="Output",
        show_default=False,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", metavar="", help="say what the run would need, measure nothing", rich_help_panel="Output"
    ),
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", metavar="", help="a line on stderr for each step")]
ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL[@REVISION]",
        help=escape("hub id, local folder, or demo [HESS_MODEL, else demo]"),
        show_default=False,
    ),
]

_WHAT = {
    "density": "The spectral density: where the eigenvalues lie, with bounds.",
    "topk": "The largest and smallest eigenvalues, each with its residual.",
    "trace": "The trace, its part in each block, and the Frobenius norm.",
    "blockdiag": "Does curvature stay within blocks? Relative error and cosine for each.",
    "solve": "A damped solve, (H + damping) x = b, judged by its true residual.",
}
_RUN = "Measure what a recipe says; a.b=c changes a value, ~a.b puts it back to its default."


def register(app: typer.Typer) -> None:
    """Put the measuring verbs on the app."""
    asked = list(inspect.signature(_wishes).parameters.values())
    for probe in PROBES:
        app.command(probe, help=_WHAT[probe])(with_parameters(_verb(probe), [*measuring_parameters(probe), *asked]))
    app.command("run", help=_RUN)(with_parameters(_run, asked))


def _wishes(
    *,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    dry_run: DryRun = False,
    force: Force = False,
    no_resume: NoResume = False,
    strict: Strict = False,
    print_config: Print = False,
    report: ReportFile = None,
    log_to: LogTo = None,
    asserts: Asserts = None,
    baseline: BaselineFile = None,
    on_inconclusive: Inconclusive = "warn",
) -> "_Wishes":
    """What every measuring verb takes beside its recipe; these parameters are the options, once."""
    if dry_run and print_config:
        raise UsageError("dry_run", "and print_config each say something else in place of the run", "give one of them")
    gates = _GateWishes(asserts, baseline, on_inconclusive)
    return _Wishes(
        json, quiet, verbose, dry_run, force, not no_resume, strict, print_config, report, log_to or [], gates
    )


def _apart(options: Mapping[str, Any]) -> tuple["_Wishes", dict[str, Any]]:
    """What is asked for beside the recipe, and the values of the recipe."""
    names = inspect.signature(_wishes).parameters
    beside = {name: value for name, value in options.items() if name in names}
    return _wishes(**beside), {name: value for name, value in options.items() if name not in names}


def _verb(probe: str) -> Any:
    def command(
        model: ModelArgument = None,
        context: typer.Context = None,  # type: ignore[assignment] # typer gives it
        **options: Any,
    ) -> None:
        wishes, values = _apart(options)
        layers = [("command", {"probe": probe}), *model_layer(model), ("flag", recipe_values(values))]
        _measure(layers, wishes, typed=typed_words(context, model))

    return command


def _run(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="a YAML file, or a name of hess recipes", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="A.B=C|~A.B", help="changes, such as data.limit=8 ~model.dtype")
    ] = None,
    **options: Any,
) -> None:
    wishes, _ = _apart(options)
    changed, removed = parse_overrides(overrides or [])
    path = find_recipe(recipe)
    values = without(load_recipe(path), removed)
    if any(key.partition(".")[0] in SWEEP_KEYS for key in (*values, *changed)):
        raise UsageError("matrix", f"{recipe} is a recipe of many cells", f"use hess sweep {recipe}, or drop ~matrix")
    layers: list[tuple[str, Values]] = [("recipe", values), ("override", changed)]
    _measure(layers, wishes, typed=None, folder=path.parent)


def typed_words(context: typer.Context, model: str | None) -> list[str]:
    """The words to keep for a command that is recommended: the model, and the options that were typed."""
    bare = model is not None and model.endswith(".json")  # a config has no weights that the command could measure
    words = [] if model is None else ["MODEL" if bare else model]
    for parameter in context.command.params:
        name, value = parameter.name or "", context.params.get(parameter.name or "")
        if name in _NOT_KEPT or value in (None, []) or value == parameter.default:
            continue
        if value is False:  # as --no-pack is typed
            words += parameter.secondary_opts
            continue
        flag = max(parameter.opts, key=len)
        for one in value if isinstance(value, list | tuple) else [value]:
            words += [flag] if one is True else [flag, str(one)]
    return words


# What a recommended command says itself, and what only asks for the plan.
_NOT_KEPT = ("model", "probe", "devices", "calibrate", "json", "dry_run", "operator__product", "data__batch_size")


def model_layer(argument: str | None) -> list[tuple[str, Values]]:
    """The model that was typed, else that of HESS_MODEL, as a layer of a recipe; none is the default's."""
    if argument is not None:
        return [("argument", {"model.id": argument})]
    if os.environ.get("HESS_MODEL"):
        return [("HESS_MODEL", {"model.id": os.environ["HESS_MODEL"]})]
    return []


@dataclass(frozen=True, slots=True)
class _GateWishes:
    """What the command line demands of the report."""

    asserts: list[str] | None
    baseline: str | None
    on_inconclusive: str


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What the command line asks for beside the recipe."""

    json: bool
    quiet: bool
    verbose: bool
    dry_run: bool
    force: bool
    resume: bool
    strict: bool
    print_config: bool
    copy: str | None
    log_to: list[str]
    gates: _GateWishes


def _measure(
    layers: list[tuple[str, Values]], wishes: _Wishes, *, typed: list[str] | None, folder: Path | None = None
) -> None:
    """Run the recipe of these layers; `folder` is where it lies, `typed` the words of a command to be recommended."""
    recipe, origins = resolve(layers)
    if wishes.print_config:
        say(dump(recipe, origins).rstrip())
        return
    if wishes.copy is not None and is_first():
        _check_copy(Path(wishes.copy))
    if "model.id" not in origins and not wishes.quiet:
        complain("no MODEL given: using demo, the embedded checkpoint")
    from hesscli.report.document import dumps
    from hesscli.run.gates import demands_for, judge_run

    gates = wishes.gates
    policy = policy_of(gates.on_inconclusive)
    demands = demands_for(recipe.gates, gates.asserts, gates.baseline, folder=folder) if is_first() else []
    from hesscli.run.progress import ProgressListener
    from hesscli.run.tracking import track, usable

    listener = ProgressListener(progress_console(), quiet=wishes.quiet, verbose=wishes.verbose)
    trackers = usable(wishes.log_to, on_event=listener)
    if wishes.dry_run:  # what is refused before a run is refused before its plan
        from hesscli.cli.planning import show_plan

        show_plan(recipe, json=wishes.json, typed=typed)
        return
    from hesscli.run.together import together

    with together(recipe, force=wishes.force, resume=wishes.resume) as share, listener:
        from hesscli.run.session import run  # inside: where something is missing on one machine, all hear of it

        outcome = run(share.recipe, force=wishes.force, resume=wishes.resume, on_event=listener)
    if not share.first:
        return
    path = outcome.folder / "report.json"
    judged, refused = None, None
    try:
        judged = judge_run(outcome.report, path, demands, policy)
    except UsageError as error:  # of a figure that there is not: what was measured is said all the same
        refused = error
    if wishes.copy is not None:
        _copy(path, Path(wishes.copy))
    if wishes.json:
        say(dumps(outcome.report).rstrip())
    elif wishes.quiet:
        say(str(path))
    else:
        from hesscli.report.terminal import render

        console = result_console()
        with console.capture() as text:
            render(outcome.report, console)
        say(text.get().rstrip("\n"))
        say(f"report  {path}")
        kind = ".png" if any(name.endswith(".png") for name in outcome.report.artifacts) else ".svg"
        for name in outcome.report.artifacts:
            if name.endswith(kind):
                say(f"figure  {outcome.folder / name}")
    if judged is not None:
        announce_run(judged, shown=not (wishes.json or wishes.quiet))
    track(trackers, outcome.report, outcome.folder, on_event=listener)
    _verdict(outcome.report.status, outcome.report.status_text, strict=wishes.strict)
    if refused is not None:
        raise refused
    if judged is not None and judged.exit_code:
        raise typer.Exit(judged.exit_code)


def _check_copy(copy: Path) -> None:
    parent = copy.absolute().parent
    if copy.is_dir():
        raise UsageError("report", f"{str(copy)!r} is a folder", "give the path of a file")
    if not parent.is_dir():
        raise UsageError("report", f"{str(copy.parent)!r} is not a folder", "make it first")
    if not os.access(copy if copy.exists() else parent, os.W_OK):
        raise UsageError("report", f"{str(copy)!r} cannot be written", "give another path")


def _copy(report: Path, copy: Path) -> None:
    if copy.exists() and copy.samefile(report):
        return
    try:
        write_whole(report.read_text(encoding="utf-8"), copy, field="report")
    except UsageError as error:
        raise UsageError("report", error.what, f"the report is in {str(report)!r}") from None


def _verdict(status: str, text: str, *, strict: bool) -> None:
    if status == "untrustworthy" or (status == "not_converged" and strict):
        raise UntrustworthyError("status", f"{status.replace('_', ' ')}: {text}")
