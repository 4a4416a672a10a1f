"""A mesh of data times model devices: the same numbers, and only the messages that it must send."""

import functools
import itertools
import math
import re
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import toy
from jax.sharding import PartitionSpec

from promptax import UserError
from promptax.core import sharding
from promptax.core.settings import Schedule
from promptax.core.sharding import make_mesh
from promptax.methods import Rehearsal
from promptax.runs.checkpoint import Checkpoints
from promptax.training.evaluate import Masks, evaluation_step
from promptax.training.position import StreamPosition
from promptax.training.steps import (
    begin_task_step,
    end_task_step,
    observe_step,
    query_step,
    review_step,
    train_step,
)
from promptax.training.trainer import Trainer

LAYOUTS = ((8, 1), (4, 2), (2, 4), (1, 8))


def create(method, layout, **options):
    recipe = toy.recipe_for(method)
    vit, mesh = toy.make_vit(**options), make_mesh(*layout)
    return Trainer.create(method, vit, toy.make_stream(), recipe, mesh=mesh, key=jr.key(0))


def first_step(name, layout, **options):
    """The arguments of the compiled step."""
    trainer, state = create(toy.METHODS[name], layout, **options)
    stream = toy.make_stream()
    batch = next(trainer.batches(stream, 0, seed=0))
    return (trainer.setup, trainer.rule, batch, trainer.task(stream, 0)), state


FAST = [("l2p", (4, 2))]
SLOW = [pair for pair in itertools.product(toy.METHODS, LAYOUTS) if pair not in FAST]


@pytest.mark.parametrize(
    ("name", "layout"), [*FAST, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)]
)
def test_every_layout_gives_the_losses_and_accuracies_of_one_device(fitted, name, layout):
    """Over a whole run, with votes in training and beside, masks, transfer and padding."""
    one, many = (fitted(name), toy.run(toy.METHODS[name], make_mesh(*layout)))
    assert len(set(one.losses)) > 8
    np.testing.assert_allclose(many.losses, one.losses, rtol=1e-5, atol=1e-5)
    for ours, wanted in zip(many.evaluations, one.evaluations, strict=True):
        assert ours.accuracy.keys() == wanted.accuracy.keys()
        for protocol, accuracy in wanted.accuracy.items():
            np.testing.assert_array_equal(ours.accuracy[protocol], accuracy)


# --- where arrays live ---


def specs(tree):
    """The axes over which each array is split, by its path."""
    leaves = jax.tree.leaves_with_path(eqx.filter(tree, eqx.is_array))
    return {jax.tree_util.keystr(path): leaf.sharding.spec for path, leaf in leaves}


def test_blocks_are_split_along_their_largest_axis_and_nothing_else_is():
    trainer, state = create(toy.METHODS["l2p"], (4, 2))
    split = {path: spec for path, spec in specs(trainer.setup.frozen).items() if "model" in spec}
    assert {path for path in specs(trainer.setup.frozen) if ".blocks." in path} == split.keys()
    assert split[".backbone.blocks.mlp.hidden.kernel"] == PartitionSpec(None, None, "model")
    assert split[".backbone.blocks.attention.out"] == PartitionSpec(None, None, None, "model")
    assert not any("model" in spec for spec in specs(state).values())


def test_trained_blocks_and_their_moments_are_split_before_and_after_a_step():
    inputs, state = first_step("finetune", (2, 4))
    after, _ = train_step(inputs, toy.copy(state))
    for tree in (state, after):
        split = [path for path, spec in specs(tree).items() if "model" in spec]
        blocks = [path for path in specs(tree) if ".blocks." in path]
        assert split == blocks
        assert {path.split(".backbone")[0] for path in split} == {
            ".params",
            ".opt_state.mu",
            ".opt_state.nu",
        }


