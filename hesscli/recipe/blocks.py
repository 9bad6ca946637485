"""A partition of the parameters by hand: a YAML file of `name: glob, glob` lines."""

from pathlib import Path

import yaml

from hesscli.errors import UsageError
from hesscli.recipe.document import StrictLoader

_FIELD = "operator.blocks"
_REMEDY = "write lines such as `attention: *.self_attn.*, *.input_layernorm.*`"


def load_blocks(path: Path) -> dict[str, list[str]]:
    """The globs of each block, in the file's order; a value is one text with commas or a list.

    Raises UsageError where the file cannot be read or holds anything else.
    """
    try:
        # A glob may begin with a star, which YAML takes for an alias: each value is read as plain text.
        tree = yaml.load(_quoted(path.read_text(encoding="utf-8")), Loader=StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(_FIELD, f"{str(path)!r} cannot be read", "give the path of a YAML file") from error
    except yaml.YAMLError as error:
        raise UsageError(_FIELD, f"{path.name} does not parse: {_problem(error)}", _REMEDY) from error
    if not isinstance(tree, dict) or not tree:
        raise UsageError(_FIELD, f"{path.name} names no block", _REMEDY)
    blocks = {}
    for name, value in tree.items():
        words = value.split(",") if isinstance(value, str) else value
        if not isinstance(name, str) or not isinstance(words, list) or not all(isinstance(w, str) for w in words):
            raise UsageError(_FIELD, f"block {name!r} holds no globs", _REMEDY)
        blocks[name] = [word.strip() for word in words if word.strip()]
        if not blocks[name]:
            raise UsageError(_FIELD, f"block {name!r} holds no globs", _REMEDY)
    return blocks


def _quoted(text: str) -> str:
    lines = []
    for line in text.splitlines():
        name, colon, value = line.partition(": ")
        plain = value.strip()
        if colon and plain.startswith("*"):
            plain = plain.split(" #")[0].strip()
            line = f"{name}: '{plain}'"
        lines.append(line)
    return "\n".join(lines)


def _problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or "not YAML")
