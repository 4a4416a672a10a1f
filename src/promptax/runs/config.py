"""Experiments in files that people write: the `config.json` of a run, or a part of one, in YAML.

A file need not say everything. What it leaves out is as in the preset of its method on its stream.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from promptax.core.errors import UserError, unknown
from promptax.core.files import read_bytes, read_json
from promptax.core.limits import TEXT
from promptax.methods.registry import class_for_run, method_class
from promptax.runs.experiment import SCHEMA, Experiment
from promptax.runs.folder import RunFolder, as_read
from promptax.runs.inputs import Data
from promptax.runs.preprocessing import PREPARATION
from promptax.runs.presets import default_for

_YAML = (".yaml", ".yml")


Adapt = Callable[[Experiment, str], Experiment]
"""Adapts the preset of a file's method to the weights that the file names."""


def read_config(
    path: Path, method: str | None = None, adapt: Adapt | None = None
) -> tuple[Experiment, dict[str, Any]]:
    """Read an experiment from a file.

    Args:
        path: A YAML file or JSON file with the names of a run's `config.json`, or a run folder.
        method: The name under which the class of the method was loaded, if it is not part of the
            package; a file never makes code run.
        adapt: Changes the preset of the method for the weights of the file, before the settings of
            the file replace its own. It is not called for a file with all settings of how images
            are prepared.

    Returns:
        The experiment, and the settings that the file itself gives.

    Raises:
        UserError: The file cannot be read, a name in it is unknown, or a value is wrong.
    """
    if path.is_dir():
        path = RunFolder(path).config
    stored = _read_yaml(path) if path.suffix in _YAML else read_json(path)
    try:
        return _experiment(stored, method, adapt)
    except UserError as error:
        raise UserError(f"'{path}': {error}") from None


def written_config(experiment: Experiment) -> str:
    """An experiment as YAML, which `read_config` reads."""
    content = as_read(experiment.to_json())
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _experiment(
    stored: Any, method: str | None, adapt: Adapt | None
) -> tuple[Experiment, dict[str, Any]]:
    if not isinstance(stored, Mapping) or "method" not in stored:
        raise UserError("a config has at least the entry `method`, such as `method: l2p`.")
    chosen = stored["method"]
    given = {"schema": SCHEMA, **stored}
    given["method"] = {"name": chosen} if isinstance(chosen, str) else chosen
    name = given["method"].get("name") if isinstance(given["method"], Mapping) else None
    if not isinstance(name, str):
        raise UserError("the entry `method` has no name: write `method: {name: l2p}`, for example.")
    kind = class_for_run(name, None if method is None else method_class(method))
    data = given.get("data")
    stream = data.get("stream") if isinstance(data, Mapping) else None
    start = default_for(method or name, stream if isinstance(stream, str) else Data().stream)
    complete = as_read(start.to_json())
    given["method"] = {**given["method"], "name": complete["method"]["name"]}
    if problem := next(_unknown_names(given, complete), None):
        raise problem
    experiment = Experiment.from_json(_merged(complete, given), method=kind)
    images = given.get("recipe", {}).get("images", {})
    if adapt is not None and not set(images) >= PREPARATION:
        adapted = as_read(adapt(start, experiment.backbone.weights).to_json())
        experiment = Experiment.from_json(_merged(adapted, given), method=kind)
    return experiment, dict(stored)


def _unknown_names(given: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[UserError]:
    """An error for each name that a config does not have, with the nearest that it has."""
    for name, value in given.items():
        if name == "given":
            continue  # `Experiment.from_json` explains it
        if name not in known:
            yield unknown("setting", str(name), known)
        elif isinstance(value, Mapping) and isinstance(known[name], Mapping):
            yield from _unknown_names(value, known[name])


def _merged(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The given values, and those of the base that are not given."""
    merged = dict(base)
    for name, value in given.items():
        both = isinstance(value, Mapping) and isinstance(base.get(name), Mapping)
        merged[name] = _merged(base[name], value) if both else value
    return merged


class _Dumper(yaml.SafeDumper):
    """YAML with each list in a line, such as `crop_area: [0.05, 1.0]`."""

    def represent_list(self, data: Any) -> Any:
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


_Dumper.add_representer(list, _Dumper.represent_list)


class _Loader(yaml.SafeLoader):
    """YAML without references, of which a small file can make a huge or endless tree."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(
                None, None, "references (*name) are not supported", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{name}' is given twice", node.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> Any:
    content = read_bytes(path, "config", TEXT)
    try:
        return yaml.load(content, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" in line {mark.line + 1}"
        reason = getattr(error, "problem", None) or type(error).__name__
        raise UserError(f"config '{path}' is no valid YAML{where}: {reason}.") from None
