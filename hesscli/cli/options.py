"""The measuring commands' options, derived from the recipe's fields: type, help and default stand there, once."""

import inspect
import json
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hesscli.errors import UsageError
from hesscli.recipe.schema import COMMON, READ_BY, Recipe

PANELS = ("model", "data", "operator", "estimator", "output")
_SHORT = {"data.id": ["-d", "--dataset"], "data.limit": ["-L", "--limit"], "data.batch_size": ["-b", "--batch-size"]}
_SHORT |= {"output.dir": ["-o", "--output-dir"], "estimator.k": ["--k", "-k"]}
_NAMES = {"data.revision": "--dataset-revision"}
_BOTH_WAYS = {"data.pack"}  # flags that are on unless switched off
_SEPARATE = {"model.id", "operator.kind"}  # the argument, and --operator
_READ_BY_OPERATOR = {"by": ("trace", "blockdiag")}


def measuring_parameters(probe: str) -> list[inspect.Parameter]:
    """One typer parameter for each recipe field that the probe reads, named by its dotted path with `__`."""
    parameters = []
    for section in PANELS:
        fields = _section(section).model_fields
        for key, field in fields.items():
            path = f"{section}.{key}"
            if path not in _SEPARATE and _read(section, key, probe):
                parameters.append(_parameter(path, field))
        if section == "operator":
            parameters.append(_parameter("operator.kind", fields["kind"], flags=["--operator"]))
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


def _read(section: str, key: str, probe: str) -> bool:
    if section == "estimator":
        return key in READ_BY[probe] | COMMON
    if section == "operator" and key in _READ_BY_OPERATOR:
        return probe in _READ_BY_OPERATOR[key]
    return True


def _parameter(path: str, field: FieldInfo, flags: list[str] | None = None) -> inspect.Parameter:
    section, key = path.split(".")
    flag = _NAMES.get(path, "--" + key.replace("_", "-"))
    flags = flags or _SHORT.get(path, [flag])
    annotation: Any = str | None
    metavar: str | None = _metavar(field.annotation)
    if field.annotation is bool:
        annotation, metavar = bool | None, None
        flags = [f"{flag}/--no-{key}"] if path in _BOTH_WAYS else [flag]
    elif get_origin(field.annotation) is list and path != "output.plots":
        annotation = list[str] | None
    option = typer.Option(
        *flags,
        help=f"{field.description}{_default(field)}",
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


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is None or value is False or value == []:
        return ""
    if value is True:
        return " [on]"
    return f" [{','.join(map(str, value)) if isinstance(value, list) else value}]"


def _metavar(annotation: Any) -> str:
    choices, numbers = _kinds(annotation)
    return "|".join(choices + numbers) or "TEXT"


def _kinds(annotation: Any) -> tuple[list[str], list[str]]:
    if annotation is int:
        return [], ["N"]
    if annotation is float:
        return [], ["X"]
    origin = get_origin(annotation)
    if origin is Literal:
        return [str(a) for a in get_args(annotation)], []
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin is list:
        choices, numbers = _kinds(get_args(annotation)[0])
        return choices or ["GLOB"], numbers
    if origin in (Union, types.UnionType):
        parts = [_kinds(a) for a in get_args(annotation) if a is not type(None)]
        return [c for p in parts for c in p[0]], [n for p in parts for n in p[1]]
    return [], []


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
    """The command with these parameters after its own, for typer to read."""
    own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
    everything = own + parameters

    def call(**arguments: Any) -> None:
        command(**arguments)

    call.__doc__ = command.__doc__
    call.__signature__ = inspect.Signature(everything)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in everything}
    return call
