"""Every way to cut sets into tasks, and that every example goes where it should."""

import json
from dataclasses import replace

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import promptax
from promptax import data
from promptax.cli import main
from promptax.core.errors import UserError
from promptax.core.settings import Evaluation
from promptax.data.benchmark import BENCHMARKS, Benchmark
from promptax.data.dataset import Dataset, Part
from promptax.data.sequence import ConcatenatedSource, enlarge
from promptax.methods import LinearProbe
from promptax.runs.inputs import Data
from promptax.training.metrics import AccuracyMatrix


def part(labels, groups=None, side=4, channels=1):
    """Examples whose pixels say which they are."""
    labels = np.asarray(labels, np.int32)
    groups = np.zeros_like(labels) if groups is None else np.asarray(groups, np.int32)
    numbers = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    images = np.broadcast_to(numbers, (len(labels), side, side, channels))
    return Part(images, labels, groups, [""] * len(labels))


def dataset(tmp, classes=4, each=6, groups=(), name="toy", **shape):
    labels = np.repeat(np.arange(classes), each)
    of = np.tile(np.arange(each) % max(len(groups), 1), classes)
    names = tuple(f"class {c}" for c in range(classes))
    whole = part(labels, of, **shape)
    return Dataset(name, tmp, whole, whole, names, tuple(groups), "")


@pytest.fixture
def make(tmp_path):
    return lambda **options: dataset(tmp=tmp_path, **options)


def classes_of(stream):
    return [split.classes for split in stream.tasks]


# --- classes ---


def test_tasks_of_unequal_size_and_the_last_task_first(make):
    sizes = Benchmark(("toy",), task_sizes=(3, 1), order=(3, 1, 0, 2))
    stream = sizes.stream("toy", lambda _: make())
    assert classes_of(stream) == [(0, 1, 3), (2,)]
    back = Benchmark(("toy",), tasks=4, reverse=True).stream("toy", lambda _: make())
    assert classes_of(back) == [(3,), (2,), (1,), (0,)]
    assert [task.classes for task in back.test_sets] == classes_of(back)


@pytest.mark.parametrize("sizes", [(2, 1), (5,), (4, 0), (), (-1, 5)])
def test_sizes_that_are_not_all_classes_are_refused(make, sizes):
    with pytest.raises(UserError, match="are not 4 classes"):
        data.class_incremental(make().train, make().test, task_sizes=sizes)


def test_a_limit_on_each_class_and_on_tasks(make):
    stream = Benchmark(("toy",), tasks=2).stream("toy", lambda _: make())
    small = stream.per_class(2)
    labels = [stream.train.labels[stage.index].tolist() for stage in small.tasks]
    assert labels == [[0, 0, 1, 1], [2, 2, 3, 3]]
    assert [len(task.index) for task in small.test_sets] == [12, 12]
    assert np.array_equal(small.tasks[0].index, stream.per_class(2).tasks[0].index)
    assert small.sha256 != stream.sha256
    assert len(stream.per_class(99).tasks[0].index) == 12
    one = stream.first(1)
    assert (len(one.tasks), len(one.test_sets), one.num_classes) == (1, 1, 4)
    for wrong in (0, 3):
        with pytest.raises(UserError, match="1 to 2 tasks"):
            stream.first(wrong)
    with pytest.raises(UserError, match="at least 1"):
        stream.per_class(0)


# --- domains ---


def test_domains_in_order_reversed_and_with_one_test_set(make):
    toy = make(groups=("sun", "rain", "snow"))
    stream = Benchmark(("toy",), "domains").stream("toy", lambda _: toy)
    assert [stage.name for stage in stream.tasks] == ["sun", "rain", "snow"]
    assert all(stage.classes == (0, 1, 2, 3) for stage in stream.tasks)
    for number, stage in enumerate(stream.tasks):
        assert set(toy.train.groups[stage.index]) == {number}
    back = Benchmark(("toy",), "domains", reverse=True).stream("toy", lambda _: toy)
    assert [stage.name for stage in back.tasks] == ["snow", "rain", "sun"]
    common_test = Benchmark(("toy",), "domains", common_test=True)
    common = common_test.stream("toy", lambda _: toy)
    assert [len(task.index) for task in common.test_sets] == [24]
    untrained = make(groups=("sun", "rain"))
    untrained = replace(untrained, group_names=("sun", "rain", "only in testing"))
    stages = common_test.stream("toy", lambda _: untrained).tasks
    assert [stage.name for stage in stages] == ["sun", "rain"]
    assert common.evaluated(0) == common.test_sets


