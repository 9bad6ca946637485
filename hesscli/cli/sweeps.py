"""Many runs of one recipe: sweep; and the recipes that come with hess."""

import os
import re
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from hesscli.cli.gates import Asserts, BaselineFile, Inconclusive, announce_run, policy_of
from hesscli.cli.measuring import Print, Verbose
from hesscli.cli.output import complain, is_first, progress_console, result_console, say
from hesscli.errors import IncompleteError, UsageError
from hesscli.recipe import PROBES
from hesscli.recipe.document import Values, load_recipe, parse_overrides, without
from hesscli.recipe.shipped import find_recipe, is_recipe, shipped_recipes

if TYPE_CHECKING:
    from hesscli.report.sweep import Manifest
    from hesscli.run.sweep.plan import Plan
    from hesscli.run.sweep.prospect import Prospect

_SWEEP = "Measure every cell of a recipe's matrix, or many models; started again, it goes on where it was."


def register(app: typer.Typer) -> None:
    """Put the verbs on the app."""
    app.command("sweep", help=_SWEEP)(_sweep)
    app.command("recipes", help="The recipes that come with hess, for hess run and hess sweep.")(_recipes)


def _sweep(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE|MODEL... [A.B=C|~A.B]",
            help="a recipe with a matrix, or models; then changes, such as data.limit=8 or matrix.operator.kind=[...]",
            show_default=False,
        ),
    ],
    probe: Annotated[
        str | None,
        typer.Option("--probe", metavar="|".join(PROBES), help=escape("of MODEL... without a recipe [topk]")),
    ] = None,
    shard: Annotated[
        str, typer.Option("--shard", metavar="I/N", help="the I-th of N parts, for a job array", show_default=False)
    ] = "1/1",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", metavar="", help="try cells again that failed")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", metavar="", help="list the cells and what would run, measure nothing")
    ] = False,
    print_config: Print = False,
    output_dir: Annotated[
        str | None, typer.Option("-o", "--output-dir", metavar="DIR", help=escape("folder of run folders [outputs]"))
    ] = None,
    json: Annotated[bool, typer.Option("--json", metavar="", help="the manifest and nothing else on stdout")] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", metavar="", help="the manifest's path and nothing else on stdout")
    ] = False,
    verbose: Verbose = False,
    log_to: Annotated[
        list[str] | None,
        typer.Option(
            "--log-to",
            metavar="TRACKER",
            help="tensorboard, wandb or mlflow: each cell when it has ended; repeat for more",
            show_default=False,
        ),
    ] = None,
    asserts: Asserts = None,
    baseline: BaselineFile = None,
    on_inconclusive: Inconclusive = "warn",
) -> None:
    from hesscli.recipe.cells import expand, print_cells

    if dry_run and print_config:
        raise UsageError(
            "dry_run", "and print_config each say something else in place of the sweep", "give one of them"
        )
    layers, folder = _layers(words, probe, output_dir)
    expansion = expand(layers)
    for dropped in expansion.idle:
        complain(f"warning: exclude: no cell of the matrix has {dropped}: it drops nothing")
    if print_config:
        say(print_cells(expansion).rstrip())
        return
    part, policy = _shard(shard), policy_of(on_inconclusive)
    from hesscli.run.gates import demands_for
    from hesscli.run.sweep.plan import plan_sweep
    from hesscli.run.sweep.prospect import prospects

    own = expansion.cells[0].recipe.gates
    demands = demands_for(own, asserts, baseline, folder=folder) if is_first() else []
    plan = plan_sweep(expansion)
    if part[1] > len(plan.cells):
        complain(f"{part[1]} shards of {len(plan.cells)} cells: some have none")
    if dry_run:
        _show_prospects(plan, prospects(plan, shard=part, retry_failed=retry_failed), json=json, quiet=quiet)
        return
    from hesscli.run.progress import ProgressListener
    from hesscli.run.sweep.loop import sweep
    from hesscli.run.sweep.results import Gating
    from hesscli.run.tracking import track, usable

    gating = Gating(demands, policy) if demands else None
    listener = ProgressListener(progress_console(), quiet=quiet, verbose=verbose)
    on_done = partial(track, usable(log_to or [], on_event=listener), on_event=listener)
    wishes: dict[str, Any] = {"shard": part, "retry_failed": retry_failed, "gating": gating}
    with listener as on_event:
        ending = sweep(plan, **wishes, on_event=on_event, on_failure=_trace, on_done=on_done)
    if ending is None:  # the first process speaks
        return
    _show(plan, ending.manifest, json=json, quiet=quiet)
    if ending.judged is not None:
        announce_run(ending.judged, shown=not (json or quiet))
    _conclude(plan, ending.manifest, part)
    if ending.refused is not None:
        raise ending.refused
    if ending.judged is not None and ending.judged.exit_code:
        raise typer.Exit(ending.judged.exit_code)


