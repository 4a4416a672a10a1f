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


@pytest.mark.slow
def test_a_long_run_does_not_grow():
    done = run("--long", "--tasks", "40", "--steps", "400")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 tasks, 400 steps" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("command", ["--help", "weights list"])
def test_an_output_that_is_full_is_told_without_a_traceback(command):
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", "promptax", *command.split()]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "promptax: No space left on device.\n")
