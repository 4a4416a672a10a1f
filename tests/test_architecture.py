"""Which module may import which, and that shapes are checked while tests run."""

import ast
from pathlib import Path

import jax.numpy as jnp
import jaxtyping
import pytest

import promptax
from promptax.core.types import RawBatch
from promptax.nn.prompt import l2_normalize

ROOT = Path(promptax.__file__).parent
ROOMS = ("core", "data", "nn", "methods", "training", "runs", "cli")
"""From the bottom to the top: a room imports only from itself and from those before it."""
LEVEL = {name: level for level, name in enumerate((*ROOMS, "__main__"))}
FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]
"""All but the front door, which imports everything, lazily."""


def module_of(path: Path) -> str:
    return ".".join(["promptax", *path.relative_to(ROOT).with_suffix("").parts])


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, anywhere in it, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from promptax import x` may import a module of that name.
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("promptax.")}


def part_of(module: str) -> str:
    """The file or folder below the package."""
    return module.split(".")[1]


def test_every_part_of_the_package_has_a_layer():
    assert {part_of(module_of(path)) for path in FILES} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_module_imports_from_a_layer_above(path):
    own = part_of(module_of(path))
    for imported in imports(path):
        part = part_of(imported)
        assert LEVEL[part] <= LEVEL[own], f"{own} (layer {LEVEL[own]}) imports {imported}"
        assert not (own == "data" and part == "nn"), f"data imports {imported}"


def test_no_public_name_is_hidden_by_a_module_of_that_name():
    """Importing `promptax.x` sets the attribute `x` of the package, whatever it was before."""
    names = set(promptax.__all__) & {path.stem for path in ROOT.glob("*.py")}
    assert not names
    assert callable(promptax.fit)


def test_methods_know_nothing_of_each_other():
    # Rehearsal wraps any method, and fine-tuning is what experience replay wraps.
    shared = {"base", "components", "rehearsal", "finetune"}
    paths = [path for path in FILES if path.parent.name == "methods"]
    for path in paths:
        if path.stem in {"__init__", "registry", *shared}:
            continue
        others = {module for module in imports(path) if part_of(module) == "methods"}
        others = {module for module in others if module.split(".")[2] not in shared}
        assert not others, f"{module_of(path)} imports {others}"


def test_a_wrong_shape_is_refused_while_tests_run():
    """Fails where the suite runs without `--jaxtyping-packages`."""
    with pytest.raises(jaxtyping.TypeCheckError):
        l2_normalize(jnp.ones((2, 3), jnp.int32))
    with pytest.raises(jaxtyping.TypeCheckError):
        RawBatch(jnp.zeros((4, 8, 8, 3), jnp.uint8), jnp.zeros(3, jnp.int32), jnp.ones(4))
