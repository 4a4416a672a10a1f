"""A file of a few kilobytes takes neither the memory nor the time that it asks for."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import bombs
import pytest

TIMEOUT = 120
"""Seconds for all bombs together, with the time to make them."""
FAST = [name for name in bombs.BOMBS if not name.startswith(bombs.SLOW)]
SLOW = [name for name in bombs.BOMBS if name.startswith(bombs.SLOW)]


def answers(folder: Path, names: list[str]) -> dict[str, bombs.Answer]:
    """What a process of its own, with little memory, answers to some bombs."""
    # One heap for all threads, and none that is reserved beforehand: they would count as taken.
    heaps = {"MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(
        [sys.executable, str(Path(bombs.__file__)), str(folder), *names],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **heaps},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    return {name: bombs.Answer(*answer) for name, answer in read.items()}


def check(name: str, answer: bombs.Answer) -> None:
    """One line that says what is wrong, at once."""
    words = bombs.BOMBS[name].words.split()
    assert answer.code == (2 if words else 0), answer
    assert "Traceback" not in answer.told
    assert [word for word in words if word not in answer.told] == [], answer
    assert answer.told.count("\n") <= 3
    assert answer.seconds < 20, answer


@pytest.fixture(scope="module")
def fast(tmp_path_factory):
    return answers(tmp_path_factory.mktemp("bombs"), FAST)


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    names = [name for name in SLOW if name != "Parquet" or find_spec("pyarrow") is not None]
    return answers(tmp_path_factory.mktemp("bombs"), names)


@pytest.mark.parametrize("name", FAST)
def test_a_bomb_does_not_go_off(name, fast):
    check(name, fast[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_large_bomb_does_not_go_off(name, slow):
    if name not in slow:
        pytest.skip("needs pyarrow")
    check(name, slow[name])
