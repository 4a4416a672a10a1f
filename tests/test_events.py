"""TensorBoard's files: every step once, however often a run was cut off."""

import os

import jax.numpy as jnp
import numpy as np
import pytest

from promptax.runs.monitor import Monitor
from promptax.runs.tensorboard import EventWriter, read_events
from promptax.training.position import START
from promptax.training.state import Metrics


def write(folder, steps, keep=lambda tag, step: False):
    writer = EventWriter(folder, keep)
    for step in steps:
        writer.scalar("loss", step / 2, step)
    writer.flush()
    return writer


def steps_in(folder):
    (file,) = folder.glob("events.*")
    events = [event for event in read_events(file) if event.summary.value]
    assert all(event.summary.value[0].simple_value == event.step / 2 for event in events)
    return [event.step for event in events]


def test_what_is_after_the_checkpoint_is_written_once(tmp_path):
    write(tmp_path, [1, 2, 3, 4]).close()
    write(tmp_path, [3, 4, 5], lambda tag, step: tag == "loss" and step <= 2).close()
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5]


def test_a_negative_loss_is_explained_once(tmp_path, caplog):
    monitor = Monitor(tmp_path, batch_size=1, steps=[20], start=START, began=0.0)
    for step, loss in ((1, 0.5), (2, -0.5), (3, -0.7)):
        now, accuracy, norm, rate = (jnp.float32(value) for value in (loss, 1, 1, 0.1))
        with caplog.at_level("INFO", "promptax"):
            monitor._report(step, Metrics(now, accuracy, norm, rate, jnp.int32(0)))
        assert len(caplog.records) == (step > 1)
    monitor.events.close()
    assert "the loss is below 0, which is no error" in caplog.text


@pytest.mark.parametrize("lost", [1, 4, 20])
def test_a_file_that_is_cut_off_is_read_to_there(tmp_path, lost, caplog):
    write(tmp_path, [1, 2, 3]).close()
    (file,) = tmp_path.glob("events.*")
    file.write_bytes(file.read_bytes()[:-lost])
    write(tmp_path, [3], lambda tag, step: True).close()
    assert steps_in(tmp_path) == [1, 2, 3]
    assert "is cut off or damaged: its last" in caplog.text


def test_what_is_no_file_is_named_and_does_not_stop_a_run(tmp_path, caplog):
    os.mkfifo(tmp_path / "events.out.tfevents.000001")
    write(tmp_path, [1]).close()
    assert steps_in(tmp_path) == [1]
    assert "earlier events are lost: event file" in caplog.text
    assert "is a named pipe" in caplog.text


def test_a_file_that_a_kill_kept_beside_its_copy_does_not_count_twice(tmp_path):
    write(tmp_path, [1, 2]).close()
    (file,) = tmp_path.glob("events.*")
    old = file.read_bytes()
    write(tmp_path, [3], lambda tag, step: True).close()
    file.write_bytes(old)
    write(tmp_path, [4], lambda tag, step: True).close()
    assert steps_in(tmp_path) == [1, 2, 3, 4]


def test_it_is_on_the_disk_after_a_flush_and_counts_numbers(tmp_path):
    writer = write(tmp_path, [7])
    assert steps_in(tmp_path) == [7]
    writer.histogram("ids", np.array([0, 2, 2, 5]), 1)
    writer.close()
    (file,) = tmp_path.glob("events.*")
    histogram = list(read_events(file))[-1].summary.value[0].histo
    counts = dict(zip(histogram.bucket_limit, histogram.bucket, strict=True))
    assert {edge: count for edge, count in counts.items() if count} == {0.5: 1, 2.5: 2, 5.5: 1}
