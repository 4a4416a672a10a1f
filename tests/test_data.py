"""Sources, streams and loaders: every example where and as often as it should be."""

import contextlib
import hashlib
import json
import tracemalloc
from importlib import resources
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptax import data
from promptax.core.errors import UserError
from promptax.data.class_order import Shuffled
from promptax.data.permutation import DRAWN_WHOLE, permuted
from promptax.runs.inputs import Data

BUNDLED = Path(str(resources.files("promptax"))) / "data" / "bundled"


def source(labels, side=4):
    """A source in which an image says which example it is."""
    numbers = np.arange(len(labels), dtype=np.uint8)
    return data.ArraySource(
        np.broadcast_to(numbers[:, None, None], (len(labels), side, side)), np.asarray(labels)
    )


def examples_of(batch):
    """The examples of a batch of `source`, without the padding."""
    return batch["image"][batch["weight"] == 1, 0, 0, 0].tolist()


# --- sources ---


def test_grey_images_get_a_channel_and_are_read_in_the_order_asked_for():
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    read = data.ArraySource(images, np.array([2, 0, 1]))
    assert isinstance(read, data.Source)
    np.testing.assert_array_equal(read[np.array([2, 0, 2])], images[[2, 0, 2], ..., None])
    assert read.labels.dtype == np.int32


@pytest.mark.parametrize("labels", [np.array([1, 0], np.uint8), np.array([1, 0], np.int64)])
def test_labels_of_any_integer_type(labels):
    np.testing.assert_array_equal(source(labels).labels, [1, 0])


PIXELS = np.zeros((2, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (PIXELS.astype(np.float32), [0, 1], "uint8 float32"),
        (PIXELS[0, 0], [0, 1, 2, 3], "height (4, 3)"),
        (np.zeros((2, 4, 4, 2), np.uint8), [0, 1], "channels 2"),
        (PIXELS, [0, 1, 2], "2 integers (3,)"),
        (PIXELS, [[0], [1]], "2 integers (2, 1)"),
        (PIXELS, [0.0, 1.0], "integers float64"),
        (PIXELS, [-1, 0], "from 0 -1"),
        (PIXELS, [0, 2**40], "from 0 1099511627776"),
        (PIXELS[:0], np.zeros(0, int), "no images"),
        (PIXELS[:, :0], [0, 1], "no images"),
    ],
)
def test_a_source_says_what_is_wrong_with_its_arrays(images, labels, words):
    with pytest.raises(UserError) as error:
        data.ArraySource(images, np.asarray(labels), "cats.npz")
    assert all(word in str(error.value) for word in ["cats.npz", *words.split()])


