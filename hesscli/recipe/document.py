"""From YAML, `a.b=c` words and flags to one valid recipe, with where each value came from."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from hesscli.errors import UsageError
from hesscli.recipe.matrix import SWEEP_KEYS, Values
from hesscli.recipe.schema import PRESETS, PROBES, Recipe, is_read, unread


class RecipeError(UsageError):
    """Every fault of a recipe at once: `faults` has what is wrong and a remedy by dotted path, at least one."""

    def __init__(self, faults: Mapping[str, tuple[str, str]]) -> None:
        self.faults = dict(faults)
        (field, (what, remedy)), *others = faults.items()
        super().__init__(field, what, remedy + "".join(f"\nerror: {f}: {w}; {r}" for f, (w, r) in others))


# Sections and keys that leave every figure as it is.
NO_FIGURES = ("name", "description", "output", "gates", "density")


class StrictLoader(yaml.SafeLoader):
    """YAML without code, and without keys that stand twice: the last would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse what stands twice, then go on as usual."""
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            problem = f"the key {twice!r} stands twice"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


class _OneLine(yaml.SafeDumper):
    """YAML in which a text stands on one line, so that a comment behind it is no part of it."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None)


_OneLine.add_representer(str, _text)


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
        tree = yaml.load(text, Loader=StrictLoader)
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
            if word[1:].removeprefix("matrix.") not in known_paths():
                near = _nearest_key(word[1:])
                raise UsageError("override", f"{word!r} names no key", near)
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


def without(values: Values, removed: Sequence[str]) -> Values:
    """The values that are not put back to their defaults; `matrix` stands for all of its keys, and for `exclude`."""
    gone = {*removed, *(["exclude"] if "matrix" in removed else [])}
    return {
        path: value
        for path, value in values.items()
        if path not in gone and not ("matrix" in gone and path.startswith("matrix."))
    }


def resolve(layers: Sequence[tuple[str, Values]]) -> tuple[Recipe, dict[str, str]]:
    """One recipe from layers of (origin, values), later ones winning, and the origin of each value that was set.

    Raises RecipeError, a UsageError that names every fault at once, one a line.
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
        raise _explain(error, merged) from error
    return recipe, origins


def dump(recipe: Recipe, origins: Mapping[str, str] | None = None) -> str:
    """The recipe as YAML, with every value that its probe reads; with `origins`, each one's origin as a comment.

    What the preset gives stands as a number, so that the text replays the same run when presets change.
    """
    return render(content(recipe), origins, preset=recipe.estimator.preset)


def content(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a tree with every value that its probe reads, the preset's as numbers; keys of a sweep if used."""
    tree = recipe.model_dump(by_alias=True, mode="json")
    budget = PRESETS[recipe.estimator.preset][recipe.probe]
    for section in ("estimator", "operator", "density"):
        tree[section] = {
            key: budget.get(key, value) if value is None and section == "estimator" else value
            for key, value in tree[section].items()
            if is_read(recipe.probe, section, key)
        }
    unused = [key for key in (*SWEEP_KEYS, "description", "gates", "density") if not tree[key]]
    return {key: value for key, value in tree.items() if key not in unused}


def identity(recipe: Recipe) -> dict[str, Any]:
    """The recipe without what leaves its figures as they are: its name, and where it is written."""
    return {key: value for key, value in content(recipe).items() if key not in NO_FIGURES}


def render(tree: Mapping[str, Any], origins: Mapping[str, str] | None, *, preset: str) -> str:
    """A tree as YAML; with `origins`, each value's origin as a comment, the preset's where it is from there."""
    text = yaml.dump(dict(tree), Dumper=_OneLine, sort_keys=False, allow_unicode=True, width=float("inf"))
    if origins is None:
        return text
    budget = {key for probe in PRESETS[preset].values() for key in probe}
    lines, section = [], ""
    for line in text.splitlines():
        key = line.split(":")[0].strip()
        if line[0] != " ":
            section = key
        path = key if section == key else f"{section}.{key}"
        if (path in known_paths() and path not in SWEEP_KEYS) or path in origins:
            by_preset = section == "estimator" and key in budget
            line += f"  # {origins.get(path, f'preset {preset}' if by_preset else 'default')}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Values:
    out: Values = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and prefix == "" and (key in _sections() or key == "matrix"):
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
    paths = ["schema", "name", "description", "probe", "gates", *SWEEP_KEYS]
    return paths + [f"{name}.{key}" for name, model in sections.items() for key in model.model_fields]


def _explain(error: ValidationError, values: Values) -> RecipeError:
    faults: dict[str, list[tuple[str, str]]] = {}
    for fault in error.errors(include_url=False):
        path = ".".join(str(p) for p in fault["loc"][: 3 if fault["loc"][:1] == ("gates",) else 2]) or "recipe"
        if fault["type"] != "value_error":  # the one check across keys, which is below
            found = _explain_one(path, fault["type"], fault["msg"], fault.get("input"), fault.get("ctx") or {})
            faults.setdefault(path, []).append(found)
    if values.get("probe") in PROBES:
        for path, what in unread(values["probe"], values).items():
            faults[path] = [(what, "leave it out")]
    said = {path: (kinds[0][0], _any_of([remedy for _, remedy in kinds])) for path, kinds in faults.items()}
    return RecipeError(said)


def _explain_one(path: str, kind: str, msg: str, value: Any, ctx: Mapping[str, Any]) -> tuple[str, str]:
    shown = " ".join(repr(value).split())
    shown = shown if len(shown) < 60 else shown[:57] + "..."
    if kind == "extra_forbidden":
        return "no such key", _nearest_key(path)
    if kind == "missing":
        return "is missing", f"allowed: {', '.join(PROBES)}" if path == "probe" else "give it"
    if kind == "literal_error":
        allowed = str(ctx.get("expected", "")).replace("'", "").replace(" or ", ", ").split(", ")
        near = get_close_matches(str(value), allowed, n=1) if len(allowed) > 1 else []
        return f"{shown} is not allowed", f"allowed: {', '.join(allowed)}" + (
            f"; did you mean {near[0]}" if near else ""
        )
    if kind in ("model_type", "model_attributes_type"):
        keys = ", ".join(list(_sections()[path].model_fields)[:3])
        return "is empty" if value is None else f"{shown} is no mapping", f"write its keys below it ({keys}, ...)"
    fits = _FITS.get(kind) or msg[0].lower() + msg[1:].replace(" after validation", "")
    return f"{shown} does not fit", f"it should be {fits}".replace("it should be input should be", "it should be")


def _any_of(remedies: list[str]) -> str:
    """One remedy where a key may be of several types and has one fault for each."""
    first, *others = dict.fromkeys(remedies)
    return " or ".join([first, *(r.removeprefix("it should be ").removeprefix("allowed: ") for r in others)])


def _nearest_key(path: str) -> str:
    section, _, key = path.rpartition(".")
    if section.startswith("gates."):
        return "keys are assert, baseline"
    if section in _sections():
        places = [f"{section}.{name}" for name in _sections()[section].model_fields]
        near = [f"{section}.{name}" for name in get_close_matches(key, _sections()[section].model_fields, n=1)]
    else:
        places = [field.alias or name for name, field in Recipe.model_fields.items()]
        near = get_close_matches(path, places, n=1)
    near = near or get_close_matches(path, known_paths(), n=1, cutoff=0.75)
    return f"did you mean {near[0]}?" if near else f"keys are {', '.join(places)}"


_FITS = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "string_type": "text",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "too_short": "a list that is not empty",
}
