"""Compiled steps that are kept for the next process."""

import json
import os
import subprocess
import sys

import pytest


def start(tiny, folder, cache, *flags):
    """Start a run in a process of its own, whose cache is a folder."""
    env = {**os.environ, "XDG_CACHE_HOME": f"{cache}", "JAX_ENABLE_COMPILATION_CACHE": "true"}
    # Everything, however fast it compiles.
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-m", "promptax", "train", "linear", *tiny.flags()]
    argv = [*command, "--run", f"{folder}", "--data.first", "1", *flags]
    return subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True)


def end(process, folder):
    """Wait for a run; return its result and its log."""
    _, err = process.communicate(timeout=600)
    assert (process.returncode, "Traceback" in err) == (0, False), err
    return json.loads((folder / "result.json").read_text()), (folder / "log.txt").read_text()


def run(tiny, folder, cache, *flags):
    return end(start(tiny, folder, cache, *flags), folder)


def compared(result):
    """What must be the same in runs of the same settings."""
    return result["accuracy_matrix"], result["trained_sha256"]


@pytest.mark.slow
def test_runs_beside_each_other_share_a_cache_and_damaged_entries_do_no_harm(tiny, tmp_path):
    cache = tmp_path / "cache"
    folders = [tmp_path / f"{number}" for number in range(10)]
    processes = [start(tiny, folder, cache) for folder in folders]
    results = [
        compared(end(process, folder)[0])
        for process, folder in zip(processes, folders, strict=True)
    ]
    assert results == results[:1] * len(results)
    entries = sorted((cache / "promptax" / "compiled").glob("*-cache"))
    assert entries
    for number, entry in enumerate(entries):  # as a process leaves them that is killed meanwhile
        os.truncate(entry, (number % 3) * entry.stat().st_size // 3)
    result, _ = run(tiny, tmp_path / "after", cache)
    assert compared(result) == results[0]


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
