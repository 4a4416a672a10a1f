"""Tune every method on a stream with the same number of trials, and record each.

    python scripts/tune.py --stream split-glyphs --trials 8

A validation set is cut from the training examples; the test set is never read. Each trial
draws a learning rate (log-uniform) and the method's own choices from `SPACE` by a seed, so the
search is the same on every machine; it is appended to `scripts/tune.jsonl`, and a search that
was stopped goes on where it was. The best trial by average accuracy is printed in the end: it
is what `promptax.presets` holds.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from promptax import data, nn
from promptax.experiment import METHODS
from promptax.loop import fit
from promptax.presets import box_recipe, preset

RATES: dict[str, tuple[float, float]] = {
    "l2p": (0.003, 0.3),
    "dualprompt": (0.003, 0.3),
    "finetune": (0.0003, 0.03),
    "linear": (0.003, 0.3),
    "joint": (0.003, 0.3),
}
"""Smallest and largest learning rate (for a batch of 256)."""
SPACE: dict[str, dict[str, tuple[Any, ...]]] = {
    "l2p": {
        "prompt_length": (5, 10),
        "top_k": (2, 4),
        "pull": (0.1, 0.5, 1.0),
        "readout": ("prompt", "token", "token+prompt"),
        "vote_group": (None, 16),
    },
    "dualprompt": {
        "e_length": (5, 10, 20),
        "g_length": (5, 10),
        "pull": (0.1, 0.5, 1.0),
        "e_layers": ((2, 3, 4), (3, 4, 5)),
    },
    "finetune": {},
    "linear": {},
    "joint": {},
}
"""Each method's own choices."""


@dataclasses.dataclass(frozen=True)
class Tune:
    """Tune methods on a stream that comes with the package."""

    stream: str = "split-fashion-mnist"
    """Its name."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Which methods."""
    trials: int = 8
    """Settings to try for each method."""
    epochs: int = 1
    """Passes over each task."""
    record: Path = Path(__file__).with_suffix(".jsonl")
    """Where trials are appended."""


def settings(method: str, trial: int) -> tuple[float, dict[str, Any]]:
    """The learning rate and choices of a trial; the first one is the middle of the range and
    the method's defaults."""
    low, high = RATES[method]
    if trial == 0:
        return float(np.sqrt(low * high)), {}
    random = np.random.default_rng((trial, sum(map(ord, method))))
    rate = float(np.exp(random.uniform(np.log(low), np.log(high))))
    space = SPACE[method].items()
    return round(rate, 5), {name: values[random.integers(len(values))] for name, values in space}


def measure(flags: Tune, method: str, trial: int) -> dict[str, Any]:
    """Train one setting and measure it on the validation set."""
    rate, choices = settings(method, trial)
    images = preset(f"{flags.stream}-{method}").recipe.images
    recipe = box_recipe(images, rate, flags.epochs)
    stream = data.STREAMS[flags.stream](None).validation()
    result = fit(METHODS[method](**choices), stream, nn.load_vit("glyph-vit"), recipe)
    return {
        **_key(flags, method, trial),
        "learning_rate": rate,
        "choices": choices,
        **result.matrix.summary(),
    }


def _key(flags: Tune, method: str, trial: int) -> dict[str, Any]:
    return {"stream": flags.stream, "method": method, "epochs": flags.epochs, "trial": trial}


def main(flags: Tune) -> None:
    """Run the trials that are not recorded yet, and print the best of each method."""
    lines = flags.record.read_text().splitlines() if flags.record.exists() else []
    done = [json.loads(line) for line in lines]
    for method in flags.methods:
        for trial in range(flags.trials):
            key = _key(flags, method, trial)
            if any(all(row[name] == value for name, value in key.items()) for row in done):
                continue
            done.append(measure(flags, method, trial))
            with flags.record.open("a") as record:
                record.write(json.dumps(done[-1]) + "\n")
            print(json.dumps(done[-1]), flush=True)
        size = _key(flags, method, 0)
        size.pop("trial")
        rows = [row for row in done if all(row[name] == value for name, value in size.items())]
        best = max(rows, key=lambda row: row["average_accuracy"])
        print(f"best of {len(rows)}: {json.dumps(best)}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Tune))
