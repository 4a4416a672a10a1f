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
from promptax.core.types import Position
from promptax.runs.checkpoint import Checkpoints
from promptax.training.evaluate import Evaluator
from promptax.training.loop import empty_matrices, run_stages, train_stage
from promptax.training.train import Trainer

REVIEW = dataclasses.replace(toy.REPLAY, review_epochs=2)


def create(method, mesh, stream=None):
    stream = toy.make_stream() if stream is None else stream
    recipe = dataclasses.replace(toy.recipe_for(method), schedule=Schedule(1, 16))
    return Trainer.create(
        method, toy.make_vit(), 7, recipe, stream=stream, mesh=mesh, key=jr.key(0)
    )


@pytest.fixture(scope="module")
def trained(mesh):
    """After the steps of the first task, before its review."""
    method = methods.ER(train_backbone=False, replay=REVIEW)
    trainer, state = create(method, mesh)
    task = trainer.task(toy.make_stream(), 0)
    state = trainer.begin_task(state, task)
    for batch in trainer.batches(toy.make_stream(), 0, seed=0):
        state, _ = trainer.step(state, batch, task)
    return trainer, state, task


def test_a_review_takes_the_steps_of_a_pass_over_the_buffer(trained):
    """Written out step by step, without the loop that is compiled."""
    trainer, state, task = trained
    pages, size = int(state.memory.pages(16)), 16
    assert pages == 1
    wanted = eqx.tree_at(lambda s: s.task_step, toy.copy(state), jnp.int32(0))
    everything = dataclasses.replace(task, examples=jnp.int32(0), steps=jnp.int32(2 * pages))
    for number in range(2 * pages):
        key = jr.fold_in(jr.fold_in(jr.fold_in(state.key, 2**32 - 2), 0), number // pages)
        page = eqx.filter_jit(lambda s, n, key: s.memory.page(n, size, key=key))
        batch = page(wanted, jnp.int32(number % pages), key)
        wanted, _ = trainer.step(wanted, batch, everything)
    ours = trainer.review(toy.copy(state), task)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, ours.params, wanted.params)
    assert not toy.same_bits(ours.params, state.params)
    assert toy.same_bits(ours.memory, state.memory)
    assert (ours.step, ours.task_step) == (state.step + 2 * pages, state.task_step)


def test_without_epochs_there_is_no_review(trained):
    trainer, state, task = trained
    method = methods.ER(train_backbone=False, replay=toy.REPLAY)
    assert dataclasses.replace(trainer, method=method).review(state, task) is state


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        methods.ER(train_backbone=False, replay=REVIEW),
        methods.DERPP(train_backbone=False, replay=REVIEW),
        dataclasses.replace(toy.EVERY["l2p-r"], replay=REVIEW),
        dataclasses.replace(toy.METHODS["dualprompt"], replay=REVIEW),
    ],
    ids=lambda method: type(method).__name__,
)
def test_a_run_with_reviews_compiles_them_once_and_goes_on_to_the_same_bits(mesh, tmp_path, method):
    whole = toy.run(method, mesh)
    counts = whole.compiles.count
    assert (counts["train"], counts["review"], counts["evaluate"]) == (1, 1, 1)
    checkpoints, stream = Checkpoints(tmp_path), whole.evaluator.stream
    trainer, state = whole.trainer, toy.copy(whole.start)
    kill_at = trainer.steps(len(stream.stages[0].index))

    class Killed(Exception):
        pass

    def on_step(state, metrics):
        """After the last step of the first task, before its review."""
        if int(state.task_step) == kill_at:
            checkpoints.save(Position(0, kill_at), state, {})
            raise Killed

    with pytest.raises(Killed):
        train_stage(trainer, state, stream, 0, 0, on_step)
    restored = checkpoints.restore(toy.copy(whole.start))
    assert restored is not None
    evaluator = Evaluator(trainer, stream)
    start, matrices = Position(0, kill_at), empty_matrices(evaluator)
    ends = list(run_stages(evaluator, restored[0], matrices, seed=0, start=start))
    assert toy.same_bits(ends[-1].state, whole.end)


@pytest.mark.slow
def test_a_review_makes_up_for_forgetting(mesh):
    """What the last task has crowded out comes back."""
    replay = Replay(70, replay_batch=4, buffer_kind="balanced")
    last = {}
    for epochs in (0, 20):
        method = methods.ER(
            train_backbone=False, replay=dataclasses.replace(replay, review_epochs=epochs)
        )
        last[epochs] = toy.run(method, mesh).matrices["instance"].average_accuracy
    assert last[20] > last[0]