def test_an_axis_that_does_not_divide_stays_whole():
    """In stacks of 4 blocks; the stack itself is never cut."""
    stack = [jnp.zeros(shape) for shape in ((4, 5, 7), (4, 9, 8), (4,))]
    placed = sharding.place(stack, make_mesh(2, 4), lambda node: isinstance(node, jax.Array))
    cut = [leaf.sharding.spec for leaf in placed]
    assert cut == [PartitionSpec(None), PartitionSpec(None, None, "model"), PartitionSpec(None)]


# --- what the compiled step sends ---

COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
)


def messages(step: Any, *arguments, of=r"\w+"):
    """The sizes of all arrays that a compiled step sends, by the kind of message.

    `of` is a pattern for the element types that count.
    """
    text = step.lower(*arguments).compile().compiled.as_text()
    found = {}
    for line in text.splitlines():
        if (match := COLLECTIVE.search(line)) and "-done(" not in line:
            shapes = re.findall(rf"\b{of}\[([\d,]*)\]", match[1])
            sizes = {math.prod(int(n) for n in shape.split(",") if n) for shape in shapes}
            found.setdefault(match[2], set()).update(sizes)
    return found


def sizes_of(tree):
    """The sizes of the floating-point arrays of a tree."""
    return {leaf.size for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))}


