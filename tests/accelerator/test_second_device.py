"""Runs what needs a second kind of device in processes of their own: to register one changes a process for good."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(path.name for path in HERE.glob("pretended_*.py")))
def test_on_a_pretended_device(file):
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", HERE / file]
    ended = subprocess.run(command, cwd=HERE.parent.parent, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
    assert " passed" in ended.stdout
