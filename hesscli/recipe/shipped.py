"""The recipes that come with hess, by name.

They lie in `recipes/` at the top of the repository; `shipped` beside this file is a link to it, and a folder in an
installed package.
"""

from difflib import get_close_matches
from pathlib import Path

from hesscli.errors import UsageError

FOLDER = Path(__file__).parent / "shipped"


def shipped_recipes() -> dict[str, Path]:
    """The file of each shipped recipe by its name, in order of their names."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def is_recipe(word: str) -> bool:
    """Whether a word names a recipe rather than a model: a YAML file, any file that is there, or a shipped name."""
    path = Path(word)
    if path.is_dir():
        return False
    return path.suffix in (".yaml", ".yml") or path.is_file() or word in shipped_recipes()


def find_recipe(word: str) -> Path:
    """The file of a recipe that is given by its path or, if there is no such file, by the name of a shipped one.

    Raises UsageError where it is neither.
    """
    path, shipped = Path(word), shipped_recipes()
    if path.exists() or path.suffix in (".yaml", ".yml"):
        return path
    if word in shipped:
        return shipped[word]
    near = get_close_matches(word, shipped, n=1)
    remedy = f"did you mean {near[0]}? hess recipes lists them" if near else "give a YAML file; hess recipes lists ours"
    raise UsageError("recipe", f"{word!r} is no file, and no recipe that comes with hess", remedy)