@pytest.mark.parametrize(
    ("benchmark", "words"),
    [
        (Benchmark(("toy",), "domains"), "has no domains"),
        (Benchmark(("toy",), "domains", tasks=3), "tasks are its domains"),
        (Benchmark(("toy",), "domains", order=3), "only a class-incremental"),
        (Benchmark(("toy",), "gaussian", task_sizes=(1, 3)), "only a class-incremental"),
        (Benchmark(("toy",), "gaussian", tasks=2, reverse=True), "cannot be reversed"),
        (Benchmark(("toy",), "gaussian", tasks=25), "have no example: ask for fewer"),
        (Benchmark(("toy",), "sets", tasks=1), "tasks are its sets"),
    ],
)
def test_what_does_not_fit_the_kind_of_stream_is_refused(make, benchmark, words):
    with pytest.raises(UserError, match=words):
        benchmark.stream("toy", lambda _: make())


# --- Gaussian schedule ---


@settings(max_examples=20)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 9))
def test_every_example_comes_in_one_micro_task_and_classes_in_their_order(classes, micro, seed):
    labels = np.repeat(np.arange(classes), 400)
    source = data.ArraySource(np.zeros((len(labels), 1, 1), np.uint8), labels)
    names = [str(c) for c in range(classes)]
    stream = data.gaussian_schedule(
        source, source, class_names=names, micro_tasks=micro, width=0.2, seed=seed
    )
    index = np.concatenate([stage.index for stage in stream.tasks])
    assert np.array_equal(np.sort(index), np.arange(len(labels)))
    for stage in stream.tasks:
        assert stage.classes == tuple(np.unique(labels[stage.index]))
    when = np.empty(len(labels))
    for number, stage in enumerate(stream.tasks):
        when[stage.index] = number
    means = [when[labels == c].mean() for c in range(classes)]
    assert (np.diff(means) > -0.35).all()


def test_a_class_has_its_published_width_in_time():
    """Away from the ends, 68 % of a class within one standard deviation, 10 of 200 micro-tasks."""
    labels = np.repeat(np.arange(100), 500)
    source = data.ArraySource(np.zeros((len(labels), 1, 1), np.uint8), labels)
    stream = data.gaussian_schedule(source, source, class_names=[str(c) for c in range(100)])
    assert len(stream.tasks) == 200
    when = np.concatenate([np.full(len(s.index), n) for n, s in enumerate(stream.tasks)])
    of = np.concatenate([labels[stage.index] for stage in stream.tasks])
    middle = when[of == 50] - 101
    assert np.mean(np.abs(middle) <= 10) == pytest.approx(0.683, abs=0.06)
    assert 200 < np.mean([len(stage.index) for stage in stream.tasks]) < 300
    assert [len(task.index) for task in stream.test_sets] == [len(labels)]


# --- a sequence of sets ---


def test_sets_follow_one_another_with_classes_of_their_own(make):
    small = make(classes=2, each=3, name="small", side=2)
    big = make(classes=3, each=2, name="big", side=4, channels=3)
    stream = data.dataset_sequence([small, big])
    assert stream.class_names == (
        *("small class 0", "small class 1"),
        *("big class 0", "big class 1", "big class 2"),
    )
    assert classes_of(stream) == [(0, 1), (2, 3, 4)]
    assert stream.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4]
    mixed = stream.train[np.array([7, 2, 11])]
    assert mixed.shape == (3, 4, 4, 3)
    assert mixed[:, 0, 0, 0].tolist() == [1, 2, 5]
    back = Benchmark(("small", "big"), "sets", reverse=True)
    back = back.stream("two", lambda name: {"small": small, "big": big}[name])
    assert [stage.name for stage in back.tasks] == ["big", "small"]


