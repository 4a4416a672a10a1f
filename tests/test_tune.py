"""The search for settings of the box: what is recorded, and that presets hold the best of it."""

import json
import runpy
from pathlib import Path

import pytest

from promptax.runs.presets import preset

SCRIPT = Path(__file__).parents[1] / "scripts" / "tune.py"
TUNE = runpy.run_path(str(SCRIPT))
STREAMS = {"split-fashion-mnist": 5, "split-glyphs": 10, "glyph-domains": 5}


def trials(stream, method):
    rows = map(json.loads, SCRIPT.with_suffix(".jsonl").read_text().splitlines())
    mine = [row for row in rows if (row["stream"], row["method"]) == (stream, method)]
    return sorted(mine, key=lambda row: row["trial"])


@pytest.mark.parametrize("method", TUNE["RATES"])
@pytest.mark.parametrize("stream", STREAMS)
def test_every_method_had_the_same_trials_and_its_preset_is_the_best(stream, method):
    rows = trials(stream, method)
    assert [row["trial"] for row in rows] == list(range(8))
    for row in rows:
        rate, choices = TUNE["settings"](method, row["trial"], STREAMS[stream])
        assert row["learning_rate"] == pytest.approx(rate, abs=1.1e-5)
        # Some trials were recorded when methods were told the number of tasks by a setting.
        recorded = {name: value for name, value in row["choices"].items() if name != "tasks"}
        assert recorded == json.loads(json.dumps(choices))
    best = max(rows, key=lambda row: row["average_accuracy"])
    rate, choices = TUNE["settings"](method, best["trial"], STREAMS[stream])
    held = preset(f"{stream}-{method}")
    assert held.method == TUNE["method_of"](method, choices)
    if held.method.loss is not None:
        assert held.recipe.optimizer.learning_rate == best["learning_rate"]
