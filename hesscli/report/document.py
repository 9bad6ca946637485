"""Reports on disk: one JSON file, read with one line per fault and written whole or not at all."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from hesscli.errors import UntrustworthyError, UsageError
from hesscli.report.files import write_whole
from hesscli.report.schema import SCHEMA, Report

# A list or object that fits within this many columns stays on one line.
WIDTH = 110


def read_report(path: str | Path) -> Report:
    """Return the report in the file at `path`; every fault is a `UsageError` of one line."""
    path = Path(path)
    field = f"report {path.name}"
    content = read_object(path, field=field, name="report.json", version=SCHEMA, remedy="measure again")
    return validated(content, Report, field=field, remedy="measure again")


def read_object(path: Path, *, field: str, name: str, version: str, remedy: str) -> dict[str, Any]:
    """Return the JSON object in a file that is called `name` and has the schema `version`.

    Raises UsageError with `field` in front where there is no such file, or something else in it; `remedy` is for an
    object of another version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(field, f"no such file: {path}", f"give the path of a {name}") from None
    except IsADirectoryError:
        raise UsageError(field, f"{path} is a folder", f"give {path / name}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(field, f"cannot be read: {_one_line(error)}", f"give a {name}") from None
    kind = name.removesuffix(".json")
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError(field, f"not JSON: {_one_line(error)}", f"write the {kind} again") from None
    if not isinstance(content, dict):
        raise UsageError(field, f"not a {kind}: the file holds no JSON object", f"give a {name}")
    found = content.get("schema")
    if found != version:
        said = "no schema version" if found is None else f"schema {str(found)[:60]!r}"
        where = f"{field}: schema"
        raise UsageError(where, f"{said}; this hess reads {version!r}", remedy)
    return content


Document = TypeVar("Document", bound=BaseModel)


def validated(content: dict[str, Any], model: type[Document], *, field: str, remedy: str) -> Document:
    """Return the object as `model`; the first key at fault is named by a `UsageError` with its path."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        where = f"{field}: {_violation(error)}"
        raise UsageError(where, _reason(error), remedy) from None


def dumps(report: BaseModel) -> str:
    """Return a report or the like as JSON: sorted keys, two spaces, short lists on one line, a newline at the end.

    A number that is not finite is refused with an `UntrustworthyError` that names its path.
    """
    content = report.model_dump(mode="python", by_alias=True)
    for path, number in _numbers(content, ""):
        if not math.isfinite(number):
            raise UntrustworthyError(
                path, f"is {number}, which a report cannot hold", "leave the value out and give a reason"
            )
    return _layout(json.loads(json.dumps(content, sort_keys=True)), 0, 0) + "\n"


def write_report(report: Report, path: str | Path) -> None:
    """Write the report to `path`: readers see the old file or the whole new one, never a part."""
    write_whole(dumps(report), Path(path), field="report")


def _refuse_constant(name: str) -> float:
    msg = f"{name} is not a JSON number"
    raise ValueError(msg)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _violation(error: ValidationError) -> str:
    """Return the path of the first field at fault, as in `metrics.trace.value`."""
    return ".".join(str(part) for part in error.errors()[0]["loc"]) or "report"


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]["msg"].removeprefix("Value error, ")
    more = error.error_count() - 1
    tail = f" (and {more} more fault{'s' if more > 1 else ''})" if more else ""
    return _one_line(ValueError(first[:1].lower() + first[1:])) + tail


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    """Yield every float with its path."""
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{path}.{index}")


def _layout(value: Any, indent: int, column: int) -> str:
    """Return JSON whose containers break into lines only where they are too wide; number lists are filled."""
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or (indent and column + len(flat) <= WIDTH):
        return flat
    inner = " " * (indent + 2)
    if isinstance(value, dict):
        heads = [f"{inner}{json.dumps(key, ensure_ascii=False)}: " for key in value]
        body = ",\n".join(
            head + _layout(item, indent + 2, len(head)) for head, item in zip(heads, value.values(), strict=True)
        )
        return f"{{\n{body}\n{' ' * indent}}}"
    if not any(isinstance(item, dict | list) for item in value):
        return f"[\n{_filled(value, inner)}\n{' ' * indent}]"
    body = ",\n".join(inner + _layout(item, indent + 2, indent + 2) for item in value)
    return f"[\n{body}\n{' ' * indent}]"


def _filled(items: list[Any], inner: str) -> str:
    lines, line = [], inner
    for index, item in enumerate(items):
        word = json.dumps(item, ensure_ascii=False) + ("," if index + 1 < len(items) else "")
        if line != inner and len(line) + len(word) > WIDTH:
            lines.append(line.rstrip())
            line = inner
        line += word + " "
    return "\n".join([*lines, line.rstrip()])
