"""Streams: which examples belong to which task.

A stream lives on the host, and is never an argument of compiled code.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from promptax.core.described import Described, Facts, some
from promptax.core.errors import UserError
from promptax.core.text import printable
from promptax.data.class_order import ClassOrder, resolve_order
from promptax.data.few_shot import with_few_shots
from promptax.data.holdout import hold_out
from promptax.data.source import Source
from promptax.data.split import Split as Split


@dataclass(frozen=True, repr=False)
class TaskStream(Described):
    """Tasks to train on one after another, and the test sets that measure what was learned.

    Usually each task has a test set of the same classes. Joint training has one task and a test
    set for each of the tasks it joins; a domain-incremental benchmark can have many tasks and a
    single test set.
    """

    name: str
    train: Source
    test: Source
    class_names: tuple[str, ...]
    """Of the classes of all tasks, by class number."""
    tasks: tuple[Split, ...]
    """The training examples of each task, in the order of training."""
    test_sets: tuple[Split, ...]
    """The test sets."""
    split: str = ""
    """How training and test images were divided, if the set has several divisions in use; it is
    recorded with results."""

    def __post_init__(self):
        for kind, splits in (("training", self.tasks), ("test", self.test_sets)):
            for split in splits:
                if not len(split.index):
                    raise UserError(f"{self.name}: task '{split.name}' has no {kind} example.")

    def _facts(self) -> Facts:
        per_task = [len(task.index) for task in self.tasks]
        yield "name", self.name
        yield "tasks", f"{len(self.tasks)}: {some(tuple(task.name for task in self.tasks))}"
        yield "classes", f"{self.num_classes}: {some(self.class_names)}"
        yield (
            "training images",
            f"{sum(per_task):,} ({min(per_task):,} to {max(per_task):,} a task)",
        )
        in_tests = sum(len(split.index) for split in self.test_sets)
        yield "test images", f"{in_tests:,} in {len(self.test_sets)} test sets"
        yield "image", " x ".join(map(str, self.train[self.tasks[0].index[:1]].shape[1:]))

    @property
    def num_classes(self) -> int:
        """Number of classes of all tasks together, which is the number of outputs of the head."""
        return len(self.class_names)

    def seen(self, task_number: int) -> tuple[int, ...]:
        """The classes of a task and of all tasks before it, ascending."""
        return tuple(sorted({c for split in self.tasks[: task_number + 1] for c in split.classes}))

    def evaluated(self, task_number: int) -> tuple[Split, ...]:
        """The test sets that are measured after a task.

        These are the test sets of the tasks so far if each task has its own, and all of them
        otherwise.
        """
        return self.test_sets[: task_number + 1] if self._has_paired_test_sets else self.test_sets

    def next_test_set(self, task_number: int) -> Split | None:
        """The test set of the next task, if the accuracy on it says something before that task is
        learned.

        It does if the next task has all classes of the stream, as in domain-incremental streams,
        and each of them had a training example: no method knows a class before its first example.
        None otherwise, and after the last task.
        """
        if not self._has_paired_test_sets or task_number + 1 == len(self.tasks):
            return None
        following = self.test_sets[task_number + 1]
        if len(set(following.classes)) < self.num_classes:
            return None
        index = np.concatenate([task.index for task in self.tasks[: task_number + 1]])
        trained = np.unique(self.train.labels[index])
        return following if len(trained) == self.num_classes else None

    @property
    def _has_paired_test_sets(self) -> bool:
        return len(self.tasks) == len(self.test_sets)

    def joint(self) -> "TaskStream":
        """The same examples as a single task: the upper bound of a continual learner."""
        classes = self.seen(len(self.tasks) - 1)
        index = np.concatenate([task.index for task in self.tasks])
        return replace(self, tasks=(Split("joint", classes, index),))

    def validation(self, share: float = 0.2, *, seed: int = 0) -> "TaskStream":
        """The stream for tuning, which leaves the real test sets untouched.

        A share of the training examples of each class is drawn at random, left out of training,
        and tested on instead (`hold_out`): in each task, if each task has a test set, else from all
        tasks together. Every class is on both sides.

        Raises `UserError` for a share that is not between 0 and 1, for a class or task with too few
        examples, or if there are several test sets, but not one for each task.
        """
        if not 0 < share < 1:
            raise UserError(
                f"{self.name}: no validation set of share {share} can be cut; expected a share "
                "between 0 and 1."
            )
        if not self._has_paired_test_sets and len(self.test_sets) > 1:
            raise UserError(
                f"{self.name}: no validation set can be cut, because {len(self.tasks)} tasks have "
                f"{len(self.test_sets)} test sets: cut it before tasks are joined."
            )
        tasks, test_sets = hold_out(
            self.tasks,
            self.test_sets,
            self.train.labels,
            share,
            class_names=self.class_names,
            seed=seed,
        )
        return replace(
            self,
            name=f"{self.name} (validation)",
            test=self.train,
            tasks=tasks,
            test_sets=test_sets,
        )

    def per_class(self, count: int, *, seed: int = 0) -> "TaskStream":
        """At most `count` training examples of each class in each task, drawn at random.

        Raises `UserError` for a count below 1.
        """
        if count < 1:
            raise UserError(f"{self.name}: {count} examples of a class; expected at least 1.")
        random = np.random.default_rng(seed)
        tasks = []
        for task in self.tasks:
            shuffled = random.permutation(task.index)
            labels = self.train.labels[shuffled]
            chosen = [shuffled[labels == c][:count] for c in np.unique(labels)]
            tasks.append(replace(task, index=np.sort(np.concatenate(chosen))))
        return replace(self, name=f"{self.name} ({count} a class)", tasks=tuple(tasks))

    def few_shot(self, shots: int, *, seed: int = 0) -> "TaskStream":
        """The first task as it is, and of the others only `shots` training examples of each class.

        Which these are follows from the seed and the class alone.

        Raises `UserError` for fewer than one example of a class, or more than a class has.
        """
        tasks = with_few_shots(
            self.tasks, self.train.labels, shots, class_names=self.class_names, seed=seed
        )
        return replace(self, name=f"{self.name} ({shots} shots)", tasks=tasks)

    def first(self, count: int) -> "TaskStream":
        """Only the first tasks, for a quick trial; the head keeps the outputs of all classes.

        Raises `UserError` for a count that is not from 1 to the number of tasks.
        """
        if not 1 <= count <= len(self.tasks):
            raise UserError(f"{self.name}: it has 1 to {len(self.tasks)} tasks, not {count}.")
        return replace(
            self,
            name=f"{self.name} (first {count})",
            tasks=self.tasks[:count],
            test_sets=self.test_sets[:count] if self._has_paired_test_sets else self.test_sets,
        )

    @property
    def sha256(self) -> str:
        """A digest of the tasks and test sets in their order: classes, examples and labels.

        Pixels are not part of it; the digest of the data set is over those.
        """
        digest = hashlib.sha256(json.dumps([self.name, self.class_names]).encode())
        for source, splits in ((self.train, self.tasks), (self.test, self.test_sets)):
            for number, split in enumerate(splits):
                # Digests count tasks from 0, as the first version did, so that its runs still load.
                is_counted = split.name == f"task {number + 1}"
                name = f"task {number}" if is_counted else split.name
                digest.update(json.dumps([name, split.classes]).encode())
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
    class_order: ClassOrder = None,
    reverse: bool = False,
    class_names: Sequence[str] | None = None,
    name: str = "class-incremental",
) -> TaskStream:
    """A stream with new classes in every task.

    Args:
        train: The training examples.
        test: The test examples, whose classes are divided in the same way.
        num_tasks: Number of tasks to divide the classes into. If they do not divide evenly, the
            first tasks get one class more. Exactly one of `num_tasks`, `task_sizes` and `tasks` is
            needed.
        task_sizes: Number of classes of each task.
        tasks: The classes of each task. Every class must be in exactly one.
        class_order: The order in which `num_tasks` or `task_sizes` divide the classes: a sequence
            of all classes, a seed to draw it from, `Shuffled` to draw it as other code bases do,
            or ascending if None.
        reverse: Whether the last task comes first.
        class_names: By class number. If None, those that the training source has, and else the
            numbers themselves.
        name: Of the stream, for errors and results.

    Returns:
        The stream. Each task has a test set.

    Raises:
        UserError: For a class that is in no task, in several, or without examples.
    """
    if class_names is None:
        class_names = getattr(train, "class_names", None)
    count = 1 + int(max(train.labels.max(), test.labels.max()))
    _check_gaps(train.labels, max(count, len(class_names or ())), name)
    names = tuple(str(c) for c in range(count)) if class_names is None else tuple(class_names)
    if count > len(names):
        raise UserError(f"{name}: label {count - 1}, but there are {len(names)} class names.")
    groups = _class_groups(
        resolve_order(len(names), class_order),
        num_tasks=num_tasks,
        task_sizes=task_sizes,
        tasks=tasks,
        name=name,
    )
    _check_groups(groups, len(names), name)
    if reverse:
        groups.reverse()
    return TaskStream(
        name,
        train,
        test,
        names,
        tasks=_splits_by_class(groups, train.labels),
        test_sets=_splits_by_class(groups, test.labels),
    )


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
    """A stream with the same classes in every task, from another domain each time.

    Args:
        train: The training examples.
        test: The test examples.
        domains: The domain of each training example and of each test example, as positions in
            `domain_names`.
        domain_names: In the order in which the domains come.
        class_names: By class number.
        common_test: Whether all test examples are a single test set, which is measured after
            every task. Domains without training examples are then left out (three of the eleven
            sessions of CORe50 are for testing only).
        name: Of the stream, for errors and results.

    Returns:
        The stream, whose tasks are named after the domains.

    Raises:
        UserError: For a domain without examples, or a class that is tested but not trained on.
    """
    classes = tuple(range(len(class_names)))

    def splits(domain_of: Int[np.ndarray, " examples"]) -> tuple[Split, ...]:
        return tuple(
            Split(domain, classes, np.flatnonzero(domain_of == number))
            for number, domain in enumerate(domain_names)
        )

    tasks = splits(domains[0])
    if common_test:
        tasks = tuple(task for task in tasks if len(task.index))
        test_sets = (Split("test", classes, np.arange(len(test.labels))),)
    else:
        test_sets = splits(domains[1])
    stream = TaskStream(name, train, test, tuple(class_names), tasks=tasks, test_sets=test_sets)
    check_tested_classes(stream)
    return stream


def check_tested_classes(stream: TaskStream) -> None:
    """Check that every class that is tested has a training example in one of the tasks."""
    trained = [stream.train.labels[task.index] for task in stream.tasks]
    trained = np.unique(np.concatenate(trained))
    for test_set in stream.test_sets:
        untrained = np.setdiff1d(stream.test.labels[test_set.index], trained)
        if len(untrained):
            # A label that is too large has no name.
            name = dict(enumerate(stream.class_names)).get(int(untrained[0]), str(untrained[0]))
            raise UserError(
                f"{stream.name}: class '{printable(name)}' is tested in "
                f"'{printable(test_set.name)}', but no task has a training example of it: choose "
                "other domains or another order of classes, or leave the class out."
            )


def _check_gaps(labels: Int[np.ndarray, " examples"], count: int, name: str) -> None:
    # Without an array of `count` entries: a wrong label can be as large as 2^31.
    present = set(np.unique(labels).tolist())
    if len(present) < count:
        gap = next(c for c in range(count) if c not in present)
        raise UserError(
            f"{name}: class {gap} of {count} has no training example: "
            "labels should run from 0, without gaps."
        )


def _class_groups(
    order: list[int],
    *,
    num_tasks: int | None,
    task_sizes: Sequence[int] | None,
    tasks: Sequence[Sequence[int]] | None,
    name: str,
) -> list[tuple[int, ...]]:
    """The classes of each task, ascending.

    Args:
        order: All classes, in the order in which they are divided.
        num_tasks: Number of tasks of equal size; or
        task_sizes: Number of classes of each task; or
        tasks: The classes of each task. Exactly one of the three is given.
        name: Of the stream, for errors.
    """
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
        ends = np.cumsum(task_sizes)[:-1]
        tasks = [group.tolist() for group in np.split(np.asarray(order), ends)]
    elif num_tasks is not None:
        if not 1 <= num_tasks <= len(order):
            raise UserError(f"{name}: {len(order)} classes cannot make {num_tasks} tasks.")
        tasks = [group.tolist() for group in np.array_split(np.asarray(order), num_tasks)]
    assert tasks is not None
    return [tuple(sorted(int(c) for c in group)) for group in tasks]


def _check_groups(groups: Sequence[tuple[int, ...]], count: int, name: str) -> None:
    """Check that every class is in exactly one task."""
    for number, group in enumerate(groups, start=1):
        if not group:
            raise UserError(f"{name}: task {number} has no class.")
    listed = [c for group in groups for c in group]
    for c in sorted({*listed, *range(count)}):
        if not 0 <= c < count:
            raise UserError(f"{name}: class {c} does not exist; classes are 0 to {count - 1}.")
        if listed.count(c) != 1:
            raise UserError(f"{name}: class {c} is in {listed.count(c)} tasks; it must be in one.")


def _splits_by_class(
    groups: Sequence[tuple[int, ...]], labels: Int[np.ndarray, " examples"]
) -> tuple[Split, ...]:
    return tuple(
        Split(f"task {number}", classes, np.flatnonzero(np.isin(labels, classes)))
        for number, classes in enumerate(groups, start=1)
    )