def test_arrays_come_back_from_a_file(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", images=PIXELS, labels=[0, 1])
    read = data.read_arrays(tmp_path / "a.npz")
    np.testing.assert_array_equal(read["images"], PIXELS)
    assert read["labels"].tolist() == [0, 1]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "a.npz"
    np.savez_compressed(
        path, images=np.arange(256, dtype=np.uint8).reshape(4, 8, 8), labels=[0] * 4
    )
    return path


@given(st.data())
def test_a_damaged_file_is_read_or_refused_but_never_crashes(archive, draw):
    good = archive.read_bytes()
    length = draw.draw(st.integers(0, len(good)))
    broken = bytearray(good[:length])
    for at in draw.draw(st.lists(st.integers(0, len(good) - 1), max_size=8)):
        if at < length:
            broken[at] ^= 0x55
    path = archive.with_name("broken.npz")
    path.write_bytes(broken)
    with contextlib.suppress(UserError):
        data.read_arrays(path)
        # Only with (nearly) all of it there can the archive's directory be found.
        assert length > len(good) // 2


@pytest.mark.parametrize("content", [b"", b"not an archive", b"\x93NUMPY\x01\x00"])
def test_a_foreign_file_is_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        data.read_arrays(tmp_path / "a.npz")


def test_an_npy_file_and_a_missing_one_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", PIXELS)
    with pytest.raises(UserError, match="cannot be read"):
        data.read_arrays(tmp_path / "a.npy")
    with pytest.raises(UserError, match="not found"):
        data.read_arrays(tmp_path / "b.npz")


# --- streams ---


def classes_of(stream):
    return [split.classes for split in stream.tasks]


def stream_of(count, each=2, **options):
    labels = np.tile(np.arange(count), each)
    return data.class_incremental(source(labels), source(labels), **options)


def test_classes_are_cut_evenly_or_the_first_tasks_get_one_more():
    assert classes_of(stream_of(6, num_tasks=3)) == [(0, 1), (2, 3), (4, 5)]
    assert classes_of(stream_of(7, num_tasks=3)) == [(0, 1, 2), (3, 4), (5, 6)]


def test_given_tasks_and_a_given_order():
    assert classes_of(stream_of(4, tasks=[[3], [2, 0, 1]])) == [(3,), (0, 1, 2)]
    assert classes_of(stream_of(4, num_tasks=2, class_order=[2, 0, 3, 1])) == [(0, 2), (1, 3)]


def test_an_order_drawn_from_a_seed_is_the_same_for_every_task_and_another_for_another_seed():
    drawn = [classes_of(stream_of(10, num_tasks=5, class_order=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert sorted(c for group in drawn[0] for c in group) == list(range(10))


@pytest.mark.parametrize("count", [100, 200])
def test_orders_are_those_of_the_code_bases_that_are_named(count):
    # Written out, so that no change of a library goes unnoticed.
    written = json.loads((Path(__file__).parent / "data/class_orders.json").read_text())
    for convention, seeds in written[str(count)].items():
        for seed, order in seeds.items():
            assert Shuffled(int(seed), like=convention).order(count) == order, (convention, seed)
    assert Shuffled(0, like="coda").order(count) == list(range(count))
    # The first classes of the order that papers built on PyCIL print.
    if count == 100:
        assert Shuffled(1993, like="pilot").order(count)[:5] == [68, 56, 78, 8, 23]


def test_a_drawn_order_divides_the_classes():
    order = Shuffled(1993, like="pilot")
    expected = [tuple(sorted(order.order(10)[at : at + 2])) for at in range(0, 10, 2)]
    assert classes_of(stream_of(10, num_tasks=5, class_order=order)) == expected


@given(st.data())
def test_every_example_is_in_the_one_stage_of_its_class(draw):
    count = draw.draw(st.integers(1, 8))
    more = draw.draw(st.lists(st.integers(0, count - 1), max_size=20))
    labels = np.asarray([*range(count), *more])
    tasks = draw.draw(st.integers(1, count))
    order = draw.draw(st.none() | st.integers(0, 9) | st.permutations(range(count)))
    stream = data.class_incremental(
        source(labels), source(labels[::-1]), num_tasks=tasks, class_order=order
    )
    for splits, of in ((stream.tasks, labels), (stream.test_sets, labels[::-1])):
        assert sorted(np.concatenate([split.index for split in splits])) == list(range(len(of)))
        assert all(set(of[split.index]) == set(split.classes) for split in splits)
    assert {len(split.classes) for split in stream.tasks} <= {count // tasks, -(-count // tasks)}
    assert stream.seen(tasks - 1) == tuple(range(count))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks": [[0, 1], [], [2, 3]]}, "task 2 has no class"),
        ({"tasks": [[0, 1], [3]]}, "class 2 is in 0 tasks"),
        ({"tasks": [[0, 1, 2], [2, 3]]}, "class 2 is in 2 tasks"),
        ({"tasks": [[0, 1], [2, 3, 4]]}, "class 4 does not exist"),
        ({"tasks": [[0, 1], [2, 3, -1]]}, "class -1 does not exist"),
        ({"num_tasks": 5}, "4 classes cannot make 5 tasks"),
        ({"num_tasks": 0}, "cannot make 0 tasks"),
        ({"num_tasks": 2, "class_order": [0, 1, 2]}, "class 3 is in 0 tasks"),
        ({"num_tasks": 2, "class_order": [0, 1, 2, 2, 3]}, "class 2 is in 2 tasks"),
        ({"num_tasks": 2, "tasks": [[0, 1], [2, 3]]}, "one of"),
        ({}, "one of"),
        ({"num_tasks": 2, "class_names": "abc"}, "label 3, but there are 3 class names"),
        ({"num_tasks": 2, "class_names": "abcde"}, "class 4 of 5 has no training example"),
    ],
)
def test_a_stream_says_what_is_wrong_with_its_tasks(options, words):
    with pytest.raises(UserError) as error:
        stream_of(4, name="birds", **options)
    assert "birds" in str(error.value)
    assert words in str(error.value)


def test_labels_with_a_gap_are_refused_before_anything_of_their_size_is_made():
    with pytest.raises(UserError, match="class 0 of 3 has no training example"):
        data.class_incremental(source([1, 2]), source([1, 2]), num_tasks=2)
    with pytest.raises(UserError, match="class 1 of 2000000001 has no"):
        data.class_incremental(source([0, 2 * 10**9]), source([0]), num_tasks=2)
    with pytest.raises(UserError, match="'task 2' has no test example"):
        data.class_incremental(source([0, 1]), source([0, 0]), num_tasks=2)


def test_the_digest_changes_with_order_labels_and_split_and_with_nothing_else():
    labels = np.tile(np.arange(4), 2)
    make = lambda labels, **options: (
        data.class_incremental(
            source(labels), source(np.arange(4)), **{"num_tasks": 2, **options}
        ).sha256
    )
    assert make(labels) == make(labels.astype(np.uint8))
    swapped = labels.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    others = [
        make(swapped),
        make(labels, class_order=[1, 0, 2, 3][::-1]),
        make(labels, num_tasks=4),
        make(labels, class_names="abcd"),
        make(labels, name="another"),
    ]
    assert len({make(labels), *others}) == 1 + len(others)


def test_the_digest_of_a_bundled_stream_is_the_published_one():
    # A change here means that figures published before are of other data.
    assert data.split_fashion_mnist().sha256.startswith("4a5a6181c194d311")


def test_joint_training_sees_all_examples_at_once_and_is_tested_on_every_task():
    stream = stream_of(6, num_tasks=3)
    joint = stream.joint()
    assert [split.classes for split in joint.tasks] == [tuple(range(6))]
    assert sorted(joint.tasks[0].index) == list(range(12))
    assert joint.test_sets == stream.test_sets == joint.evaluated(0)
    assert stream.evaluated(1) == stream.test_sets[:2]


def classes_in(labels, splits):
    return set(labels[np.concatenate([split.index for split in splits])].tolist())


@given(
    st.lists(st.integers(2, 30), min_size=2, max_size=12),
    st.floats(0.001, 0.999),
    st.integers(0, 3),
    st.data(),
)
def test_a_validation_set_has_its_share_of_each_class_and_training_has_the_rest(
    sizes, share, seed, draw
):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    images = source(labels)
    count = draw.draw(st.integers(1, len(sizes)))
    stream = data.class_incremental(images, source(labels), num_tasks=count)
    cut = stream.validation(share, seed=seed)
    assert cut.test is stream.train
    for before, kept, held in zip(stream.tasks, cut.tasks, cut.test_sets, strict=True):
        assert sorted([*kept.index, *held.index]) == before.index.tolist()  # disjoint, and whole
        assert kept.classes == held.classes == before.classes
        for c in before.classes:
            in_validation = int((labels[held.index] == c).sum())
            assert 1 <= in_validation < sizes[c]
            assert abs(in_validation - share * sizes[c]) < 1
    again = stream.validation(share, seed=seed)
    assert again.sha256 == cut.sha256


@given(st.integers(2, 6), st.integers(1, 8), st.floats(0.05, 0.6), st.integers(0, 3))
def test_a_stream_with_one_test_set_is_cut_over_all_tasks_together(classes, tasks, share, seed):
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=200)
    labels[: 2 * classes] = np.tile(np.arange(classes), 2)
    domains = random.integers(tasks, size=200), np.zeros(200, int)
    stream = data.domain_incremental(
        source(labels),
        source(labels),
        domains,
        domain_names=tuple(map(str, range(tasks))),
        class_names=tuple(map(str, range(classes))),
        common_test=True,
    )
    cut = stream.validation(share, seed=seed)
    (test_set,) = cut.test_sets
    kept = np.concatenate([task.index for task in cut.tasks])
    assert np.array_equal(np.sort([*kept, *test_set.index]), np.arange(200))
    assert classes_in(labels, cut.tasks) == classes_in(labels, cut.test_sets) == {*range(classes)}
    for before, after in zip(stream.tasks, cut.tasks, strict=True):
        assert set(after.index) <= set(before.index)


def test_a_class_that_has_one_example_in_a_domain_is_tested_in_another():
    labels = np.array([0, 0, 1, 0, 0, 1, 1])
    domains = np.array([0, 0, 0, 1, 1, 1, 1])
    images = source(labels)
    names = ("flat", "round")
    stream = data.domain_incremental(
        images, images, (domains, domains), domain_names=names, class_names=("0", "1")
    )
    cut = stream.validation(0.5)
    assert 2 in cut.tasks[0].index
    assert classes_in(labels, cut.test_sets) == {0, 1}


@pytest.mark.parametrize(
    ("labels", "share", "words"),
    [
        ([0, 0, 1], 0.5, "class 'one' has a single training example"),
        ([0, 1], 0.5, r"class 'zero' \(and 1 more\) has a single"),
        ([0, 0, 1, 1], 1.0, "share 1.0"),
        ([0, 0, 1, 1], float("nan"), "share nan"),
    ],
)
def test_a_validation_set_that_cannot_be_cut_is_refused(labels, share, words):
    images = source(labels)
    stream = data.class_incremental(images, images, num_tasks=1, class_names=("zero", "one"))
    with pytest.raises(UserError, match=words):
        stream.validation(share)


def test_what_a_validation_set_would_leave_empty_is_named():
    apart = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    labels = np.array([0, 0, 1, 0, 1, 1, 0, 1])
    images = source(labels)

    def stream(domains, *, common_test):
        names = tuple(map(str, range(int(max(domains)) + 1)))
        return data.domain_incremental(
            images,
            images,
            (domains, domains),
            domain_names=names,
            class_names=("0", "1"),
            common_test=common_test,
        )

    with pytest.raises(UserError, match="task '1' has a single training example of each class"):
        stream(apart, common_test=False).validation(0.5)
    alone = stream(np.arange(8), common_test=True)
    with pytest.raises(UserError, match=r"leave no training example in task .*smaller share"):
        alone.validation(0.2)
    with pytest.raises(UserError, match="1 tasks have 3 test sets"):
        stream(apart, common_test=False).joint().validation(0.2)


# --- batches ---


def train_batches(labels=tuple(range(10)), batch=4, epochs=3, seed=(0, 1), index=None):
    held = source(list(labels))
    index = np.arange(len(held.labels)) if index is None else np.asarray(index)
    return data.TrainBatches(held, index, batch, epochs, seed)


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 4), st.integers(0, 3))
def test_every_example_comes_once_an_epoch_and_only_the_last_batch_is_padded(
    examples, batch, epochs, seed
):
    batches = train_batches((0,) * (examples + 5), batch, epochs, (seed, 0), range(5, examples + 5))
    read = [batches[n] for n in range(len(batches))]
    order = [example for part in read for example in examples_of(part)]
    assert len(order) == examples * epochs
    for epoch in range(epochs):
        part = order[epoch * examples : (epoch + 1) * examples]
        assert sorted(part) == list(range(5, examples + 5))
    weights = np.concatenate([part["weight"] for part in read])
    assert all(len(part["label"]) == batch for part in read)
    assert weights.tolist() == [1] * len(order) + [0] * (len(weights) - len(order))
    assert len(weights) - len(order) < batch