def sizes_of_a_block(setup, state):
    """The sizes of the arrays of one block of the ViT."""
    blocks = setup.model(state.params).backbone.blocks
    return {size // toy.CONFIG.depth for size in sizes_of(blocks)}


@pytest.mark.parametrize("name", toy.slow_except(["l2p"], toy.METHODS))
def test_only_gradients_of_trained_leaves_are_reduced_and_only_weights_gathered(name):
    inputs, state = first_step(name, (4, 2))
    found = messages(train_step, inputs, state)
    setup = inputs[0]
    one_block = sizes_of_a_block(setup, state)
    trained = sizes_of(state.params)
    if getattr(setup.method, "train_backbone", False):
        # A block at a time, query apart from key and value, and each half where it belongs.
        trained |= {size * sixths // 6 for size in one_block for sixths in (1, 2, 3, 4, 6)}
    ballots = {6}  # a group of 4 images is on two devices
    assert found["all-reduce"] <= trained | ballots | {1}
    assert found["all-gather"] <= one_block
    assert found.keys() == {"all-reduce", "all-gather"}
    tokens = 16 // 8 * (2 * 2 + 1)
    assert not (trained | one_block) & {tokens * 32, tokens * 64}


def test_without_a_split_nothing_is_gathered():
    found = messages(train_step, *first_step("dualprompt", (8, 1)))
    assert found.keys() == {"all-reduce"}


SPLIT = {"slca": Rehearsal(toy.OTHERS["slca"], toy.REPLAY), "l2p": toy.OTHERS["l2p-r"]}
"""A method that trains the blocks and passes over the images once more, and one with a query."""
EXAMPLES = toy.RECIPE.schedule.batch_size


@functools.cache
def split_over_all_devices(name):
    return create(SPLIT[name], (1, 8))


def compiled_step(name, step):
    """A compiled step on a mesh of 1x8, and its arguments."""
    trainer, state = split_over_all_devices(name)
    stream = toy.make_stream()
    batch = next(trainer.batches(stream, 0, seed=0))
    task = trainer.task(stream, 0)
    zero = sharding.replicate(jnp.int32(0), trainer.mesh)
    setup = trainer.setup
    test_setup = setup.for_evaluation()
    if step == "evaluate":
        query, owner = jnp.zeros((EXAMPLES, trainer.query_dim)), jnp.zeros(EXAMPLES, jnp.int32)
        query, owner = jax.device_put((query, owner), sharding.split(trainer.mesh))
        masks = Masks(task.seen, sharding.replicate(task.seen[None], trainer.mesh), owner)
        inputs = (test_setup, state.params, state.method_state, batch, query, masks)
        return evaluation_step, *inputs, trainer.recipe.evaluation.vote_group, True
    return {
        "train": (train_step, (setup, trainer.rule, batch, task), state),
        "begin": (begin_task_step, (setup, trainer.rule, task), state, True),
        "observe": (observe_step, (test_setup, batch, task, zero), state),
        "end": (end_task_step, (test_setup, task), state),
        "review": (review_step, (setup, trainer.rule, task, zero), state, EXAMPLES),
        "query": (query_step, test_setup, state.params, batch),
    }[step]


PASSES = {
    "slca": ("train", "begin", "observe", "end", "review", "evaluate"),
    "l2p": ("train", "begin", "review", "query", "evaluate"),
}
"""The steps that each of the methods has."""
FIRST = [("slca", "observe"), ("l2p", "query")]
OTHER = [(name, step) for name, steps in PASSES.items() for step in steps]
OTHER = [pair for pair in OTHER if pair not in FIRST]


@pytest.mark.parametrize(
    ("name", "step"), [*FIRST, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in OTHER)]
)
def test_no_step_sends_activations_where_blocks_are_split(name, step):
    """Only weights are gathered, and only gradients and statistics are summed: not even the
    features of a whole batch are sent. The replay buffer is on every device, so it is sent labels
    and a few numbers for each image (and the raw images, which are no floating-point numbers)."""
    floats = r"(?:f16|bf16|f32|f64)"
    found = messages(*compiled_step(name, step), of=floats)
    trainer, state = split_over_all_devices(name)
    block = sizes_of_a_block(trainer.setup, state)
    # The gradients of query, key and value can be summed apart from each other.
    thirds = {size * parts // 3 for size in block for parts in (1, 2)}
    summed = block | thirds | sizes_of(state.params) | sizes_of(state.method_state)
    examples = EXAMPLES + toy.REPLAY.replay_batch
    few = set(range(examples * toy.CLASSES + 1))
    gathered = found.pop("all-gather", set())
    assert gathered <= block | few
    assert found.pop("all-reduce", set()) <= summed | few
    assert found.pop("reduce-scatter", set()) <= summed
    assert all(sizes <= few for sizes in found.values())
    # None of these sizes is that of an activation, so that one of those would be noticed.
    dim, mlp = toy.CONFIG.dim, toy.CONFIG.mlp
    features = {batch * dim for batch in (EXAMPLES, examples)}
    tokens = (5, 9) if name == "l2p" else (5,)  # without and with prompts
    activations = {size * count for size in features for count in tokens}
    activations |= {size * mlp // dim for size in activations}
    assert not (summed | few) & (features | activations)
    # Weights are gathered wherever the ViT runs, so that the search above finds something.
    assert bool(gathered & (block - few)) == (step not in ("begin", "end"))


# --- checkpoints, and what does not fit ---


@pytest.mark.parametrize("name", toy.slow_except(["finetune"], ["l2p", "finetune"]))
def test_a_checkpoint_of_one_layout_goes_on_in_another(tmp_path, name):
    inputs, state = first_step(name, (4, 2))
    state, _ = train_step(inputs, state)
    Checkpoints(tmp_path).save(StreamPosition(1), state, {})
    like = create(toy.METHODS[name], (1, 8))[1]
    restored = Checkpoints(tmp_path).restore(like)
    assert restored is not None
    assert specs(restored[0].params) == specs(like.params)
    assert toy.same_bits(restored[0], state)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ((9, 1), "mesh of 9 devices was asked for, but there are 8"),
        ((4, 4), r"16 devices .* 8 \(make_mesh\(data=4, model=4\)\)"),
        ((None, 3), "over 3 of 8 devices: choose a divisor"),
        ((0, 1), "mesh of 0 devices"),
        ((None, 0), "over 0 of 8 devices"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_says_so(layout, words):
    with pytest.raises(UserError, match=words):
        make_mesh(*layout)


def test_a_batch_must_divide_over_all_devices_of_both_axes():
    recipe = replace(toy.RECIPE, schedule=Schedule(1, 12))
    with pytest.raises(UserError, match="batch size 12 is not divisible by the 8 devices"):
        Trainer.create(
            toy.Pixels(),
            toy.make_vit(),
            toy.make_stream(),
            recipe,
            mesh=make_mesh(2, 4),
            key=jr.key(0),
        )
