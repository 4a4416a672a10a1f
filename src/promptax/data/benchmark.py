"""Streams by name: the data sets that the literature uses, and their division into tasks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Int

from promptax.core.errors import UserError, unknown
from promptax.core.fields import check_choices
from promptax.data.class_order import ClassOrder
from promptax.data.dataset import Dataset
from promptax.data.few_shot import session_sizes
from promptax.data.gaussian import gaussian_schedule
from promptax.data.sequence import JoinedSets, dataset_sequence, joined_sets
from promptax.data.split import Split
from promptax.data.stream import (
    TaskStream,
    check_tested_classes,
    class_incremental,
    domain_incremental,
)

Kind = Literal["classes", "domains", "classes-and-domains", "sets", "gaussian"]
"""New classes in every task; the same classes from new domains; new classes from a new domain; one
data set after another; classes that fade in and out."""
_OF_CLASSES: tuple[Kind, ...] = ("classes", "classes-and-domains")
"""The kinds that divide the classes among the tasks."""
_OF_DOMAINS: tuple[Kind, ...] = ("domains", "classes-and-domains")
"""The kinds with a task for each domain."""

MICRO_TASKS = 200
"""Number of micro-tasks of a Gaussian schedule, if it is not given (as published)."""


@dataclass(frozen=True)
class Benchmark:
    """The division of data sets into a stream of tasks."""

    sets: tuple[str, ...]
    """Names of data sets: bundled ones, or prepared ones. Several are one set after another, or the
    domains of the same classes."""
    kind: Kind = "classes"
    """Whether a task brings new classes, a new domain, both, another data set, or a shift of
    classes."""
    tasks: int | None = None
    """Number of tasks to divide the classes into evenly; of micro-tasks, if `gaussian`."""
    task_sizes: tuple[int, ...] | None = None
    """Number of classes of each task, in place of `tasks`."""
    base_classes: int | None = None
    """Number of classes of the first task; the others are divided among the other tasks."""
    order: ClassOrder = None
    """The order of the classes."""
    reverse: bool = False
    """Whether the last task comes first."""
    common_test: bool = False
    """Whether the domains share a single test set."""
    domains: tuple[str, ...] | None = None
    """The domains in the order in which they come; None: all, as the set has them."""

    def __post_init__(self):
        check_choices(self)

    def stream(self, name: str, read: Callable[[str], Dataset]) -> TaskStream:
        """Build the stream called `name` from the data sets that `read` finds by their names.

        Raises `UserError` for settings that do not fit the kind, and whatever the function that
        builds streams of this kind raises.
        """
        self._check(name)
        sets = [read(member) for member in self.sets]
        if self.kind == "sets":
            return dataset_sequence(sets[::-1] if self.reverse else sets, name=name)
        if len(sets) == 1:
            (whole,) = sets
        else:
            whole = joined_sets(sets, same_classes=self.kind in _OF_DOMAINS)
        return replace(_STREAMS[self.kind](self, name, whole), split=whole.split)

    def _check(self, name: str) -> None:
        """Raise `UserError` for settings that contradict one another."""
        has_order = self.order is not None or self.task_sizes is not None
        if has_order and self.kind not in _OF_CLASSES:
            raise UserError(f"{name}: only a class-incremental stream has an order of classes.")
        if self.kind in (*_OF_DOMAINS, "sets") and self.tasks is not None:
            tasks = "sets" if self.kind == "sets" else "domains"
            raise UserError(f"{name}: its tasks are its {tasks}, so their number is given.")
        if self.domains is not None and self.kind not in _OF_DOMAINS:
            raise UserError(
                f"{name}: domains are chosen, but its kind is '{self.kind}': choose the kind "
                "'domains' or 'classes-and-domains', or leave them out."
            )
        if self.base_classes is not None:
            if self.kind != "classes":
                raise UserError(f"{name}: only a class-incremental stream has base classes.")
            if self.tasks is None or self.task_sizes is not None:
                raise UserError(f"{name}: base classes go with a number of tasks.")
            if self.reverse:
                raise UserError(f"{name}: the base classes come first, so it cannot be reversed.")


Whole = Dataset | JoinedSets
"""What is divided into tasks."""


def _classes(benchmark: Benchmark, name: str, whole: Whole) -> TaskStream:
    sizes = benchmark.task_sizes
    if benchmark.base_classes is not None and benchmark.tasks is not None:
        sizes = session_sizes(len(whole.class_names), benchmark.base_classes, benchmark.tasks, name)
    return class_incremental(
        whole.train,
        whole.test,
        num_tasks=benchmark.tasks if sizes is None else None,
        task_sizes=sizes,
        class_order=benchmark.order,
        reverse=benchmark.reverse,
        class_names=whole.class_names,
        name=name,
    )


def _domains(benchmark: Benchmark, name: str, whole: Whole) -> TaskStream:
    order = _domain_order(benchmark, name, whole)
    return domain_incremental(
        whole.train,
        whole.test,
        (_places(whole.train.groups, order), _places(whole.test.groups, order)),
        domain_names=[whole.group_names[number] for number in order],
        class_names=whole.class_names,
        common_test=benchmark.common_test,
        name=name,
    )


def _classes_and_domains(benchmark: Benchmark, name: str, whole: Whole) -> TaskStream:
    order = _domain_order(benchmark, name, whole)
    sizes = benchmark.task_sizes
    if sizes is not None and len(sizes) != len(order):
        raise UserError(f"{name}: {len(sizes)} sizes of tasks for {len(order)} domains.")
    stream = class_incremental(
        whole.train,
        whole.test,
        num_tasks=len(order) if sizes is None else None,
        task_sizes=sizes,
        class_order=benchmark.order,
        reverse=benchmark.reverse,
        class_names=whole.class_names,
        name=name,
    )

    def within(split: Split, domain: int, groups: Int[np.ndarray, " examples"]) -> Split:
        index = split.index[groups[split.index] == domain]
        return replace(split, name=whole.group_names[domain], index=index)

    tasks = [
        within(split, domain, whole.train.groups)
        for split, domain in zip(stream.tasks, order, strict=True)
    ]
    # A common test set is of all domains, and some of these may be for testing only.
    test_sets = [
        split if benchmark.common_test else within(split, domain, whole.test.groups)
        for split, domain in zip(stream.test_sets, order, strict=True)
    ]
    divided = replace(stream, tasks=tuple(tasks), test_sets=tuple(test_sets))
    # The class may have training images in another domain than that of its task.
    check_tested_classes(divided)
    return divided


def _domain_order(benchmark: Benchmark, name: str, whole: Whole) -> list[int]:
    """The numbers of the domains, in the order in which they come."""
    known = whole.group_names
    if not known:
        raise UserError(f"{name}: the set '{whole.name}' has no domains.")
    has_examples = np.bincount(whole.train.groups, minlength=len(known)) > 0
    if benchmark.domains is None:
        # Domains without training examples are for testing only, if there is a common test set.
        order = [n for n in range(len(known)) if has_examples[n] or not benchmark.common_test]
    else:
        for domain in benchmark.domains:
            if domain not in known:
                raise unknown("domain", domain, known)
            if benchmark.domains.count(domain) > 1:
                raise UserError(f"{name}: domain '{domain}' is given twice.")
        order = [known.index(domain) for domain in benchmark.domains]
    if not order:
        raise UserError(f"{name}: no domain is chosen; it has {', '.join(known)}.")
    return order[::-1] if benchmark.reverse else order


def _places(
    groups: Int[np.ndarray, " examples"], order: Sequence[int]
) -> Int[np.ndarray, " examples"]:
    """The place of each example's domain in the order; -1 for a domain that is not in it."""
    places = np.full(1 + max(groups.max(), *order), -1)
    places[list(order)] = np.arange(len(order))
    return places[groups]


def _gaussian(benchmark: Benchmark, name: str, whole: Whole) -> TaskStream:
    if benchmark.reverse:
        raise UserError(f"{name}: a Gaussian schedule cannot be reversed.")
    return gaussian_schedule(
        whole.train,
        whole.test,
        class_names=whole.class_names,
        micro_tasks=MICRO_TASKS if benchmark.tasks is None else benchmark.tasks,
        name=name,
    )


_STREAMS = {
    "classes": _classes,
    "domains": _domains,
    "classes-and-domains": _classes_and_domains,
    "gaussian": _gaussian,
}

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