class LargeSource:
    """Labels without images: an epoch of any size takes no more memory than its labels."""

    def __init__(self, examples):
        self.labels = np.broadcast_to(np.int32(0), examples)

    def __getitem__(self, index):
        return index[:, None, None, None]


def large_batches(examples, batch=128, seed=(0, 0)):
    index = np.arange(examples, dtype=np.int32)
    return data.TrainBatches(LargeSource(examples), index, batch, 2, seed)


@pytest.mark.parametrize("examples", [DRAWN_WHOLE, DRAWN_WHOLE + 1, 1_400_000])
def test_a_batch_takes_no_memory_that_grows_with_the_number_of_examples(examples):
    batches = large_batches(examples)
    batches[0]
    tracemalloc.start()
    batches[len(batches) // 2]  # over the end of the first epoch
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    two_permutations = 2 * 8 * DRAWN_WHOLE
    assert peak < 1.1 * two_permutations


@given(st.integers(1, 2**40), st.integers(0, 2**32))
def test_no_two_positions_of_a_permutation_have_the_same_entry(count, seed):
    position = np.unique(np.linspace(0, count - 1, 2000).astype(int))
    entries = permuted(position, count, seed=(seed, 0))
    assert len(np.unique(entries)) == len(position)
    assert 0 <= entries.min() <= entries.max() < count


# Grain's index_shuffle omits an entry of 4**k + 1.
@pytest.mark.parametrize("count", [DRAWN_WHOLE, DRAWN_WHOLE + 1, 100_003, 4**9, 4**9 + 1, 10**6])
def test_a_large_epoch_holds_every_example_once_in_an_order_without_a_pattern(count):
    orders = [
        permuted(np.arange(count), count, seed=(0, 0, epoch)).astype(float) for epoch in range(2)
    ]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(count))
        # Correlations of independent draws have a standard deviation of count ** -0.5.
        for other in (np.arange(count), np.roll(order, 1), np.roll(order, 2)):
            assert abs(np.corrcoef(order, other)[0, 1]) < 5 * count**-0.5
    assert abs(np.corrcoef(orders[0], orders[1])[0, 1]) < 5 * count**-0.5


