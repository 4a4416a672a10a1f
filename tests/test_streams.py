"""Every way to cut sets into tasks, and that every example goes where it should."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

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


def test_domains_are_chosen_by_name_and_order(make):
    toy = make(groups=("sun", "rain", "snow"))
    chosen = Benchmark(("toy",), "domains", domains=("snow", "sun"))
    stream = chosen.stream("toy", lambda _: toy)
    assert [split.name for split in (*stream.tasks, *stream.test_sets)] == ["snow", "sun"] * 2
    for task, group in zip(stream.tasks, (2, 0), strict=True):
        assert np.array_equal(task.index, np.flatnonzero(toy.train.groups == group))
    back = replace(chosen, reverse=True).stream("toy", lambda _: toy)
    assert [task.name for task in back.tasks] == ["sun", "snow"]
    common = replace(chosen, common_test=True).stream("toy", lambda _: toy)
    assert [len(test.index) for test in common.test_sets] == [24]
    assert Data("glyph-domains", domains=("noisy",)).load().tasks[0].name == "noisy"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"domains": ("rein",)}, "unknown domain 'rein': did you mean 'rain'"),
        ({"domains": ("sun", "rain", "sun")}, "domain 'sun' is given twice"),
        ({"domains": ()}, "no domain is chosen"),
        ({"domains": ("sun",), "kind": "classes", "tasks": 2}, "its kind is 'classes'"),
        ({"kind": "classes-and-domains", "task_sizes": (1, 3)}, "2 sizes of tasks for 3 domains"),
        ({"kind": "classes-and-domains", "tasks": 3}, "its tasks are its domains"),
    ],
)
def test_domains_that_cannot_be_chosen_are_refused(make, settings, words):
    toy = make(groups=("sun", "rain", "snow"))
    with pytest.raises(UserError, match=words):
        Benchmark(("toy",), **({"kind": "domains"} | settings)).stream("toy", lambda _: toy)


@pytest.mark.parametrize("common_test", [False, True])
@pytest.mark.parametrize("kind", ["domains", "classes-and-domains"])
def test_a_class_that_is_tested_without_training_images_is_refused(make, kind, common_test):
    toy = make(groups=("sun", "rain"))
    kept = (toy.train.labels != 3) | (toy.train.groups == 0)
    lacking = replace(toy, train=part(toy.train.labels[kept], toy.train.groups[kept]))
    benchmark = Benchmark(("toy",), kind, domains=("rain",), common_test=common_test)
    with pytest.raises(UserError, match=r"class 'class 3' is tested in .* no task has a training"):
        benchmark.stream("toy", lambda _: lacking)
    # Class 3 is in the task of the sun here, which has images of it.
    both = replace(benchmark, domains=("rain", "sun"))
    assert len(both.stream("toy", lambda _: lacking).tasks) == 2
    if kind == "classes-and-domains":
        with pytest.raises(UserError, match="class 'class 3' is tested"):
            replace(both, reverse=True, order=(3, 2, 1, 0)).stream("toy", lambda _: lacking)


def test_each_task_has_new_classes_in_a_new_domain(make):
    toy = make(groups=("sun", "rain"))
    both = Benchmark(("toy",), "classes-and-domains", domains=("rain", "sun"), order=(3, 0, 1, 2))
    stream = both.stream("toy", lambda _: toy)
    assert classes_of(stream) == [(0, 3), (1, 2)]
    for splits, source in ((stream.tasks, toy.train), (stream.test_sets, toy.test)):
        for split, group in zip(splits, (1, 0), strict=True):
            is_in = np.isin(source.labels, split.classes) & (source.groups == group)
            assert np.array_equal(split.index, np.flatnonzero(is_in))
    assert [task.name for task in stream.tasks] == ["rain", "sun"]
    back = replace(both, reverse=True).stream("toy", lambda _: toy)
    assert (classes_of(back), back.tasks[0].name) == ([(1, 2), (0, 3)], "sun")
    common = replace(both, common_test=True).stream("toy", lambda _: toy)
    assert [len(test.index) for test in common.test_sets] == [12, 12]
    unequal = replace(both, task_sizes=(3, 1)).stream("toy", lambda _: toy)
    assert [len(classes) for classes in classes_of(unequal)] == [3, 1]
    glyphs = Data("glyph-domains", kind="classes-and-domains").load()
    assert [len(classes) for classes in classes_of(glyphs)] == [4] * 5


# --- few-shot ---


def test_a_base_session_and_later_ones_with_few_images():
    """60 base classes and 8 sessions of 5-way 5-shot: the shape of few-shot CIFAR-100."""
    settings = Data("split-glyphs", base_classes=60, tasks=9, shots=5, shuffle_classes=True)
    stream = settings.load(seed=1)
    whole = replace(settings, shots=None).load(seed=1)
    assert [len(classes) for classes in classes_of(stream)] == [60, *[5] * 8]
    assert classes_of(stream) == classes_of(whole)
    assert np.array_equal(stream.tasks[0].index, whole.tasks[0].index)
    for task, before in zip(stream.tasks[1:], whole.tasks[1:], strict=True):
        labels, counts = np.unique(stream.train.labels[task.index], return_counts=True)
        assert (tuple(labels), set(counts)) == (task.classes, {5})
        assert set(task.index) < set(before.index)
    assert [len(test.index) for test in stream.test_sets] == [1800, *[150] * 8]
    assert stream.name == "split-glyphs (5 shots)"
    assert stream.sha256 == settings.load(seed=1).sha256 != settings.load(seed=2).sha256


def test_the_shots_of_a_class_follow_from_the_seed_alone():
    def shots(seed, **settings):
        stream = Data("split-glyphs", base_classes=50, tasks=6, shots=3, **settings).load(seed)
        index = np.concatenate([task.index for task in stream.tasks[1:]])
        return {int(c): set(index[stream.train.labels[index] == c]) for c in range(100)}

    first = shots(0)
    backwards = shots(0, class_order=tuple(range(100))[::-1])
    assert all(len(first[c]) == 3 for c in range(50, 100))
    assert shots(0, class_order=(*range(50), *range(99, 49, -1))) == first
    assert all(len(backwards[c]) == 3 for c in range(50))
    assert shots(7) != first
    assert shots(7, class_seed=0) == first


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base_classes": 100}, "100 base classes; expected at least 1 and fewer than the 100"),
        ({"base_classes": 0}, "0 base classes"),
        ({"base_classes": 60}, "leave 40 of 100, which 9 more tasks"),
        ({"base_classes": 97, "tasks": 3}, "number of tasks can be 2, 4"),
        ({"base_classes": 60, "tasks": 1}, "which 0 more tasks"),
        ({"base_classes": 60, "tasks": 9, "reverse": True}, "cannot be reversed"),
        ({"base_classes": 60, "task_sizes": (60, 40)}, "choose one of the number of base classes"),
        ({"base_classes": 60, "kind": "gaussian"}, "only a class-incremental"),
        ({"shots": 0}, "expected at least 1"),
        ({"shots": 101}, "has 100 training images, fewer than 101 shots"),
        ({"shots": 5, "class_seed": -1}, "seed of the draw of shots is -1"),
        ({"class_seed": 1}, "add --data.shuffle-classes"),
        ({"shots": 5, "per_class": 4}, "5 shots are more than the 4"),
        ({"shots": 5, "kind": "gaussian"}, "tasks of new classes"),
        ({"shots": 5, "reverse": True}, "data.reverse"),
    ],
)
def test_sessions_that_cannot_be_made_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        Data("split-glyphs", **settings).load()


@pytest.mark.slow
def test_a_few_shot_run_records_its_sessions(tmp_path):
    argv = ["train", "l2p", "--data.stream", "split-glyphs", "--data.base-classes", "20"]
    argv += ["--data.tasks", "17", "--data.shots", "5", "--epochs", "1", "--data.first", "2"]
    assert main([*argv, "--data.per-class", "8", "--run", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [len(classes) for classes in result["stream"]["class_order"]] == [20, 5]
    assert result["stream"]["name"] == "split-glyphs (5 shots) (8 a class) (first 2)"
    assert result["config"]["data"]["shots"] == 5
    assert result["config"]["data"]["base_classes"] == 20
    assert result["test_examples"] == [600, 150]
    assert result["tasks_done"] == 2


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


def test_sets_that_are_the_domains_of_the_same_classes(make):
    photos = make(classes=3, each=4, name="photos", side=2)
    labels = np.repeat([2, 0, 1], 2)
    names = ("class 1", "class 2", "class 0")
    sketches = replace(
        make(name="sketches"), train=part(labels), test=part(labels), class_names=names
    )
    sets = {"photos": photos, "sketches": sketches}
    stream = Benchmark(("photos", "sketches"), "domains").stream("both", lambda name: sets[name])
    assert stream.class_names == ("class 0", "class 1", "class 2")
    assert [task.name for task in stream.tasks] == ["photos", "sketches"]
    assert classes_of(stream) == [(0, 1, 2)] * 2
    assert [len(task.index) for task in (*stream.tasks, *stream.test_sets)] == [12, 6] * 2
    # Number 2 of the sketches is called "class 0", and so on.
    assert stream.train.labels[stream.tasks[1].index].tolist() == [0, 0, 1, 1, 2, 2]
    both = Benchmark(("photos", "sketches"), "classes-and-domains")
    tasks = both.stream("both", lambda name: sets[name]).tasks
    assert [(task.name, task.classes) for task in tasks] == [
        ("photos", (0, 1)),
        ("sketches", (2,)),
    ]
    assert set(stream.train.labels[tasks[1].index]) == {2}
    other = {**sets, "sketches": make(classes=4, name="sketches")}
    with pytest.raises(UserError, match="'photos' has no 'class 3', which 'sketches' has"):
        both.stream("both", lambda name: other[name])
    alike = {name: replace(one, class_names=("bird", "bird", "sea")) for name, one in sets.items()}
    with pytest.raises(UserError, match="'photos' has 2 classes called 'bird': rename"):
        both.stream("both", lambda name: alike[name])


def test_the_classes_of_several_sets_are_divided_together(make):
    sets = {"a": make(classes=2, name="a"), "b": make(classes=4, name="b")}
    stream = Benchmark(("a", "b"), "classes", tasks=3).stream("both", lambda name: sets[name])
    assert classes_of(stream) == [(0, 1), (2, 3), (4, 5)]
    assert stream.class_names[1:3] == ("a class 1", "b class 0")
    five = {name: make(classes=1, name=name) for name in BENCHMARKS["five-datasets"].sets}
    pairs = replace(BENCHMARKS["five-datasets"], kind="classes", tasks=1)
    assert classes_of(pairs.stream("five", lambda name: five[name])) == [tuple(range(5))]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two prepared sets: `birds` in the data folder, and `plants` in a folder elsewhere."""
    folder = tmp_path_factory.mktemp("prepared")
    for name, place, classes in (("birds", "data", 4), ("plants", "elsewhere", 3)):
        arrays = {}
        for kind, each in (("train", 6), ("test", 3)):
            labels = np.repeat(np.arange(classes), each)
            noise = np.random.default_rng(0).integers(0, 99, (len(labels), 8, 8), np.uint8)
            arrays |= {f"{kind}_images": noise + 30 * labels[:, None, None].astype(np.uint8)}
            arrays |= {f"{kind}_labels": labels}
        np.savez(folder / f"{name}.npz", **arrays)
        argv = ["data", "prepare", name, str(folder / f"{name}.npz"), "--format", "arrays"]
        assert main([*argv, "--data-dir", str(folder / place)]) == 0
    return folder


