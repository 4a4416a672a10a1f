"""Streams: which examples come in which task. Host data only; nothing here is traced."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from promptax.core.errors import UserError
from promptax.data.source import Source


@dataclass(frozen=True)
class Split:
    """Some examples of a source: those trained in one stage, or tested as one task."""

    name: str
    classes: tuple[int, ...]
    """The classes that compete in training, ascending."""
    index: Int[np.ndarray, " examples"]
    """Positions in the source."""


@dataclass(frozen=True)
class TaskStream:
    """Training stages that arrive one after another, and test tasks.

    Usually stage t and task t have the same classes. Joint training has one stage and all
    tasks; a domain-incremental benchmark can have many stages and one task.
    """

    name: str
    train: Source
    test: Source
    class_names: tuple[str, ...]
    stages: tuple[Split, ...]
    tasks: tuple[Split, ...]

    def __post_init__(self):
        for kind, splits in (("training", self.stages), ("test", self.tasks)):
            for split in splits:
                if not len(split.index):
                    raise UserError(f"{self.name}: task '{split.name}' has no {kind} example.")

    @property
    def num_classes(self) -> int:
        """Classes of all tasks together: the outputs of the head."""
        return len(self.class_names)

    def seen(self, stage: int) -> tuple[int, ...]:
        """The classes of this stage and all before it."""
        return tuple(sorted({c for split in self.stages[: stage + 1] for c in split.classes}))

    def evaluated(self, stage: int) -> tuple[Split, ...]:
        """The test tasks after a stage: those so far, or all where stages are not tasks."""
        return self.tasks[: stage + 1] if len(self.stages) == len(self.tasks) else self.tasks

    def joint(self) -> "TaskStream":
        """All training stages at once: the upper bound."""
        classes = self.seen(len(self.stages) - 1)
        index = np.concatenate([stage.index for stage in self.stages])
        return replace(self, stages=(Split("joint", classes, index),))

    def validation(self, share: float = 0.2, *, seed: int = 0) -> "TaskStream":
        """The stream for tuning: a share of each stage's training examples, drawn at random
        and left out of it, takes the place of the test set. The real one is not touched.

        Raises `UserError` where stages and tasks do not correspond.
        """
        if len(self.stages) != len(self.tasks) or not 0 < share < 1:
            raise UserError(f"{self.name}: no validation set of share {share} can be cut.")
        random = np.random.default_rng(seed)
        cuts = [random.permutation(stage.index) for stage in self.stages]
        at = [round(share * len(cut)) for cut in cuts]
        parts = [
            tuple(
                replace(stage, index=np.sort(cut[part(n)]))
                for stage, cut, n in zip(self.stages, cuts, at, strict=True)
            )
            for part in (lambda n: slice(n, None), lambda n: slice(0, n))
        ]
        name = f"{self.name} (validation)"
        return replace(self, name=name, test=self.train, stages=parts[0], tasks=parts[1])

    def per_class(self, count: int, *, seed: int = 0) -> "TaskStream":
        """At most so many training examples of each class in each stage, drawn at random.

        Raises `UserError` for a count below 1.
        """
        if count < 1:
            raise UserError(f"{self.name}: {count} examples of a class; expected at least 1.")
        random, labels = np.random.default_rng(seed), self.train.labels

        def some(index: Int[np.ndarray, " examples"]) -> Int[np.ndarray, " some"]:
            mixed = random.permutation(index)
            chosen = [mixed[labels[mixed] == c][:count] for c in np.unique(labels[index])]
            return np.sort(np.concatenate(chosen))

        stages = tuple(replace(stage, index=some(stage.index)) for stage in self.stages)
        return replace(self, name=f"{self.name} ({count} a class)", stages=stages)

    def first(self, count: int) -> "TaskStream":
        """Only the first tasks, for a quick trial; the head keeps its outputs.

        Raises `UserError` for a count that is not from 1 to the number of tasks.
        """
        if not 1 <= count <= len(self.stages):
            raise UserError(f"{self.name}: it has 1 to {len(self.stages)} tasks, not {count}.")
        tasks = self.tasks[:count] if len(self.tasks) == len(self.stages) else self.tasks
        name = f"{self.name} (first {count})"
        return replace(self, name=name, stages=self.stages[:count], tasks=tasks)

    @property
    def sha256(self) -> str:
        """A digest of the split and order: tasks, their classes, examples and labels."""
        digest = hashlib.sha256(json.dumps([self.name, self.class_names]).encode())
        for source, splits in ((self.train, self.stages), (self.test, self.tasks)):
            for split in splits:
                digest.update(json.dumps([split.name, split.classes]).encode())
                digest.update(np.asarray(split.index, "<i8").tobytes())
                digest.update(np.asarray(source.labels[split.index], "<i8").tobytes())
        return digest.hexdigest()


def class_incremental(
    train: Source,
    test: Source,
    *,
    num_tasks: int | None = None,
    task_sizes: Sequence[int] | None = None,
    tasks: Sequence[Sequence[int]] | None = None,
    class_order: Sequence[int] | int | None = None,
    reverse: bool = False,
    class_names: Sequence[str] | None = None,
    name: str = "class-incremental",
) -> TaskStream:
    """New classes in every task.

    **Arguments:**

    - `num_tasks`: cut the classes, in `class_order` (ascending if None; drawn at random from
        a seed if a number), into so many tasks; where they do not divide evenly the first
        tasks get one more.
    - `task_sizes`: or cut them into tasks of so many classes each.
    - `tasks`: or the classes of each task. Every class must be in exactly one.
    - `reverse`: the last task comes first.

    Raises `UserError` for a class that is in no task, in two, or without examples.
    """
    count = 1 + int(max(train.labels.max(), test.labels.max()))
    _check_gaps(train.labels, max(count, len(class_names or ())), name)
    names = tuple(str(c) for c in range(count)) if class_names is None else tuple(class_names)
    if count > len(names):
        raise UserError(f"{name}: label {count - 1}, but there are {len(names)} class names.")
    order = _order(len(names), class_order)
    groups = _groups(len(names), _cut(order, num_tasks, task_sizes, tasks, name), name)
    groups = groups[::-1] if reverse else groups
    splits = [
        tuple(_split(f"task {t}", group, source.labels) for t, group in enumerate(groups))
        for source in (train, test)
    ]
    return TaskStream(name, train, test, names, *splits)


def domain_incremental(
    train: Source,
    test: Source,
    domains: tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]],
    *,
    domain_names: Sequence[str],
    class_names: Sequence[str],
    common_test: bool = False,
    name: str = "domain-incremental",
) -> TaskStream:
    """The same classes in every task, in another domain.

    `domains` says which domain each training and test example is of, by its place in
    `domain_names`, which is also the order in which domains come. With `common_test`, all test
    examples are one task, measured after every domain, and domains without training examples are
    none of the stream's (CORe50: three of its sessions are there for testing only).

    Raises `UserError` for a domain without examples.
    """
    classes = tuple(range(len(class_names)))
    stages, tasks = (
        tuple(
            Split(domain, classes, np.flatnonzero(of == number))
            for number, domain in enumerate(domain_names)
        )
        for of in domains
    )
    if common_test:
        stages = tuple(stage for stage in stages if len(stage.index))
        tasks = (Split("test", classes, np.arange(len(test.labels))),)
    return TaskStream(name, train, test, tuple(class_names), stages, tasks)


def _check_gaps(labels: Int[np.ndarray, " examples"], count: int, name: str) -> None:
    present = set(np.unique(labels).tolist())
    if len(present) < count:
        gap = next(c for c in range(count) if c not in present)
        raise UserError(
            f"{name}: class {gap} of {count} has no training example: "
            "labels should run from 0, without gaps."
        )


def _cut(order: list[int], num_tasks, task_sizes, tasks, name) -> Sequence[Sequence[int]]:
    if sum(way is not None for way in (num_tasks, task_sizes, tasks)) != 1:
        raise UserError(
            f"{name}: give one of the number of tasks, their sizes, and the classes of each."
        )
    if task_sizes is not None:
        if min(task_sizes, default=0) < 1 or sum(task_sizes) != len(order):
            raise UserError(
                f"{name}: tasks of {', '.join(map(str, task_sizes))} classes are not "
                f"{len(order)} classes."
            )
        cuts = np.cumsum(task_sizes)[:-1]
        return [part.tolist() for part in np.split(np.asarray(order), cuts)]
    if num_tasks is None:
        return tasks
    if not 1 <= num_tasks <= len(order):
        raise UserError(f"{name}: {len(order)} classes cannot make {num_tasks} tasks.")
    return [part.tolist() for part in np.array_split(np.asarray(order), num_tasks)]


def _groups(count: int, tasks: Sequence[Sequence[int]], name: str) -> list[tuple[int, ...]]:
    groups = [tuple(sorted(int(c) for c in group)) for group in tasks]
    flat = [c for group in groups for c in group]
    for t, group in enumerate(groups):
        if not group:
            raise UserError(f"{name}: task {t} has no class.")
    for c in sorted({*flat, *range(count)}):
        if not 0 <= c < count:
            raise UserError(f"{name}: class {c} does not exist; classes are 0 to {count - 1}.")
        if flat.count(c) != 1:
            raise UserError(f"{name}: class {c} is in {flat.count(c)} tasks; it must be in one.")
    return groups


def _order(count: int, order: Sequence[int] | int | None) -> list[int]:
    if order is None:
        return list(range(count))
    if isinstance(order, int):
        return np.random.default_rng(order).permutation(count).tolist()
    return [int(c) for c in order]


def _split(name: str, classes: tuple[int, ...], labels: np.ndarray) -> Split:
    return Split(name, classes, np.flatnonzero(np.isin(labels, classes)))
