"""The interface of methods: its size, and what is refused before anything is trained."""

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
import toy

from promptax import UserError, methods
from promptax.methods.base import AbstractMethod, only
from promptax.methods.registry import builtin_methods
from promptax.training.trainer import Trainer, trainable_filter


def public(kind):
    return {name for name in dir(kind) if not name.startswith("_")}


def test_the_interface_has_at_most_ten_members():
    assert {"init", "predict", "trainable", "loss"} <= public(AbstractMethod)
    assert len(public(AbstractMethod)) <= 10


def overridden(kind):
    """What several classes define. None and abstract declarations are there to be defined."""

    def is_code(owner, name):
        value = vars(owner).get(name)
        has_code = callable(value) or isinstance(value, property | classmethod | staticmethod)
        return has_code and name not in owner.__abstractmethods__

    bases = [base for base in kind.__mro__ if issubclass(base, AbstractMethod)]
    names = public(kind) - {field for base in bases for field in base.__annotations__}
    return {name for name in names if sum(is_code(base, name) for base in bases) > 1}


def test_no_class_overrides_the_code_of_another():
    for kind in (*builtin_methods().values(), methods.Rehearsal):
        assert not overridden(kind), kind.__name__
    change = {"loss": lambda self, *args, key: None, "query": property(lambda self: None)}
    assert overridden(type("Changed", (methods.L2P,), change)) == {"loss", "query"}


# --- what a hook may change ---


def create(kind, mesh):
    stream = toy.make_stream()
    trainer, state = Trainer.create(
        kind(), toy.make_vit(), stream, toy.RECIPE, mesh=mesh, key=jr.key(0)
    )
    return trainer, state, stream


def changing(hook, change):
    """A method with a hook that gives the model another value in some places."""

    def init(self, backbone, stream, *, key):
        model, state = toy.Pixels().init(backbone, stream, key=key)
        return {**model, "number": 1}, state

    def call(self, model, state, *args, key):
        return {**model, **change(model)}, state

    return type("Changing", (toy.Pixels,), {"init": init, hook: call})


def call(hook, trainer, state, stream):
    if hook == "observe":
        return trainer.observe(state, stream, 0)
    return getattr(trainer, hook)(state, trainer.task(stream, 0))


@pytest.mark.parametrize("hook", ["begin_task", "observe", "end_task"])
def test_a_hook_that_changes_a_frozen_leaf_is_refused_with_the_name_of_the_leaf(hook, mesh):
    array = changing(hook, lambda model: {"unused": 2 * model["unused"]})
    number = changing(hook, lambda model: {"number": 2})
    for kind, leaf in ((array, "unused"), (number, "number")):
        words = rf"Changing\.{hook} changes \['{leaf}'\] of the model, which `trainable` leaves"
        with pytest.raises(UserError, match=words):
            call(hook, *create(kind, mesh))
    grown = changing(hook, lambda model: {"more": jnp.ones(2)})
    with pytest.raises(UserError, match=rf"Changing\.{hook} returns a model of another structure"):
        call(hook, *create(grown, mesh))


@pytest.mark.parametrize("hook", ["begin_task", "observe", "end_task"])
def test_a_hook_may_change_a_trained_leaf(hook, mesh):
    ones = lambda model: {"head": jax.tree.map(jnp.ones_like, model["head"]), "number": 1}
    state = call(hook, *create(changing(hook, ones), mesh))
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(state.params))


# --- what `trainable` may give ---

MODEL = {"head": jnp.zeros((4, 3)), "frozen": jnp.ones(3), "order": jnp.arange(3)}
NONE = jax.tree.map(lambda _: False, MODEL)


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        (
            {**MODEL, "order": False},
            r"gives the values of \['frozen'\] as their own factor of the learning rate",
        ),
        (
            {**NONE, "head": MODEL["head"]},
            r"gives the values of \['head'\] as their own factor of the learning rate",
        ),
        ({"head": 1.0}, "does not return a tree like its model: build it with `only`"),
        (1.0, "does not return a tree like its model"),
        ({**NONE, "frozen": None}, "does not return a tree like its model"),
        (NONE, "names no leaf of the model, so nothing would be trained"),
        (only(MODEL, lambda model: model["order"]), "names no leaf of the model"),
        ({**NONE, "order": 1.0}, r"names \['order'\] \(int32 array\), but gradients train"),
        (
            {**NONE, "head": jnp.ones(4)},
            r"gives a factor of shape \(4,\) for \['head'\] of shape \(4, 3\)",
        ),
        (
            {**NONE, "head": jnp.ones((2, 4, 3))},
            r"gives a factor of shape \(2, 4, 3\) for \['head'\]",
        ),
    ],
)
def test_a_tree_that_is_no_filter_is_refused(factors, words):
    kind = type("Own", (toy.Pixels,), {"trainable": lambda self, model, task: factors})
    with pytest.raises(UserError, match=rf"Own\.trainable {words}"):
        trainable_filter(kind(), MODEL, toy.make_task())


def test_a_factor_may_be_a_number_or_an_array_that_broadcasts():
    for factor in (1.0, 0.0, jnp.float32(0.5), jnp.ones((4, 1)), jnp.ones(3), jnp.ones((4, 3))):
        given = {**NONE, "head": factor}
        kind = type("Own", (toy.Pixels,), {"trainable": lambda self, *_, given=given: given})
        filters = trainable_filter(kind(), MODEL, toy.make_task())
        assert filters == {"head": True, "frozen": False, "order": False}


@pytest.mark.parametrize("missing", ["trainable", "loss"])
def test_loss_and_trainable_go_together(missing, mesh):
    with pytest.raises(UserError, match="Half has to define both `trainable` and `loss`"):
        create(type("Half", (toy.Pixels,), {missing: None}), mesh)


def test_rehearsal_wraps_only_what_takes_steps_and_has_no_buffer_of_its_own():
    for inner, words in ((methods.NCM(), "takes no training steps"), (methods.ER(), "recalls")):
        with pytest.raises(UserError, match=words):
            methods.Rehearsal(inner, toy.REPLAY)


def test_hooks_under_rehearsal_see_the_class_mask_of_its_loss(mesh):
    """Otherwise EWC would weigh parameters by another softmax than the one that is trained."""
    stream = toy.make_stream()
    masks = []

    class Watching(methods.LinearProbe):
        def end_task(self, model, state, task, *, key):
            jax.debug.callback(lambda mask: masks.append(mask.tolist()), task.competing)
            return model, state

    method = methods.Rehearsal(Watching(), toy.REPLAY)
    recipe = toy.recipe_for(method)
    trainer, state = Trainer.create(
        method, toy.make_vit(), stream, recipe, mesh=mesh, key=jr.key(0)
    )
    jax.block_until_ready(trainer.end_task(state, trainer.task(stream, 1)))
    jax.effects_barrier()
    assert masks == [[True] * 5 + [False] * 2]
