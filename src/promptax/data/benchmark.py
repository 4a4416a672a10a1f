"""Streams by name: the data sets that the literature uses, and their division into tasks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from promptax.core.errors import UserError
from promptax.core.fields import check_choices
from promptax.data.class_order import ClassOrder
from promptax.data.dataset import Dataset
from promptax.data.gaussian import gaussian_schedule
from promptax.data.sequence import dataset_sequence
from promptax.data.stream import TaskStream, class_incremental, domain_incremental

Kind = Literal["classes", "domains", "sets", "gaussian"]
"""New classes in every task; the same classes from new domains; one data set after another; classes
that fade in and out."""

MICRO_TASKS = 200
"""Of a Gaussian schedule, if their number is not given (as published)."""


@dataclass(frozen=True)
class Benchmark:
    """The division of data sets into a stream of tasks."""

    sets: tuple[str, ...]
    """Names of data sets: bundled ones, or prepared ones. Only the kind `sets` takes several."""
    kind: Kind = "classes"
    """Whether a task brings new classes, a new domain, another data set, or a shift of classes."""
    tasks: int | None = None
    """Number of tasks to divide the classes into evenly; of micro-tasks, if `gaussian`."""
    task_sizes: tuple[int, ...] | None = None
    """Number of classes of each task, in place of `tasks`."""
    order: ClassOrder = None
    """The order of the classes."""
    reverse: bool = False
    """Whether the last task comes first."""
    common_test: bool = False
    """Whether the domains share a single test set."""

    def __post_init__(self):
        check_choices(self)

    def stream(self, name: str, read: Callable[[str], Dataset]) -> TaskStream:
        """Build the stream called `name` from the data sets that `read` finds by their names.

        Raises `UserError` for settings that do not fit the kind, and whatever the function that
        builds streams of this kind raises.
        """
        if self.kind != "classes" and (self.order is not None or self.task_sizes is not None):
            raise UserError(f"{name}: only a class-incremental stream has an order of classes.")
        if self.kind in ("domains", "sets") and self.tasks is not None:
            raise UserError(f"{name}: its tasks are its {self.kind}, so their number is given.")
        if self.kind == "sets":
            sets = tuple(reversed(self.sets)) if self.reverse else self.sets
            return dataset_sequence([read(member) for member in sets], name=name)
        (dataset_name,) = self.sets
        dataset = read(dataset_name)
        stream = _STREAM_OF_ONE_SET[self.kind](self, name, dataset)
        return replace(stream, split=dataset.split)


def _classes(benchmark: Benchmark, name: str, dataset: Dataset) -> TaskStream:
    return class_incremental(
        dataset.train,
        dataset.test,
        num_tasks=benchmark.tasks if benchmark.task_sizes is None else None,
        task_sizes=benchmark.task_sizes,
        class_order=benchmark.order,
        reverse=benchmark.reverse,
        class_names=dataset.class_names,
        name=name,
    )


def _domains(benchmark: Benchmark, name: str, dataset: Dataset) -> TaskStream:
    if not dataset.group_names:
        raise UserError(f"{name}: the set '{dataset.name}' has no domains.")
    stream = domain_incremental(
        dataset.train,
        dataset.test,
        (dataset.train.groups, dataset.test.groups),
        domain_names=dataset.group_names,
        class_names=dataset.class_names,
        common_test=benchmark.common_test,
        name=name,
    )
    if not benchmark.reverse:
        return stream
    return replace(stream, tasks=stream.tasks[::-1], test_sets=stream.test_sets[::-1])


def _gaussian(benchmark: Benchmark, name: str, dataset: Dataset) -> TaskStream:
    if benchmark.reverse:
        raise UserError(f"{name}: a Gaussian schedule cannot be reversed.")
    return gaussian_schedule(
        dataset.train,
        dataset.test,
        class_names=dataset.class_names,
        micro_tasks=MICRO_TASKS if benchmark.tasks is None else benchmark.tasks,
        name=name,
    )


_STREAM_OF_ONE_SET = {"classes": _classes, "domains": _domains, "gaussian": _gaussian}

BENCHMARKS: Mapping[str, Benchmark] = {
    "split-fashion-mnist": Benchmark(("small-fashion-mnist",), tasks=5),
    "split-glyphs": Benchmark(("glyphs",), tasks=10),
    "glyph-domains": Benchmark(("glyph-domains",), "domains"),
    "split-cifar10": Benchmark(("cifar10",), tasks=5),
    "split-cifar100": Benchmark(("cifar100",), tasks=10),
    "gaussian-cifar100": Benchmark(("cifar100",), "gaussian", tasks=MICRO_TASKS),
    "split-mnist": Benchmark(("mnist",), tasks=5),
    "five-datasets": Benchmark(("cifar10", "mnist", "svhn", "notmnist", "fashion-mnist"), "sets"),
    "core50": Benchmark(("core50",), "domains", common_test=True),
    "split-imagenet-r": Benchmark(("imagenet-r",), tasks=10),
    "domainnet": Benchmark(("domainnet",), "domains"),
    "split-imagenet": Benchmark(("imagenet",), tasks=10),
}
"""By their names on the command line. The data of the first three is bundled with the package."""
