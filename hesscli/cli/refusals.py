"""What the parser refuses, in the words of our own errors: the option, what is wrong with it, what to type."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from hesscli.errors import UsageError

_OF_RECIPES = ("run", "sweep")  # the verbs whose options stand in a recipe


def is_refusal(error: Exception) -> bool:
    """Whether the error is the parser's own: unknown option, missing argument, unknown command."""
    return hasattr(error, "format_message")


def as_usage_error(error: Any, arguments: Sequence[str], commands: Mapping[str, Any]) -> UsageError:
    """The parser's error with its option in front and a remedy behind; `commands` are all verbs by name."""
    context = getattr(error, "ctx", None)
    verb = next((word for word in arguments if word in commands), "")
    place = context.command_path if context else f"hess {verb}".strip()
    seek = f"see {place} --help"
    kind, option = type(error).__name__, getattr(error, "option_name", "")
    if kind == "NoSuchOption":
        return UsageError(option, f"{place} has no such option", _where_else(option, context, commands) or seek)
    if kind == "BadOptionUsage":
        return UsageError(option, _rest(error.format_message(), after=f"'{option}' "), seek)
    if kind == "MissingParameter" and error.param is not None:
        return UsageError(error.param.metavar or error.param.name.upper(), "is missing", seek)
    text = _one_line(error.format_message())
    if text.startswith("No such command"):
        word = text.split("'")[1]
        near = get_close_matches(word, list(commands), n=1)
        remedy = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(commands)}"
        return UsageError("command", f"hess has no command {word!r}", remedy)
    return UsageError("arguments", text[:1].lower() + text[1:], seek)


def _where_else(option: str, context: Any, commands: Mapping[str, Any]) -> str:
    if context is not None and context.info_name in _OF_RECIPES and (key := _recipe_key(option, commands)):
        return f"write {key}=VALUE"
    if others := [verb for verb, command in commands.items() if option in _names(command)]:
        *most, last = others
        listed = f"{', '.join(most)} and {last} read" if most else f"{last} reads"
        return f"leave it out: {listed} it"
    near = get_close_matches(option, _names(context.command) if context else [], n=1)
    return f"did you mean {near[0]}?" if near else ""


def _recipe_key(option: str, commands: Mapping[str, Any]) -> str:
    """The key of a recipe that an option of a measuring verb stands for, empty where it is none."""
    options = [p for command in commands.values() for p in command.params if option in (*p.opts, *p.secondary_opts)]
    return next((str(p.name).replace("__", ".") for p in options if "__" in str(p.name)), "")


def _names(command: Any) -> list[str]:
    """Every spelling of every option of a command."""
    options = [p for p in command.params if p.param_type_name == "option"]
    return [name for p in options for name in (*p.opts, *p.secondary_opts)]


def _rest(text: str, *, after: str) -> str:
    return _one_line(text).partition(after)[2] or _one_line(text)


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
