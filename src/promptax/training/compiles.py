"""Counts of compilations and their time, to hold the library to one compile per step."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_STEPS = {
    "jit(train_step)": "train",
    "jit(review_step)": "review",
    "jit(observe_step)": "observe",
    "jit(evaluation_step)": "evaluate",
    "jit(query_step)": "query",
}


@dataclass
class Compiles:
    """Compilations of the `train`, `observe`, `evaluate` and `query` step, of the `review`, and of
    all `other` functions."""

    count: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def take_seconds(self) -> dict[str, float]:
        """The time that compilation took since this was last asked."""
        taken = self.seconds
        self.seconds = defaultdict(float)
        return taken


def keep_compiles(folder: Path) -> None:
    """Keep what takes a second or more to compile in a folder, for later processes.

    JAX_COMPILATION_CACHE_DIR and JAX_ENABLE_COMPILATION_CACHE take precedence if they are set.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(folder))


@contextmanager
def count_compiles() -> Iterator[Compiles]:
    """Count the compilations inside the `with` block."""
    compiles = Compiles()

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _EVENT:
            name = _STEPS.get(str(kwargs.get("fun_name")), "other")
            compiles.count[name] += 1
            compiles.seconds[name] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiles
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
