"""The layout is the architecture: a folder imports only folders below it, and the light parts stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "hesscli"

# From the top to the ground. A folder imports only what stands on a lower floor.
FLOORS = [
    {"__main__"},
    {"cli", "callback"},
    {"run"},
    {"probes", "curvature", "checkpoint"},
    {"linalg", "report", "recipe", "data"},
    {"demo", "distributed"},
    {"errors", "events", "__init__"},
]
# The one neighbour that may be seen: the operator must know where memory is, what is placed by layer, and what is read.
ALLOWED = {("curvature", f"checkpoint.{name}") for name in ("memory", "layers", "stored")}
ONLY_ABOVE = {"recipe": {"cli", "run", "callback"}, "report": {"cli", "run", "callback"}}
HUGGING_FACE = {"transformers", "accelerate", "datasets", "huggingface_hub", "tokenizers"}


def imports(path, *, top_level_only=False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor_of(part):
    return next(i for i, floor in enumerate(FLOORS) if part in floor)


def sources():
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 40
    return [(path, path.relative_to(ROOT).parts[0].removesuffix(".py")) for path in files]


def test_every_folder_has_a_floor():
    for _, part in sources():
        floor_of(part)


def test_a_folder_imports_only_folders_below_it():
    seen = 0
    for path, part in sources():
        for name in imports(path):
            words = name.split(".")
            if words[0] != "hesscli" or len(words) < 2 or words[1] in (part, "__version__"):
                continue
            seen += 1
            if (part, ".".join(words[1:3])) in ALLOWED:
                continue
            assert floor_of(words[1]) > floor_of(part), f"{path.relative_to(ROOT)} imports {name}"
            if words[1] in ONLY_ABOVE:
                assert part in ONLY_ABOVE[words[1]], f"{path.relative_to(ROOT)} imports {name}"
    assert seen > 60


def test_hugging_face_is_known_to_three_folders_only():
    for path, part in sources():
        if part in {"checkpoint", "data", "curvature", "callback"} or path.name == "make.py":
            continue
        found = {name.split(".")[0] for name in imports(path)} & HUGGING_FACE
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


@pytest.mark.parametrize(
    "folder", ["report", "recipe", "demo/__init__.py", "linalg/tridiagonal.py", "linalg/statistics.py"]
)
def test_the_light_parts_never_import_torch(folder):
    place = ROOT / folder
    for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
        assert not {n for n in imports(path) if n.split(".")[0] == "torch"}, path


def test_numerics_know_no_console_and_no_clock():
    for path, part in sources():
        if part in {"linalg", "probes", "curvature"}:
            found = {n.split(".")[0] for n in imports(path)} & {"rich", "typer", "time", "logging", "matplotlib"}
            assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_files_are_small():
    sizes = sorted(len(path.read_text().splitlines()) for path, _ in sources() if path.name != "__init__.py")
    assert sizes[-1] <= 400
    assert sizes[len(sizes) // 2] <= 120


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["plot", "--help"],
        ["density", "--help"],
        ["--version"],
        ["schema", "report"],
        ["compare", "--help"],
        ["check", "--help"],
        ["export", "--help"],
        ["report", "--help"],
        ["ls", "."],
        ["doctor", "--help"],
        ["sweep", "checkpoint-trajectory", "--print-config"],
        ["recipes"],
    ],
)
def test_light_commands_import_no_torch(arguments):
    code = (
        "import sys\nfrom hesscli.cli.app import _exit_code\n"
        f"code = _exit_code({arguments!r})\n"
        "heavy = {'torch', 'transformers', 'datasets', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy or code else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