@pytest.fixture
def own_sets(prepared, tmp_path):
    """A copy of the prepared sets, for a test to change."""
    return shutil.copytree(prepared, tmp_path / "own")


def test_own_sets_are_found_by_name_and_by_folder(own_sets, monkeypatch):
    monkeypatch.chdir(own_sets)
    settings = Data(sets=("birds", "elsewhere/plants"), dir=own_sets / "data")
    stream = settings.load()
    assert stream.name == "birds + plants"
    assert [task.name for task in stream.tasks] == ["birds", "plants"]
    assert classes_of(stream) == [(0, 1, 2, 3), (4, 5, 6)]
    mixed = Data("core50", sets=settings.sets, dir=settings.dir, kind="classes", task_sizes=(5, 2))
    assert classes_of(mixed.load()) == [(0, 1, 2, 3, 4), (5, 6)]
    monkeypatch.chdir("/")
    assert settings.load().sha256 == stream.sha256
    run = own_sets / "runs" / "run"
    (own_sets / "elsewhere").rename(own_sets / "runs")
    assert settings.located(run).load().sha256 == stream.sha256


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sets": ("birds",)}, "at least two sets"),
        ({"sets": ("birds", "elsewhere/birds")}, "two of --data.sets are called 'birds'"),
        ({"sets": ("birds", "plants")}, "unknown data set 'plants'"),
        ({"sets": ("birds", "./plants")}, "plants' is not prepared"),
        ({"sets": ("birds", "elsewhere/plants"), "kind": "domains"}, "need the same classes"),
        ({"sets": ("birds", "glyphs"), "domains": ("birds",)}, "leave out --data.domains"),
        ({"sets": ("birds", "glyphs"), "tasks": 2}, "its tasks are its sets"),
        ({"sets": ("birds", "glyphs"), "shots": 2}, "tasks of new classes"),
        ({"sets": ("birds", "glyphs"), "kind": "classes"}, "'birds . glyphs' are cut"),
        ({"sets": ("a", "b"), "train": Path("a.npz"), "test": Path("b.npz")}, "your own files"),
    ],
)
def test_sets_that_do_not_go_together_are_refused(prepared, monkeypatch, settings, words):
    monkeypatch.chdir(prepared)
    with pytest.raises(UserError, match=words):
        Data(**settings, dir=prepared / "data").load()


