"""Compiled steps that are kept for the next process."""

import json
import os
import subprocess
import sys

import pytest


def run(tiny, folder, cache, *flags):
    """In a process of its own, whose cache is a folder; the result and its log."""
    env = {**os.environ, "XDG_CACHE_HOME": f"{cache}", "JAX_ENABLE_COMPILATION_CACHE": "true"}
    # Everything, however fast it compiles.
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-m", "promptax", "train", "linear", *tiny.flags()]
    argv = [*command, "--run", f"{folder}", "--data.first", "1", *flags]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    return json.loads((folder / "result.json").read_text()), (folder / "log.txt").read_text()


@pytest.mark.slow
def test_a_second_run_finds_its_steps_compiled_and_comes_to_the_same(tiny, tmp_path):
    cache = tmp_path / "cache"
    first, log = run(tiny, tmp_path / "first", cache)
    kept = {path.name for path in (cache / "promptax" / "compiled").iterdir()}
    assert any(name.startswith("jit_train_step") for name in kept)
    assert any(name.startswith("jit_evaluation_step") for name in kept)
    assert f"first step after {first['timing']['first_step']:.1f} s" in log
    second, _ = run(tiny, tmp_path / "second", cache)
    files = {path.name for path in (cache / "promptax" / "compiled").iterdir()}
    assert {name for name in files if name.endswith("-cache")} <= kept
    assert second["timing"]["compile"] < 0.7 * first["timing"]["compile"]
    assert second["accuracy_matrix"] == first["accuracy_matrix"]


@pytest.mark.slow
def test_nothing_is_kept_where_that_is_not_wanted(tiny, tmp_path):
    cache = tmp_path / "cache"
    run(tiny, tmp_path / "run", cache, "--no-compile-cache")
    assert not (cache / "promptax").exists()


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_costs_nothing(tiny, tmp_path):
    cache = tmp_path / "cache"
    cache.touch()
    run(tiny, tmp_path / "run", cache)
