"""Runs what needs a second kind of device in a process of its own: to register one changes a process for good."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_all_holds_on_a_pretended_device():
    """One process for all files: to start one is as long as most of them take."""
    files = sorted(HERE.glob("pretended_*.py"))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "--durations=9", *files]
    ended = subprocess.run(command, cwd=HERE.parent.parent, capture_output=True, text=True, timeout=900, check=False)
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
    assert " passed" in ended.stdout