@pytest.mark.parametrize("shape", [(28, 28, 32, 32), (5, 9, 13, 11)])
def test_enlarging_is_bilinear_as_in_pillow(shape):
    height, width, *new = shape
    image = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    expected = Image.fromarray(image).resize(new[::-1], Image.Resampling.BILINEAR)
    found = enlarge(image[None, :, :, None], *new)[0, :, :, 0]
    # Pillow rounds between its two passes.
    assert np.abs(found.astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_a_batch_of_one_set_does_not_read_the_other(make):
    class Forbidden:
        labels = np.zeros(3, np.int32)

        def __getitem__(self, index):
            assert index.tolist() == [0], "only to learn the shape"
            return np.zeros((1, 4, 4, 1), np.uint8)

    both = ConcatenatedSource([make().train, Forbidden()], [0, 4])
    assert both[np.array([1, 5])].shape == (2, 4, 4, 1)


# --- by name ---


def test_the_names_of_the_papers_are_there():
    needed = "split-cifar100 gaussian-cifar100 five-datasets core50 split-imagenet-r domainnet"
    assert set(needed.split()) <= set(BENCHMARKS)


def test_a_benchmark_cut_in_another_way():
    stream = Data("split-glyphs", task_sizes=(50, 25, 25), reverse=True, per_class=3).load()
    assert [len(split.classes) for split in stream.tasks] == [25, 25, 50]
    assert len(stream.tasks[0].index) == 75
    tuned = Data("split-glyphs", validation=0.1, first=2).load()
    assert [len(task.index) for task in tuned.test_sets] == [100, 100]
    assert tuned.test is tuned.train
    fading = Data("split-glyphs", kind="gaussian", tasks=20).load()
    assert (len(fading.tasks), len(fading.test_sets)) == (20, 1)


@pytest.mark.parametrize(
    "kind", [{}, {"kind": "gaussian", "tasks": 20}, {"stream": "glyph-domains"}]
)
def test_streams_of_every_kind_have_a_validation_cut_with_every_class(kind):
    settings = {"stream": "split-glyphs"} | kind
    whole = Data(**settings).load()
    cut = Data(**settings, validation=0.2).load()
    labels = cut.test.labels[np.concatenate([split.index for split in cut.test_sets])]
    _, counts = np.unique(labels, return_counts=True)
    _, before = np.unique(whole.train.labels, return_counts=True)
    np.testing.assert_allclose(counts, 0.2 * before, atol=1 + len(whole.test_sets))


def test_joint_training_has_the_examples_of_all_tasks_and_is_tested_on_each():
    whole = Data("split-glyphs").load()
    joint = Data("split-glyphs", joint=True).load()
    assert classes_of(joint) == [tuple(range(100))]
    assert np.array_equal(np.sort(joint.tasks[0].index), np.arange(len(whole.train.labels)))
    assert [task.classes for task in joint.evaluated(0)] == classes_of(whole)
    assert joint.sha256 != whole.sha256
    fading = Data("split-glyphs", kind="gaussian", tasks=20, joint=True).load()
    assert classes_of(fading) == [tuple(range(100))]


@pytest.mark.parametrize(
    "limits", [{"first": 3}, {"validation": 0.1}, {"per_class": 4}, {"reverse": True}]
)
@pytest.mark.parametrize("more", [{}, {"first": 2, "validation": 0.2, "per_class": 10}])
@pytest.mark.parametrize("name", ["split-glyphs", "glyph-domains"])
def test_joint_training_has_the_same_examples_as_one_task_after_another(name, limits, more):
    limits = more | limits
    apart, joint = (Data(name, joint=joint, **limits).load() for joint in (False, True))
    everything = np.concatenate([stage.index for stage in apart.tasks])
    assert len(joint.tasks) == 1
    assert np.array_equal(joint.tasks[0].index, everything)
    assert joint.tasks[0].classes == apart.seen(len(apart.tasks) - 1)
    np.testing.assert_array_equal(joint.test.labels, apart.test.labels)
    for ours, theirs in zip(joint.evaluated(0), apart.test_sets, strict=True):
        np.testing.assert_array_equal(ours.index, theirs.index)
        if "validation" in limits:
            assert not set(everything) & set(ours.index)


def test_a_set_that_is_not_prepared_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match="cifar100"):
        Data("split-cifar100", dir=tmp_path).load()
    with pytest.raises(UserError, match="unknown stream 'roses'"):
        Data("roses", dir=tmp_path).load()


# --- not every stage is measured ---


def test_a_matrix_with_unmeasured_rows():
    matrix = AccuracyMatrix.empty(3, 1).with_row(1, np.array([0.5]))
    assert [matrix.measured(stage) for stage in range(3)] == [False, True, False]
    assert matrix.after(3).average_accuracy == 0.5
    assert matrix.after(1).average_accuracy is None
    square = AccuracyMatrix.empty(2, 2).with_row(1, np.array([0.5, 0.7]))
    assert square.average_accuracy == pytest.approx(0.6)
    figures = square.forgetting, square.backward_transfer, square.learning_accuracy
    assert figures == (None, None, None)


@pytest.mark.parametrize(("every", "measured"), [(1, [0, 1, 2]), (2, [1, 2]), (9, [2])])
def test_evaluation_after_every_so_many_tasks_and_after_the_last(every, measured, mesh):
    recipe = replace(toy.RECIPE, evaluation=Evaluation(batch_size=8, every=every))
    seen = toy.Seen()
    fit = promptax.fit(
        LinearProbe(), toy.make_stream(), toy.make_vit(), recipe, mesh=mesh, callbacks=[seen]
    )
    assert [end.task_number for end in seen.tasks if end.measurement is not None] == measured
    assert [n for n in range(3) if fit.matrix.measured(n)] == measured


@pytest.mark.slow
def test_a_fading_stream_runs_resumes_and_is_reported(tiny, tmp_path, capsys):
    run = ["train", "l2p", *tiny.flags(5), "--data.kind", "gaussian", "--eval.every", "2"]
    run += ["--pool-size", "10", "--run", str(tmp_path / "run")]
    assert main(run) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    rows = [row != [None] for row in result["accuracy_matrix"]]
    assert rows == [False, True, False, True, True]
    courses = [after["average_accuracy"] is not None for after in result["after_each_task"]]
    assert courses == rows
    assert result["forgetting"] is None
    assert main([*run, "--resume"]) == 0
    assert main(["report", str(tmp_path), "--figure", str(tmp_path / "figure.png")]) == 0
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert "| l2p |" in capsys.readouterr().out


def test_an_interval_below_one_is_refused():
    with pytest.raises(UserError, match="interval"):
        Evaluation(every=0)