def test_batches_of_a_large_epoch_are_as_mixed_as_random_ones():
    count, classes = 100_000, 10
    order = permuted(np.arange(count), count, seed=(3, 1))
    label = (order * classes // count).reshape(-1, 100)
    tally = (label[..., None] == np.arange(classes)).sum(1)
    chi_square = ((tally - 10) ** 2 / 10).sum(1)
    assert abs(chi_square.mean() - (classes - 1)) < 0.5


def test_a_large_epoch_resumes_at_any_step_and_follows_the_seed():
    batches = large_batches(100_000)
    (resumed,) = data.read_ahead(batches, 700, 701)
    for name, values in large_batches(100_000)[700].items():
        np.testing.assert_array_equal(resumed[name], values)
    others = [large_batches(100_000, seed=seed)[700]["image"] for seed in [(0, 1), (1, 0)]]
    assert not any(np.array_equal(resumed["image"], other) for other in others)


def test_the_order_is_a_function_of_seed_and_stage_and_differs_between_epochs():
    def order(**options):
        return [
            e for b in data.read_ahead(train_batches(batch=5, **options)) for e in examples_of(b)
        ]

    assert order() == order()
    assert len({tuple(order(seed=seed)) for seed in [(0, 1), (0, 2), (1, 1)]}) == 3
    assert order()[:10] != order()[10:20] != order()[20:]


@pytest.mark.parametrize("start", [0, 1, 5, 7])
def test_reading_ahead_keeps_the_order_and_resumes_at_any_step(start):
    batches = train_batches()
    read = list(data.read_ahead(batches, start))
    assert len(batches) == 8
    assert len(read) == len(batches) - start
    for n, batch in enumerate(read, start):
        for name, values in batches[n].items():
            np.testing.assert_array_equal(batch[name], values)


def test_labels_stay_with_their_images():
    labels = np.random.default_rng(0).integers(0, 5, 10)
    for batch in data.read_ahead(train_batches(tuple(labels))):
        np.testing.assert_array_equal(batch["label"], labels[batch["image"][:, 0, 0, 0]])


def test_test_batches_keep_the_order_and_give_padding_no_weight():
    batches = data.TestBatches(source(range(9)), np.array([8, 3, -1, 5, 2]), 4)
    first, second = data.read_ahead(batches)
    assert first["weight"].tolist() == [1, 1, 0, 1]
    assert second["weight"].tolist() == [1, 0, 0, 0]
    assert examples_of(first) + examples_of(second) == [8, 3, 5, 2]
    assert first["label"].dtype == np.int32
    assert len(list(data.read_ahead(batches, stop=1))) == 1


@pytest.mark.parametrize(
    "batches",
    [train_batches(batch=6), data.TestBatches(source(range(10)), np.array([4, 2, 0, -1, 1]), 6)],
)
def test_the_processes_of_a_mesh_read_the_halves_of_each_batch(monkeypatch, batches):
    whole = [batches[n] for n in range(len(batches))]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    halves = []
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        halves.append([batches[n] for n in range(len(batches))])
    for batch, first, second in zip(whole, *halves, strict=True):
        assert len(first["label"]) == 3
        assert examples_of(first) + examples_of(second) == examples_of(batch)


# --- what comes with the package ---


def test_the_bundled_files_are_those_of_their_checksums_and_stays_small():
    """After a change: cd src/promptax/data/bundled && sha256sum *.npz > SHA256SUMS"""
    recorded = dict(
        line.split()[::-1] for line in (BUNDLED / "SHA256SUMS").read_text().splitlines()
    )
    files = sorted(BUNDLED.glob("*.npz"))
    assert recorded == {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    assert sum(file.stat().st_size for file in files) < 12e6


@pytest.mark.parametrize(
    ("name", "tasks", "classes", "train", "test", "side"),
    [
        ("split-fashion-mnist", 5, 10, 500, 100, 28),
        ("split-glyphs", 10, 100, 100, 30, 32),
        ("glyph-domains", 5, 20, 150, 50, 32),
    ],
)
def test_a_bundled_stream_has_as_many_of_each_class(name, tasks, classes, train, test, side):
    stream = Data(name).load()
    assert (stream.name, len(stream.test_sets), stream.num_classes) == (name, tasks, classes)
    assert len(set(stream.class_names)) == classes
    for source, splits, each in (
        (stream.train, stream.tasks, train),
        (stream.test, stream.test_sets, test),
    ):
        index = np.concatenate([split.index for split in splits])
        assert np.unique(index).size == index.size == len(source.labels)
        assert np.bincount(source.labels).tolist() == [each] * classes
        assert source[index[:2]].shape == (2, side, side, 1)
    assert stream.seen(tasks - 1) == tuple(range(classes))