def _layers(
    words: list[str], probe: str | None, output_dir: str | None
) -> tuple[list[tuple[str, Values]], Path | None]:
    """Recipe or models, then what changes them; and the folder of the recipe."""
    changes = [word for word in words if word.startswith("~") or re.match(r"[A-Za-z_.]+=", word)]
    names = [word for word in words if word not in changes]
    changed, removed = parse_overrides(changes)
    last = [("override", changed), ("flag", {} if output_dir is None else {"output.dir": output_dir})]
    if not names:
        raise UsageError("RECIPE|MODEL...", "is missing", "hess recipes lists the recipes that come with hess")
    recipes = [name for name in names if is_recipe(name)]
    if recipes and len(names) > 1:
        what = f"{names[0]!r} and {names[1]!r}: a recipe stands alone"
        raise UsageError("RECIPE|MODEL...", what, "set models by matrix.model.id=[A,B]")
    if recipes:
        if probe is not None:
            raise UsageError("--probe", "is for models without a recipe", f"write probe={probe}")
        path = find_recipe(names[0])
        return [("recipe", without(load_recipe(path), removed)), *last], path.parent
    kind = probe or "topk"
    if kind not in PROBES:
        raise UsageError("--probe", f"{kind!r} is not allowed", f"allowed: {', '.join(PROBES)}")
    models = {"probe": kind, "name": f"models-{kind}", "matrix.model.id": list(dict.fromkeys(names))}
    return [("argument", without(models, removed)), *last], None


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError("--shard", f"{text!r} is no part", "write I/N with I from 1 to N, such as 1/4")
    return int(match[1]), int(match[2])


def _trace(error: Exception) -> None:
    if os.environ.get("HESS_DEBUG") == "1":
        traceback.print_exception(error)


def _show_prospects(plan: "Plan", found: "list[Prospect]", *, json: bool, quiet: bool) -> None:
    """What stands and what would be done, a line a cell."""
    from hesscli.report.sweep import MANIFEST
    from hesscli.run.sweep.plan import label

    if quiet:
        say(str(plan.folder / MANIFEST))
        return
    if json:
        from hesscli.report.document import dumps
        from hesscli.run.sweep.ledger import Ledger

        say(dumps(Ledger(plan).read()).rstrip())
        return
    word = {"run": "would run", "take": "is measured already", "leave": ""}
    for item in found:
        status = item.cell.status if item.action != "take" else "missing"
        doing = word[item.action] or (
            "stays as it is" if item.cell.status == "done" else f"{item.cell.error}; --retry-failed tries it again"
        )
        say(f"{item.index + 1:>4}  {status:<8}  {label(item.cell.values)}  ({doing})")
    count = sum(item.action == "run" for item in found)
    say(f"{count} of {len(plan.cells)} cells would run in {plan.folder}")


def _show(plan: "Plan", manifest: "Manifest", *, json: bool, quiet: bool) -> None:
    from hesscli.report.document import dumps
    from hesscli.report.sweep import MANIFEST, read_cells

    path = plan.folder / MANIFEST
    if json:
        say(dumps(manifest).rstrip())
        return
    if quiet:
        say(str(path))
        return
    from hesscli.report.trends.points import trend_of_sweep
    from hesscli.report.trends.results import terminal_table

    console = result_console()
    with console.capture() as text:
        console.print(terminal_table(trend_of_sweep(manifest, read_cells(path, manifest)), console.width))
    say(text.get().rstrip("\n"))
    say("")
    say(f"sweep   {path}")
    for name in manifest.artifacts:
        if name.endswith((".png", "results.csv")):
            say(f"{'table ' if name.endswith('.csv') else 'figure'}  {plan.folder / name}")


def _conclude(plan: "Plan", manifest: "Manifest", part: tuple[int, int]) -> None:
    """Raises IncompleteError where cells of this shard failed or are missing."""
    from hesscli.run.sweep.plan import shard_indices

    cells = [manifest.cells[index] for index in shard_indices(len(plan.cells), shard=part)]
    counts: dict[Any, int] = {s: sum(cell.status == s for cell in cells) for s in ("failed", "missing", "skipped")}
    if counts["skipped"]:
        complain(f"{counts['skipped']} of {len(cells)} cells are with another process, which records them")
    if not (counts["failed"] or counts["missing"]):
        return
    parts = [f"{counts[s]} of {len(cells)} cells {w}" for s, w in (("failed", "failed"), ("missing", "are missing"))]
    what = ", ".join(text for text, s in zip(parts, ("failed", "missing"), strict=True) if counts[s])
    reasons = dict.fromkeys(cell.error for cell in cells if cell.error)
    first = f" (first: {next(iter(reasons))})" if reasons else ""
    remedy = "--retry-failed tries them again" if counts["failed"] else "start it again"
    raise IncompleteError("sweep", what + first, remedy)


def _recipes(
    json: Annotated[bool, typer.Option("--json", metavar="", help="as JSON: name, probe, sweep, description")] = False,
) -> None:
    import json as writer

    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    found = []
    for name, path in shipped_recipes().items():
        values = load_recipe(path)
        verb = "sweep" if any(key.startswith("matrix.") for key in values) else "run"
        line = {"name": name, "probe": values["probe"], "verb": verb, "description": values["description"]}
        found.append(line)
    if json:
        say(writer.dumps(found, indent=2, ensure_ascii=False))
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for head in ("recipe", "with", "probe", "what it is for"):
        table.add_column(head, no_wrap=head != "what it is for")
    for line in found:
        table.add_row(line["name"], f"hess {line['verb']}", line["probe"], escape(line["description"]))
    console = result_console()
    with console.capture() as text:
        console.print(table)
    say(text.get().rstrip("\n"))
