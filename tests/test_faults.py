"""`scripts/faults.py` in short: kills of every kind lose nothing, and a long run does not grow."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "faults.py"


def run(*flags):
    return subprocess.run([sys.executable, SCRIPT, *flags], capture_output=True, text=True)


@pytest.mark.slow
def test_runs_that_are_killed_lose_nothing():
    done = run("--kills", "8", "--methods", "linear")
    assert done.returncode == 0, done.stderr
    assert "| in all | 8 | 0 |" in done.stdout
