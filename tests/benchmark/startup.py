"""How long the light commands take to start: those that read JSON alone, and the help."""

import statistics
import subprocess
import sys
import tempfile
import time

COLUMNS = ["command", "seconds", "min..max"]
LEGEND = ["a process each, from nothing to its end, the median of {repeats} turns; the aim is 0.5"]

_COMMANDS = (["--help"], ["check", "--help"], ["compare", "--help"], ["plot", "--help"], ["ls", "."])


def startup_rows(repeats, *, say):
    """A row a command."""
    rows = []
    with tempfile.TemporaryDirectory() as nowhere:
        for words in _COMMANDS:
            say(f"starting hess {' '.join(words)}")
            took = sorted(_seconds(words, nowhere) for _ in range(repeats))
            span = f"{took[0]:.2f}..{took[-1]:.2f}"
            rows.append([f"hess {' '.join(words)}", f"{statistics.median(took):.2f}", span])
    return rows


def _seconds(words, folder):
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "hesscli", *words], cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun
