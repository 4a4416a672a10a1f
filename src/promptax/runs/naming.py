"""The folder that a run gets if the user names none: no two experiments share one."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from promptax.runs.experiment import Experiment
from promptax.runs.folder import as_read, differences
from promptax.runs.presets import default_for

RUNS = Path("runs")
SETTINGS_SHOWN = 3
"""Settings that a name spells out; those beyond are told apart by a digest."""
LONGEST_SETTING = 32
"""Characters of a setting in a name."""
DIGEST_SHOWN = 6
"""Hexadecimal digits of a digest in a name."""


def default_folder(experiment: Experiment) -> Path:
    """The folder of an experiment: `runs/STREAM-METHOD`, and what differs from the defaults.

    The name follows from the settings alone, so that `--resume` with the same flags finds the run.
    An example is `runs/split-fashion-mnist-l2p-learning-rate-0.01-seed-1`.
    """
    settings = experiment.data
    stream = settings.name
    if settings.sets is not None:
        stream = stream.replace(" + ", "-")[:LONGEST_SETTING]
    changed = {name: now for name, (_, now) in changed_settings(experiment.to_json()).items()}
    parts = [f"{stream}-{experiment.label.replace(':', '-')}"]
    if experiment.extends is not None:
        # The other settings are those of the earlier run, and in its name.
        parts.append(f"after-{experiment.extends.name}")
        parts.append(_digest(changed))
        return RUNS / "-".join(parts)
    spelled = [_spelled(name, value) for name, value in changed.items()]
    parts += [text for text, _ in spelled[:SETTINGS_SHOWN]]
    if len(spelled) > SETTINGS_SHOWN or not all(exact for _, exact in spelled):
        parts.append(_digest(changed))
    if experiment.seed:
        parts.append(f"seed-{experiment.seed}")
    return RUNS / "-".join(parts)


def changed_settings(
    config: Mapping[str, Any], *, joint: bool = False
) -> dict[str, tuple[Any, Any]]:
    """The settings of a config that are not what its method starts from on its stream.

    Args:
        config: The content of a `config.json`.
        joint: Compare with the preset for training on all tasks at once, if there is one.

    Returns:
        By name, what a setting usually is, and what it is here.

    Raises:
        UserError: The method is not part of the package, and was not loaded.
    """
    usual = default_for(config["method"]["name"], config["data"]["stream"], joint=joint)
    ignored = {"seed", "data.joint", "data.dir"}  # named otherwise
    found = differences(as_read(usual.to_json()), as_read(config))
    return {name: values for name, values in found if name not in ignored}


def _digest(changed: Mapping[str, Any]) -> str:
    content = json.dumps(changed, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:DIGEST_SHOWN]


def _spelled(name: str, value: Any) -> tuple[str, bool]:
    """A setting as a part of a file name, and whether it can be told from all other values."""
    setting = name.rpartition(".")[2].replace("_", "-")
    if isinstance(value, bool):
        return (setting if value else f"no-{setting}"), True
    whole = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    # Of a path only the last part, and of that only what is safe in the name of any file.
    shown = re.sub(r"[^\w.+]+", "-", whole.rpartition("/")[2])[:LONGEST_SETTING].strip("-.")
    is_exact = shown == whole or (isinstance(value, list) and shown.replace("-", " ") == whole)
    return f"{setting}-{shown}", is_exact
