"""What is read off an accuracy matrix."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from promptax import AccuracyMatrix
from promptax.training.evaluate import Measurement
from promptax.training.loop import _entered

NAN = np.nan
EXAMPLE = np.array([[0.9, NAN, NAN], [0.6, 0.8, NAN], [0.7, 0.5, 1.0]])

accuracy = st.floats(0, 1)


@st.composite
def lower_triangles(draw):
    tasks = draw(st.integers(2, 5))
    values = draw(arrays(float, (tasks, tasks), elements=accuracy))
    return AccuracyMatrix(np.where(np.tri(tasks, dtype=bool), values, NAN))


def test_figures_of_a_matrix_worked_out_by_hand():
    """Forgetting: 0.9 - 0.7 and 0.8 - 0.5. Backward: 0.7 - 0.9 and 0.5 - 0.8."""
    assert AccuracyMatrix(EXAMPLE).summary() == pytest.approx(
        {
            "average_accuracy": 2.2 / 3,
            "accuracy_by_example": None,
            "average_incremental_accuracy": (0.9 + 0.7 + 2.2 / 3) / 3,
            "incremental_accuracy_by_example": None,
            "forgetting": 0.25,
            "backward_transfer": -0.25,
            "forward_transfer": None,
            "learning_accuracy": 0.9,
        }
    )


def test_forgetting_counts_from_the_best_accuracy_ever_and_backward_from_the_first():
    values = np.array([[0.5, NAN, NAN], [0.9, 0.8, NAN], [0.7, 0.9, 0.6]])
    matrix = AccuracyMatrix(values)
    assert matrix.forgetting == pytest.approx((0.2 + 0.0) / 2)
    assert matrix.backward_transfer == pytest.approx((0.2 + 0.1) / 2)


def test_forward_transfer_is_what_a_task_gains_over_guessing_before_it_is_learned():
    matrix = AccuracyMatrix.empty(3, 3, classes=4)
    for stage in range(3):
        matrix = matrix.with_row(stage, EXAMPLE[stage, : stage + 1])
    assert matrix.forward_transfer is None
    first = matrix.with_next(0, 0.8)
    # Of the first two tasks all is known, and what is not known of the third does not matter.
    assert first.after(2).forward_transfer == pytest.approx(0.8 - 1 / 4)
    assert first.after(3).forward_transfer is None
    assert first.with_next(1, 0.1).forward_transfer == pytest.approx((0.8 + 0.1) / 2 - 1 / 4)
    assert matrix.after(1).forward_transfer is None


def test_every_protocol_has_its_own_accuracy_before_a_task():
    measurement = Measurement(
        {"instance": np.array([0.5]), "vote": np.array([0.75])},
        predicted=(),
        selected=(),
        next_task={"instance": 0.25, "vote": 0.125},
    )
    matrices = {
        "instance": AccuracyMatrix.empty(2, 2),
        "vote": AccuracyMatrix(np.full((2, 2), NAN)),
    }
    entered = _entered(matrices, 0, measurement)
    for name, cells in {"instance": [0.5, 0.25], "vote": [0.75, 0.125]}.items():
        before = entered[name].before
        assert before is not None
        assert [entered[name].values[0, 0], before[1]] == cells
    assert str(measurement).splitlines()[-1].split() == ["vote,", "next", "task", "(%)", "12.50"]


def test_rows_are_entered_into_a_new_matrix_and_read_back_stage_by_stage():
    empty = AccuracyMatrix.empty(3, 3)
    matrix = empty
    for stage in range(3):
        matrix = matrix.with_row(stage, EXAMPLE[stage, : stage + 1])
    assert np.array_equal(matrix.values, EXAMPLE, equal_nan=True)
    assert np.isnan(empty.values).all()
    second = matrix.after(2)
    assert np.array_equal(second.values, EXAMPLE[:2, :2], equal_nan=True)
    assert second.forgetting == pytest.approx(0.3)
    assert second.average_accuracy == pytest.approx(0.7)


def test_one_task_or_one_stage_has_nothing_to_forget():
    single = AccuracyMatrix(np.array([[0.8]]))
    joint = AccuracyMatrix(np.array([[0.8, 0.6]]))
    assert (single.forgetting, single.backward_transfer) == (None, None)
    assert single.learning_accuracy == 0.8
    assert (joint.forgetting, joint.backward_transfer, joint.learning_accuracy) == (None,) * 3
    assert joint.average_accuracy == pytest.approx(0.7)


@given(lower_triangles(), st.lists(st.integers(1, 50), min_size=5, max_size=5))
def test_means_over_examples_and_stages_are_those_of_plain_numpy(matrix, sizes):
    values = matrix.values
    tasks = len(values)
    examples = np.array(sizes[:tasks])
    correct = sum(values[-1, task] * examples[task] for task in range(tasks))
    known = AccuracyMatrix(values, examples)
    assert known.accuracy_by_example == pytest.approx(correct / examples.sum())
    stages = [values[stage, : stage + 1].mean() for stage in range(tasks)]
    assert known.average_incremental_accuracy == pytest.approx(np.mean(stages))
    by_example = [
        (values[stage, : stage + 1] * examples[: stage + 1]).sum() / examples[: stage + 1].sum()
        for stage in range(tasks)
    ]
    assert known.incremental_accuracy_by_example == pytest.approx(np.mean(by_example))
    # Stage by stage, only the test sets seen so far count.
    first = known.after(1)
    assert first.accuracy_by_example == pytest.approx(values[0, 0])
    assert first.average_incremental_accuracy == pytest.approx(values[0, 0])


def test_a_stage_that_was_not_measured_leaves_no_mean_over_stages():
    matrix = AccuracyMatrix.empty(2, 2, np.array([3, 1])).with_row(1, np.array([0.5, 0.9]))
    assert matrix.average_incremental_accuracy is None
    assert matrix.incremental_accuracy_by_example is None
    assert matrix.accuracy_by_example == pytest.approx(0.6)


@given(lower_triangles())
def test_figures_stay_within_their_bounds(matrix):
    assert 0 <= matrix.average_accuracy <= 1
    assert 0 <= matrix.learning_accuracy <= 1
    assert 0 <= matrix.forgetting <= 1
    # The best accuracy ever is at least the first one.
    assert -matrix.backward_transfer <= matrix.forgetting + 1e-12


@given(lower_triangles())
def test_average_and_learning_accuracy_differ_by_the_backward_transfer(matrix):
    tasks = len(matrix.values)
    gained = matrix.backward_transfer * (tasks - 1) / tasks
    assert matrix.average_accuracy == pytest.approx(matrix.learning_accuracy + gained)


@given(lower_triangles())
def test_nothing_is_forgotten_where_accuracy_never_falls(matrix):
    rising = np.fmax.accumulate(matrix.values, axis=0)
    rising = AccuracyMatrix(np.where(np.isnan(matrix.values), NAN, rising))
    assert rising.forgetting == 0
    assert rising.backward_transfer is not None
    assert rising.backward_transfer >= 0
