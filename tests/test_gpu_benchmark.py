"""The benchmark of a GPU: that a failure costs one figure, and that what is measured is kept."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax.random as jr
import pytest

sys.path.append(str(Path(__file__).parents[1] / "scripts"))

import gpu  # pyright: ignore[reportMissingImports]
import runs  # pyright: ignore[reportMissingImports]
import toy
import traces  # pyright: ignore[reportMissingImports]

from promptax.training.trainer import Trainer


@pytest.fixture
def record(tmp_path):
    return gpu.Record(tmp_path / "rows.jsonl", time.monotonic() + 60, "steps")


def read(record):
    return [json.loads(line) for line in record.path.read_text().splitlines()]


def test_a_figure_that_fails_is_recorded_and_the_next_is_measured(record):
    with record.item("first"):
        raise ValueError("no kernel")
    with record.item("second"):
        record.need(1000)
        raise AssertionError("not reached")
    with record.item("third"):
        record.add("third", milliseconds=1.5)
    first, second, third = read(record)
    assert first["error"] == "ValueError: no kernel"
    assert "OutOfTime: only" in second["error"]
    assert third == {"section": "steps", "name": "third", "milliseconds": 1.5}


def test_the_table_has_every_figure_and_every_error():
    rows = [
        {"section": "steps", "name": "l2p", "milliseconds": 40.0, "share_of_peak": 0.52},
        {"section": "torch", "name": "l2p", "error": "not installed"},
        {"section": "steps", "name": "profile", "kernels": [{"name": "k", "ms": 1, "calls": 2}]},
    ]
    lines = gpu.markdown(rows).splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    assert lines[2].startswith("| steps | l2p | 40 |  | 0.52 |")
    assert "- torch: l2p: error not installed" in lines
    assert "| k | 1.000 | 2 |" in lines


def test_a_section_that_hangs_is_stopped_and_the_next_runs(tmp_path, monkeypatch):
    slow = "import sys, time; time.sleep(60)"
    fine = 'import sys; open(sys.argv[3], \'a\').write(\'{"section": "torch", "name": "x"}\\n\')'
    script = tmp_path / "section.py"
    script.write_text(f"import sys\nif sys.argv[1] == 'steps':\n    {slow}\nelse:\n    {fine}\n")
    monkeypatch.setattr(gpu, "__file__", str(script))
    monkeypatch.setattr(gpu, "GRACE", 0)
    gpu.Gpu(out=tmp_path / "out", minutes=0.1, sections=("steps", "torch"))()
    rows = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert [row["name"] for row in rows] == ["whole section", "x"]
    assert "stopped after" in rows[0]["error"]


def test_a_section_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="unknown section 'all': choose from steps, torch"):
        gpu.Gpu(out=tmp_path, sections=("all",))()


def test_time_in_which_kernels_overlap_counts_once():
    spans = ((0, 10), (5, 12), (6, 8), (20, 30))
    kernels = [traces.Kernel("k", start, end) for start, end in spans]
    assert traces.busy_nanoseconds(kernels) == 22
    assert traces.idle_share(kernels) == pytest.approx(8 / 30)


@pytest.mark.slow
def test_the_steps_that_are_traced_are_those_of_a_run_in_the_middle_of_a_task(monkeypatch):
    monkeypatch.setattr(runs, "WARMUP", 2)
    monkeypatch.setattr(runs, "TRACED", 3)
    method = toy.METHODS["linear"]
    stream = toy.make_stream()
    recipe = toy.recipe_for(method)
    recipe = replace(recipe, schedule=replace(recipe.schedule, epochs=8))
    trainer, state = Trainer.create(method, toy.make_vit(), stream, recipe, key=jr.key(0))
    assert trainer.steps(stream, 2) > 5
    trained = []

    def traced(work):
        before = int(trained[-1].step)
        work()
        return [before, int(trained[-1].step)]

    take = runs.train_task

    def train_task(*args, **options):
        for event in take(*args, **options):
            if isinstance(event, runs.StepDone):
                trained.append(event.state)
            yield event

    monkeypatch.setattr(runs, "traced", traced)
    monkeypatch.setattr(runs, "train_task", train_task)
    assert runs._traced_steps(trainer, state, stream) == [2, 5]
