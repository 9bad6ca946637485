"""The measuring commands' options, derived from the recipe's fields: type, help and default stand there, once."""

import inspect
import json
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.markup import escape

from hesscli.errors import UsageError
from hesscli.recipe.schema import PRESETS, Recipe, is_read

PANELS = ("model", "data", "operator", "estimator", "density", "output")
_SHORT = {"data.id": ["-d", "--dataset"], "data.limit": ["-L", "--limit"], "data.batch_size": ["-b", "--batch-size"]}
_SHORT |= {"output.dir": ["-o", "--output-dir"], "estimator.k": ["--k", "-k"]}
_NAMES = {"data.revision": "--dataset-revision", "operator.kind": "--operator"}
_BOTH_WAYS = {"data.pack"}  # flags that are on unless switched off
_METAVARS = {"model.revision": "REV", "data.revision": "REV", "model.device_map": "MAP", "model.max_memory": "LIST"}
_METAVARS |= {f"data.{key}": "COLUMN" for key in ("column", "target_column", "mask_prompt")}
_METAVARS |= {"estimator.rhs": "RHS"}
_METAVARS |= {"output.dir": "DIR", "output.plots": "LIST", "data.id": "ID|PATH", "data.batch_size": "N|auto"}
_METAVARS |= {"operator.blocks": "FILE", "model.offload_dir": "DIR"}
_METAVARS |= {"operator.step": "X|auto", "density.kernel_width": "X|X%|auto"}


def measuring_parameters(probe: str) -> list[inspect.Parameter]:
    """One typer parameter for each recipe field that the probe reads, named by its dotted path with `__`."""
    parameters = []
    for section in PANELS:
        for key, field in _section(section).model_fields.items():
            path = f"{section}.{key}"
            if path != "model.id" and is_read(probe, section, key):
                parameters.append(_parameter(path, field, probe))
    return parameters


def recipe_values(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What was typed, by dotted path; options that were left out are absent.

    Raises UsageError where a structured value does not parse.
    """
    values: dict[str, Any] = {}
    for name, value in arguments.items():
        if value is None or value == []:
            continue
        path = name.replace("__", ".")
        if path == "model.max_memory":
            value = _memory_limits(value)
        elif path == "model.device_map" and value.lstrip().startswith("{"):
            value = _json_map(value)
        values[path] = value
    return values


def _section(name: str) -> type[BaseModel]:
    section = Recipe.model_fields[name].annotation
    assert isinstance(section, type)
    assert issubclass(section, BaseModel)
    return section


def _parameter(path: str, field: FieldInfo, probe: str) -> inspect.Parameter:
    section, key = path.split(".")
    flag = _NAMES.get(path, "--" + key.replace("_", "-"))
    flags = _SHORT.get(path, [flag])
    annotation: Any = str | None
    choices, kind = _kinds(field.annotation)
    metavar = _METAVARS.get(path) or kind or "NAME"
    if bool in (field.annotation, *get_args(field.annotation)):
        annotation, metavar = bool | None, ""
        flags = [f"{flag}/--no-{key}"] if path in _BOTH_WAYS else [flag]
    elif get_origin(field.annotation) is list and path != "output.plots":
        annotation = list[str] | None
    option = typer.Option(
        *flags,
        help=escape(f"{_with_choices(field.description or '', choices)}{_default(key, field, probe)}"),
        metavar=metavar,
        rich_help_panel=section.capitalize(),
        show_default=False,
    )
    return inspect.Parameter(
        path.replace(".", "__"),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[annotation, option],
    )


def _default(key: str, field: FieldInfo, probe: str) -> str:
    value = field.get_default(call_default_factory=True)
    if field in _section("estimator").model_fields.values() and key in PRESETS["standard"][probe]:
        return f" [{PRESETS['standard'][probe][key]}, or the preset's]"
    if value is None or value is False or value == []:
        return ""
    if value is True:
        return " [on]"
    return f" [{','.join(map(str, value)) if isinstance(value, list) else value}]"


def _with_choices(description: str, choices: list[str]) -> str:
    if len(choices) < 2 or all(choice in description for choice in choices):
        return description
    return f"{description}: {', '.join(choices)}"


def _kinds(annotation: Any) -> tuple[list[str], str]:
    """The words that are allowed, and the metavar of what is not a word."""
    if annotation in (int, float):
        return [], "N" if annotation is int else "X"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return [str(a) for a in arguments], ""
    if origin is Annotated:
        return _kinds(arguments[0])
    if origin is list:
        words, kind = _kinds(arguments[0])
        return words, kind or "GLOB"
    if origin in (Union, types.UnionType):
        parts = [_kinds(a) for a in arguments if a is not type(None)]
        return [c for p in parts for c in p[0]], "".join(p[1] for p in parts[:1])
    return [], ""


def _memory_limits(text: str) -> dict[str | int, str]:
    limits: dict[str | int, str] = {}
    for part in text.split(","):
        device, equals, size = part.partition("=")
        if not equals or not device.strip() or not size.strip():
            raise UsageError("model.max_memory", f"{text!r} is not DEVICE=SIZE", "write e.g. 0=40GiB,cpu=100GiB")
        device = device.strip()
        limits[int(device) if device.isdigit() else device] = size.strip()
    return limits


def _json_map(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        remedy = 'write e.g. {"model.embed_tokens": 0, "": "cpu"}'
        raise UsageError("model.device_map", f"{text!r} is not JSON", remedy) from error


def with_parameters(command: Callable[..., None], parameters: list[inspect.Parameter]) -> Callable[..., None]:
    """The command with these parameters after its argument, for typer to read: panels stand in this order."""
    own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
    everything = [p.replace(kind=p.KEYWORD_ONLY) for p in (own[0], *parameters, *own[1:])]

    def call(**arguments: Any) -> None:
        command(**arguments)

    call.__doc__ = command.__doc__
    call.__signature__ = inspect.Signature(everything)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in everything}
    return call
