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

from promptax import nn
from promptax.experiment import METHODS
from promptax.inputs import Data
from promptax.loop import fit
from promptax.method import AbstractTaskwise
from promptax.presets import box_recipe, preset

RATES: dict[str, tuple[float, float]] = {
    "l2p": (0.003, 0.3),
    "dualprompt": (0.003, 0.3),
    "coda": (0.001, 0.03),
    "sprompts": (0.003, 0.3),
    "hide": (0.003, 0.3),
    "finetune": (0.0001, 0.01),
    "linear": (0.003, 0.3),
    "joint": (0.003, 0.3),
    "ncm": (0.003, 0.3),
    "ranpac": (0.003, 0.3),
    "er": (0.0001, 0.01),
    "derpp": (0.0001, 0.01),
    "ewc": (0.0001, 0.01),
    "lwf": (0.0001, 0.01),
    "slca": (0.003, 0.3),
    "sldc": (0.001, 0.1),
}
"""Smallest and largest learning rate (for a batch of 256); a closed form has no use for it."""
SPACE: dict[str, dict[str, tuple[Any, ...]]] = {
    # As on 5-datasets, the tasks have slots of their own: without, the few prompts that all
    # images of the box choose are trained over by every task (0.14 to 0.41 in eight trials).
    "l2p": {
        "task_mask": (True,),
        "transfer_prompts": (True,),
        "vote_group": (None,),
        "layers": ((3,), (0,), (4,)),
        "top_k": (4, 1, 2),
        "prompt_length": (5, 2, 10),
        "readout": ("token", "token+prompt"),
        "pull": (0.5, 0.1, 1.0),
    },
    "dualprompt": {
        "e_layers": ((2, 3, 4), (3, 4, 5), (4, 5)),
        "e_length": (5, 10, 20),
        "g_length": (5, 2),
        "pull": (1.0, 0.1, 0.5),
    },
    "coda": {
        "components": (100, 50),
        "length": (8, 4, 16),
        "layers": ((0, 1, 2, 3, 4), (2, 3, 4), (3, 4, 5)),
        "orthogonality": (0.1, 0.0, 1.0),
    },
    "hide": {
        "length": (5, 10, 20),
        "layers": ((0, 1, 2, 3, 4), (2, 3, 4), (3, 4, 5)),
        "contrast": (0.1, 0.0, 0.01),
        "head_rate": (1.0, 0.1),
    },
    "sprompts": {"length": (10, 5, 20), "clusters": (5, 10, 20)},
    "finetune": {},
    "linear": {},
    "joint": {},
    "ncm": {"metric": ("cosine", "euclidean")},
    "ranpac": {"width": (2000, 500, 1000)},
    "er": {},
    "derpp": {"alpha": (0.1, 0.3, 1.0), "beta": (0.5, 1.0)},
    "ewc": {"coefficient": (100.0, 1000.0, 10000.0)},
    "lwf": {"coefficient": (1.0, 3.0, 10.0)},
    "slca": {"backbone_rate": (0.01, 0.003, 0.03), "temperature": (0.1, None)},
    "sldc": {"distill": (1.0, 0.0, 10.0), "rank": (4, 8)},
}
"""Each method's own choices, the first of which make the first trial."""


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


def settings(method: str, trial: int, tasks: int) -> tuple[float, dict[str, Any]]:
    """The learning rate and choices of a trial; the first has the middle of the range."""
    (low, high), space = RATES[method], SPACE[method]
    random = np.random.default_rng((trial, sum(map(ord, method))))
    rate = np.exp(random.uniform(np.log(low), np.log(high))) if trial else np.sqrt(low * high)
    pick = lambda values: values[random.integers(len(values)) if trial else 0]
    choices = {name: pick(values) for name, values in space.items()}
    if "task_mask" in choices:
        choices["pool_size"] = tasks * choices["top_k"]
    if issubclass(METHODS[method], AbstractTaskwise):
        choices["tasks"] = tasks
    return round(float(rate), 5), choices


def measure(flags: Tune, method: str, trial: int) -> dict[str, Any]:
    """Train one setting and measure it on the validation set."""
    stream = Data(flags.stream, validation=0.2).load()
    rate, choices = settings(method, trial, len(stream.stages))
    images = preset(f"{flags.stream}-{method}").recipe.images
    recipe = box_recipe(images, rate, flags.epochs)
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
