"""Tune every method on a stream with the same number of trials, and record each.

    python scripts/tune.py --stream split-glyphs --trials 8

A validation set is split off the training examples; the test set is never read. The first trial of
a method takes the middle of its range of learning rates and the first value of each of its choices
in `SPACE`. The others are points of a Sobol sequence over both (learning rates on a logarithmic
scale), the same on every machine. Each trial is appended to `scripts/tune.jsonl`, and a search that
was stopped goes on from there. The best trial by average accuracy is printed at the end; it is the
one that `promptax.runs.presets` holds.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import tyro
from scipy.stats import qmc

from promptax import nn
from promptax.core.allocator import keep_freed_memory
from promptax.methods import Finetune
from promptax.methods.base import AbstractMethod
from promptax.methods.registry import method_class
from promptax.runs.fitting import fit
from promptax.runs.inputs import Data
from promptax.runs.presets import bundled_recipe, preset

RATES: dict[str, tuple[float, float]] = {
    "l2p": (0.01, 0.3),
    "dualprompt": (0.01, 0.3),
    "coda": (0.001, 0.03),
    "sprompts": (0.01, 0.3),
    "hide": (0.01, 0.3),
    "finetune": (0.01, 0.3),
    "linear": (0.01, 0.3),
    "joint": (0.01, 0.3),
    "ncm": (0.01, 0.3),
    "ranpac": (0.01, 0.3),
    "er": (0.01, 0.3),
    "derpp": (0.01, 0.3),
    "ewc": (0.01, 0.3),
    "lwf": (0.01, 0.3),
    "slca": (0.01, 0.3),
    "sldc": (0.003, 0.1),
}
"""Smallest and largest learning rate (for a batch of 256); methods in closed form ignore it."""
SLOW: dict[str, tuple[Any, ...]] = {"backbone_rate": (0.01, 0.001, 0.003, 0.03)}
"""The rate of the backbone as a fraction of the head's."""
SPACE: dict[str, dict[str, tuple[Any, ...]]] = {
    # As on 5-datasets, each task has prompts of its own. Without that, all images of these streams
    # choose the same few prompts, and every task overwrites them (0.14 to 0.41 in eight trials on
    # split-fashion-mnist). The head reads the class token: reading the prompts as well gave 0.60
    # instead of 0.86 on split-glyphs.
    "l2p": {
        "task_mask": (True,),
        "transfer_prompts": (True,),
        "vote_group": (None,),
        "readout": ("token",),
        "layers": ((4,), (3,), (5,)),
        "top_k": (1, 2, 4),
        "prompt_length": (5, 2, 10),
        "pull": (0.5, 0.1, 1.0),
    },
    "dualprompt": {
        "e_layers": ((3, 4, 5), (4, 5), (2, 3, 4)),
        "e_length": (5, 10, 20),
        "g_layers": ((1, 2), (0, 1), (0,)),
        "g_length": (5, 2),
        "pull": (0.5, 0.1, 1.0),
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
    # With one small rate for backbone and head, the head learns too slowly: on split-glyphs, the
    # best of eight trials of replay gave 0.42.
    "finetune": SLOW,
    "linear": {},
    "joint": {},
    "ncm": {"metric": ("cosine", "euclidean")},
    "ranpac": {"width": (2000, 500, 1000)},
    "er": SLOW,
    "derpp": {**SLOW, "alpha": (0.1, 0.3, 1.0), "beta": (0.5, 1.0)},
    "ewc": {**SLOW, "coefficient": (100.0, 1000.0, 10000.0)},
    "lwf": {**SLOW, "coefficient": (1.0, 3.0, 10.0)},
    "slca": {**SLOW, "temperature": (0.1, None)},
    "sldc": {"distill": (1.0, 0.0, 10.0), "rank": (4, 8), "align_rate": (0.0005, 0.005, 0.05)},
}
"""Choices of each method besides the learning rate; the first value of each makes the first trial.
Names that begin with `align_` are fields of its `alignment`."""


JOINT = "joint"
"""The linear probe on all tasks at once, which is tuned as if it were a method."""
PROBE = "linear"
REPLAYING = ("er", "derpp")
"""Methods with a replay buffer around fine-tuning."""


@dataclasses.dataclass(frozen=True)
class Tune:
    """Tune methods on a stream that comes with the package."""

    stream: str = "split-fashion-mnist"
    """Name of the stream."""
    methods: tuple[str, ...] = tuple(RATES)
    """Methods to tune."""
    trials: int = 8
    """Number of trials for each method."""
    epochs: int = 3
    """Passes over each task."""
    record: Path = Path(__file__).with_suffix(".jsonl")
    """File to which trials are appended."""


def settings(method: str, trial: int, tasks: int) -> tuple[float, dict[str, Any]]:
    """The learning rate and choices of a trial."""
    (low, high), space = RATES[method], SPACE[method]
    point, *points = _point(1 + len(space), trial)
    choices = {
        name: values[int(at * len(values))]
        for (name, values), at in zip(space.items(), points, strict=True)
    }
    if "task_mask" in choices:
        choices["pool_size"] = tasks * choices["top_k"]
    return round(float(low * (high / low) ** point), 5), choices


def _point(dimensions: int, trial: int) -> list[float]:
    """A point of the unit cube for a trial: the learning rate first, then the choices."""
    if trial == 0:
        middle_rate = 0.5
        first_choice = 0.0
        return [middle_rate] + [first_choice] * (dimensions - 1)
    sequence = qmc.Sobol(dimensions, rng=0).fast_forward(trial)
    return sequence.random(1)[0].tolist()


def method_of(name: str, choices: dict[str, Any]) -> AbstractMethod:
    """The method with the choices of a trial.

    A choice can belong to a part of the method: `align_...` to its `alignment`, and for methods
    with a replay buffer, `backbone_rate` to the method that they train.
    """
    kind = method_class(PROBE if name == JOINT else name)
    align = {field: value for field, value in choices.items() if field.startswith("align_")}
    own = {field: value for field, value in choices.items() if field not in align}
    if align:
        default: Any = kind()  # of a class that has such a field
        own["alignment"] = dataclasses.replace(default.alignment, **align)
    if name in REPLAYING and "backbone_rate" in own:
        own["method"] = Finetune(backbone_rate=own.pop("backbone_rate"))
    return kind(**own)


def measure(flags: Tune, method: str, trial: int) -> dict[str, Any]:
    """Train one setting and measure it on the validation set."""
    stream = Data(flags.stream, validation=0.2, joint=method == JOINT).load()
    rate, choices = settings(method, trial, len(stream.tasks))
    images = preset(f"{flags.stream}-{method}").recipe.images
    # Only the accuracy after the last task counts, so nothing is measured before.
    recipe = bundled_recipe(images, rate, flags.epochs, every=len(stream.tasks))
    result = fit(method_of(method, choices), stream, nn.load_vit("glyph-vit"), recipe)
    return {
        **_key(flags, method, trial),
        "learning_rate": rate,
        "choices": choices,
        "average_accuracy": result.matrix.average_accuracy,
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
        # Trials of one method share compiled steps unless they differ in structure, but no other
        # method can use them, and each maps memory: Linux allows a process 65,530 mappings.
        jax.clear_caches()
        size = _key(flags, method, 0)
        size.pop("trial")
        rows = [row for row in done if all(row[name] == value for name, value in size.items())]
        best = max(rows, key=lambda row: row["average_accuracy"])
        print(f"best of {len(rows)}: {json.dumps(best)}", flush=True)


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Tune))
