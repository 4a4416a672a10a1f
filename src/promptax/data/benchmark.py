"""The streams of the field by name: which sets, and how they are cut into tasks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from promptax.core.errors import UserError
from promptax.data.dataset import Dataset
from promptax.data.gaussian import gaussian_schedule
from promptax.data.sequence import dataset_sequence
from promptax.data.stream import TaskStream, class_incremental, domain_incremental

Kind = Literal["classes", "domains", "sets", "gaussian"]
"""New classes in every task; the same classes in new domains; a set after another; classes that
fade in and out."""
ClassOrder = Sequence[int] | int | None
"""The order itself, a seed to draw it from, or ascending."""


@dataclass(frozen=True)
class Benchmark:
    """How sets become a stream of tasks."""

    sets: tuple[str, ...]
    """Names of data sets: those of the package, or prepared ones."""
    kind: Kind = "classes"
    tasks: int | None = None
    """Tasks of equal size, of `classes`; micro-tasks of `gaussian`."""
    task_sizes: tuple[int, ...] | None = None
    """Or the number of classes of each task."""
    order: ClassOrder = None
    """Of the classes."""
    reverse: bool = False
    """The last task first."""
    common_test: bool = False
    """One test set for all domains."""

    def stream(self, name: str, read: Callable[[str], Dataset]) -> TaskStream:
        """Build the stream from the sets that `read` gives by name.

        Raises `UserError` for what does not fit the kind, and as the kind's own function does.
        """
        if self.kind != "classes" and (self.order is not None or self.task_sizes is not None):
            raise UserError(f"{name}: only a class-incremental stream has an order of classes.")
        if self.kind in ("domains", "sets") and self.tasks is not None:
            raise UserError(f"{name}: its tasks are its {self.kind}, so their number is given.")
        if self.kind == "sets":
            sets = self.sets[::-1] if self.reverse else self.sets
            return dataset_sequence([read(member) for member in sets], name=name)
        (only,) = self.sets
        return _KINDS[self.kind](self, name, read(only))


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
    return replace(stream, stages=stream.stages[::-1], tasks=stream.tasks[::-1])


def _gaussian(benchmark: Benchmark, name: str, dataset: Dataset) -> TaskStream:
    if benchmark.reverse:
        raise UserError(f"{name}: a Gaussian schedule cannot be reversed.")
    return gaussian_schedule(
        dataset.train,
        dataset.test,
        class_names=dataset.class_names,
        micro_tasks=200 if benchmark.tasks is None else benchmark.tasks,
        name=name,
    )


_KINDS = {"classes": _classes, "domains": _domains, "gaussian": _gaussian}

BENCHMARKS: Mapping[str, Benchmark] = {
    "split-fashion-mnist": Benchmark(("small-fashion-mnist",), tasks=5),
    "split-glyphs": Benchmark(("glyphs",), tasks=10),
    "glyph-domains": Benchmark(("glyph-domains",), "domains"),
    "split-cifar10": Benchmark(("cifar10",), tasks=5),
    "split-cifar100": Benchmark(("cifar100",), tasks=10),
    "gaussian-cifar100": Benchmark(("cifar100",), "gaussian", tasks=200),
    "split-mnist": Benchmark(("mnist",), tasks=5),
    "five-datasets": Benchmark(("cifar10", "mnist", "svhn", "notmnist", "fashion-mnist"), "sets"),
    "core50": Benchmark(("core50",), "domains", common_test=True),
    "split-imagenet-r": Benchmark(("imagenet-r",), tasks=10),
    "domainnet": Benchmark(("domainnet",), "domains"),
    "split-imagenet": Benchmark(("imagenet",), tasks=10),
}
"""By the name that the command line knows them under; the first three come with the package."""
