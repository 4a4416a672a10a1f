"""The review of the buffer after each task."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import toy

from promptax import methods
from promptax.core.settings import Replay, Schedule
from promptax.runs.checkpoint import Checkpoints
from promptax.training.loop import StepDone, TaskEnded, run_stream
from promptax.training.position import StreamPosition
from promptax.training.state import Draw
from promptax.training.trainer import Trainer

HEAD_ONLY = methods.Finetune(train_backbone=False)
REVIEW = dataclasses.replace(toy.REPLAY, review_epochs=2)


@pytest.fixture(scope="module")
def trained(mesh):
    """After the steps of the first task, before its review."""
    method, stream = methods.ER(HEAD_ONLY, REVIEW), toy.make_stream()
    recipe = dataclasses.replace(toy.recipe_for(method), schedule=Schedule(1, 16))
    key = jr.key(0)
    trainer, state = Trainer.create(method, toy.make_vit(), stream, recipe, mesh=mesh, key=key)
    task = trainer.task(stream, 0)
    state = trainer.begin_task(state, task)
    for batch in trainer.batches(stream, 0, seed=0):
        state, _ = trainer.step(state, batch, task)
    return trainer, state, task


def test_a_review_takes_the_steps_of_a_pass_over_the_buffer(trained):
    """Written out step by step, without the loop that is compiled."""
    trainer, state, task = trained
    size = 16
    pages = int(state.method_state.buffer.pages(size))
    assert pages == 1
    order = state.key_for(Draw.REVIEW, task.index)
    wanted = eqx.tree_at(lambda s: s.task_step, toy.copy(state), jnp.int32(0))
    everything = dataclasses.replace(task, examples=jnp.int32(0), steps=jnp.int32(2 * pages))
    for number in range(2 * pages):
        page = eqx.filter_jit(lambda buffer, n, key: buffer.page(n, size, key=key))
        key = jr.fold_in(order, number // pages)
        batch = page(wanted.method_state.buffer, jnp.int32(number % pages), key)
        wanted, _ = trainer.step(wanted, batch, everything)
    ours = trainer.review(toy.copy(state), task)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, ours.params, wanted.params)
    assert not toy.same_bits(ours.params, state.params)
    assert toy.same_bits(ours.method_state, state.method_state)
    assert (ours.step, ours.task_step) == (state.step + 2 * pages, state.task_step)


def test_without_epochs_there_is_no_review(trained):
    trainer, state, task = trained
    method = methods.ER(HEAD_ONLY, toy.REPLAY)
    assert dataclasses.replace(trainer, method=method).review(state, task) is state


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        methods.ER(HEAD_ONLY, REVIEW),
        methods.DERPP(HEAD_ONLY, replay=REVIEW),
        methods.Rehearsal(toy.METHODS["l2p"], REVIEW),
        methods.Rehearsal(toy.METHODS["dualprompt"], REVIEW),
    ],
    ids=["er", "derpp", "l2p", "dualprompt"],
)
def test_a_run_with_reviews_compiles_them_once_and_goes_on_to_the_same_bits(mesh, tmp_path, method):
    whole = toy.run(method, mesh, counted=True)
    counts = whole.compiles.count
    assert (counts["train"], counts["review"], counts["evaluate"]) == (1, 1, 1)
    checkpoints, stream = Checkpoints(tmp_path), whole.evaluator.stream
    # After the last step of the first task, before its review.
    stop = StreamPosition(0, whole.trainer.steps(stream, 0))
    for event in run_stream(whole.trainer, stream, toy.copy(whole.start), seed=0):
        if isinstance(event, StepDone) and int(event.state.task_step) == stop.step:
            checkpoints.save(stop, event.state, {})
            break
    restored = checkpoints.restore(toy.copy(whole.start))
    assert restored is not None
    events = run_stream(whole.trainer, stream, restored[0], seed=0, start=stop)
    ends = [toy.copy(event.state) for event in events if isinstance(event, TaskEnded)]
    assert len(ends) == len(stream.tasks)
    assert toy.same_bits(ends[-1], whole.end)


@pytest.mark.slow
def test_a_review_makes_up_for_forgetting(mesh):
    """What the last task has crowded out comes back."""
    replay = Replay(70, replay_batch=4, buffer_kind="balanced")
    last = {}
    for epochs in (0, 20):
        method = methods.ER(HEAD_ONLY, dataclasses.replace(replay, review_epochs=epochs))
        last[epochs] = toy.run(method, mesh).matrices["instance"].average_accuracy
    assert last[20] > last[0]
