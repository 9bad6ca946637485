"""From YAML, `a.b=c` words and flags to one valid recipe, with where each value came from."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from hesscli.errors import UsageError
from hesscli.recipe.schema import Recipe

Values = dict[str, Any]  # dotted path -> value


def load_recipe(path: Path) -> Values:
    """The values of a recipe file by dotted path.

    Raises UsageError where the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError("recipe", f"{str(path)!r} does not exist", "give the path of a YAML file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("recipe", f"{str(path)!r} cannot be read", "give the path of a YAML file") from error
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise UsageError("recipe", f"{where}{problem}", "mend the YAML") from error
    if not isinstance(tree, dict):
        raise UsageError("recipe", f"{path.name} holds no mapping", "start with `probe: density`")
    return _flatten(tree)


def parse_overrides(words: Sequence[str]) -> tuple[Values, list[str]]:
    """`a.b=c` words as values (read as YAML scalars), and the paths that `~a.b` words put back to default."""
    values: Values = {}
    removed = []
    for word in words:
        if word.startswith("~"):
            removed.append(word[1:])
            continue
        path, equals, text = word.partition("=")
        if not equals or not path:
            raise UsageError("override", f"{word!r} is not of the form a.b=c or ~a.b", "write e.g. data.limit=8")
        try:
            values[path] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError("override", f"{word!r} does not parse", "quote the value") from error
    return values, removed


def resolve(layers: Sequence[tuple[str, Values]]) -> tuple[Recipe, dict[str, str]]:
    """One recipe from layers of (origin, values), later ones winning, and the origin of each value that was set.

    Raises UsageError that names every fault at once, one a line.
    """
    merged: Values = {}
    origins: dict[str, str] = {}
    for origin, values in layers:
        for path, value in values.items():
            merged[path] = value
            origins[path] = origin
    try:
        recipe = Recipe.model_validate(_nest(merged))
    except ValidationError as error:
        raise _explain(error) from error
    return recipe, origins


def dump(recipe: Recipe, origins: Mapping[str, str] | None = None) -> str:
    """The whole recipe as YAML; with `origins`, where each value comes from as a comment."""
    text = yaml.safe_dump(recipe.model_dump(by_alias=True, mode="json"), sort_keys=False)
    if origins is None:
        return text
    lines, section = [], ""
    for line in text.splitlines():
        key = line.split(":")[0].strip()
        if line and not line.startswith((" ", "-")):
            section = key
        path = key if section == key else f"{section}.{key}"
        scalar = not line.endswith(":") and not line.strip().startswith("-")
        lines.append(f"{line}  # {origins.get(path, 'default')}" if scalar else line)
    return "\n".join(lines) + "\n"


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Values:
    out: Values = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and prefix == "" and key in _sections():
            out.update(_flatten(value, f"{path}."))
        else:
            out[path] = value
    return out


def _nest(values: Values) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in values.items():
        section, dot, key = path.partition(".")
        if not dot:
            tree[section] = value
        elif isinstance(tree.setdefault(section, {}), dict):
            tree[section][key] = value
    return tree


def _sections() -> dict[str, type[BaseModel]]:
    return {
        name: field.annotation
        for name, field in Recipe.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def known_paths() -> list[str]:
    """Every dotted path of a recipe."""
    sections = _sections()
    paths = ["schema", "name", "probe"]
    return paths + [f"{name}.{key}" for name, model in sections.items() for key in model.model_fields]


def _explain(error: ValidationError) -> UsageError:
    faults: dict[str, tuple[str, str]] = {}
    for fault in error.errors(include_url=False):
        path = ".".join(str(p) for p in fault["loc"][:2]) or "recipe"
        faults.setdefault(
            path, _explain_one(path, fault["type"], fault["msg"], fault.get("input"), fault.get("ctx") or {})
        )
    (field, (what, remedy)), *others = faults.items()
    if others:
        rest = "".join(f"\nerror: {f}: {w}; {r}" for f, (w, r) in others)
        return UsageError(field, what, remedy + rest)
    return UsageError(field, what, remedy)


def _explain_one(path: str, kind: str, msg: str, value: Any, ctx: Mapping[str, Any]) -> tuple[str, str]:
    shown = repr(value) if len(repr(value)) < 60 else repr(value)[:57] + "..."
    if kind == "extra_forbidden":
        near = get_close_matches(path, known_paths(), n=1, cutoff=0.5)
        return "no such key", f"nearest is {near[0]}" if near else f"keys are {', '.join(known_paths()[:6])}, ..."
    if kind == "missing":
        return "is missing", "allowed: density, topk, trace, blockdiag" if path == "probe" else "give it"
    if kind == "literal_error":
        allowed = str(ctx.get("expected", "")).replace("'", "").replace(" or ", ", ")
        near = get_close_matches(str(value), [a.strip() for a in allowed.split(",")], n=1)
        return f"{shown} is not allowed", f"allowed: {allowed}" + (f"; did you mean {near[0]}" if near else "")
    if kind == "value_error":
        return str(ctx.get("error", msg)), "leave it out"
    text = msg[0].lower() + msg[1:]
    return f"{shown} does not fit", text.replace("input should be", "it should be")