@pytest.mark.slow
def test_own_sets_are_trained_one_after_another(own_sets, tiny, monkeypatch, capsys):
    monkeypatch.chdir(own_sets)
    argv = ["train", "linear", "--data.sets", "birds", "elsewhere/plants", "--data-dir", "data"]
    argv += ["--weights", str(tiny.weights), "--epochs", "1", "--batch-size", "8"]
    assert main(argv) == 0
    (run,) = (own_sets / "runs").iterdir()
    assert run.name.startswith("birds-plants-linear-")
    result = json.loads((run / "result.json").read_text())
    assert result["stream"]["class_order"] == [[0, 1, 2, 3], [4, 5, 6]]
    assert result["stream"]["class_names"][0].startswith("birds ")
    monkeypatch.chdir("/")
    assert main(["evaluate", str(run)]) == 0
    assert "| instance |" in capsys.readouterr().out


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


# --- the next test set ---


def in_domains(*labels_of_domains):
    """A stream of domains whose training and test examples have these labels."""
    labels = np.concatenate(labels_of_domains)
    source = data.ArraySource(np.zeros((len(labels), 4, 4, 3), np.uint8), labels)
    numbers = range(len(labels_of_domains))
    domain_of = np.repeat(numbers, [len(labels) for labels in labels_of_domains])
    return data.domain_incremental(
        source,
        source,
        (domain_of, domain_of),
        domain_names=[f"domain {number}" for number in numbers],
        class_names=["0", "1"],
    )


def test_the_next_test_set_is_measured_only_where_every_class_has_been_seen():
    stream = in_domains([0, 1], [1, 0], [0, 1])
    assert stream.next_test_set(0) is stream.test_sets[1]
    assert stream.next_test_set(1) is stream.test_sets[2]
    assert stream.next_test_set(2) is None
    assert stream.joint().next_test_set(0) is None
    late = in_domains([0, 0], [0, 1], [0, 1])
    assert late.next_test_set(0) is None
    assert late.next_test_set(1) is late.test_sets[2]
    apart = in_domains([0], [1])
    assert apart.next_test_set(0) is None
    fewer = replace(stream.test_sets[1], classes=(0,))
    part = replace(stream, test_sets=(stream.test_sets[0], fewer, stream.test_sets[2]))
    assert part.next_test_set(0) is None
    assert all(toy.make_stream().next_test_set(number) is None for number in range(3))


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


def test_an_unknown_bundled_set_is_refused_with_the_nearest_name():
    words = "unknown bundled data set 'fashion-mnist': did you mean 'small-fashion-mnist'"
    with pytest.raises(UserError, match=words):
        data.bundled_set("fashion-mnist")
