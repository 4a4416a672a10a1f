"""Checkpoints: what comes back is what was saved, and what is damaged or foreign says so."""

import shutil

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from promptax import methods, nn
from promptax.checkpoint import Checkpoints
from promptax.config import Optimizer, Recipe
from promptax.errors import UserError
from promptax.sharding import make_mesh
from promptax.train import Trainer

LINEAR, ADAM = methods.Linear(), Optimizer()
L2P = methods.L2P(prompt_length=2, pool_size=4, top_k=2)


def state_of(method=LINEAR, *, classes=6, seed=0, optimizer=ADAM, devices=8):
    vit = nn.ViT(nn.ViTConfig(8, 16, 2, 2, 16, image=16), key=jr.key(0))
    recipe = Recipe(optimizer)
    mesh = make_mesh(devices)
    return Trainer.create(method, vit, classes, recipe, mesh=mesh, key=jr.key(seed))[1]


def later(state, by):
    """A state after steps: every array another, the key too."""
    arrays, rest = eqx.partition(state, eqx.is_inexact_array)
    state = eqx.combine(jax.tree.map(lambda leaf: leaf + by, arrays), rest)
    where = lambda state: (state.step, state.task_step, state.key)
    return eqx.tree_at(
        where, state, (state.step + 7, state.task_step + 3, jr.fold_in(state.key, 5))
    )


def leaves(state):
    data = lambda leaf: (
        jr.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    )
    return [np.asarray(data(leaf)) for leaf in jax.tree.leaves(eqx.filter(state, eqx.is_array))]


@pytest.mark.parametrize(
    ("method", "optimizer"), [(L2P, ADAM), (L2P, Optimizer("sgd")), (LINEAR, Optimizer("adamw"))]
)
def test_a_state_comes_back_to_the_bit_with_its_key_optimizer_and_placement(
    tmp_path, method, optimizer
):
    state = later(state_of(method, optimizer=optimizer), 0.25)
    Checkpoints(tmp_path / "c").save(3, state, {"stages_done": 3, "rows": [[0.5, None]]})
    like = state_of(method, seed=1, optimizer=optimizer)
    restored = Checkpoints(tmp_path / "c").restore(like)
    assert restored is not None
    again, record = restored
    assert record == {"format": 1, "stages_done": 3, "rows": [[0.5, None]]}
    assert jax.tree.structure(again) == jax.tree.structure(state)
    for kept, before in zip(leaves(again), leaves(state), strict=True):
        np.testing.assert_array_equal(kept, before)
    assert jr.bits(again.key) == jr.bits(state.key) != jr.bits(like.key)
    for kept, wanted in zip(jax.tree.leaves(again), jax.tree.leaves(like), strict=True):
        assert kept.sharding.is_equivalent_to(wanted.sharding, kept.ndim)


def test_a_run_can_go_on_with_another_number_of_devices(tmp_path):
    Checkpoints(tmp_path).save(1, state_of(devices=2), {})
    restored = Checkpoints(tmp_path).restore(state_of(devices=8))
    assert restored is not None
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(restored[0])} == {8}


def test_only_what_is_trained_is_written(tmp_path):
    state = state_of()
    Checkpoints(tmp_path).save(1, state, {})
    size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    trained = sum(leaf.nbytes for leaf in leaves(state))
    assert trained < size < trained + 20_000


def test_no_folder_or_an_empty_one_is_no_checkpoint(tmp_path):
    like = state_of()
    assert Checkpoints(tmp_path / "none").restore(like) is None
    assert not (tmp_path / "none").exists()
    assert Checkpoints(tmp_path).restore(like) is None


@pytest.fixture(scope="module")
def saved_thrice(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    state = state_of()
    for stages in (1, 2, 3):
        state = later(state, stages)
        Checkpoints(folder).save(stages, state, {"stages_done": stages})
    return folder


@pytest.fixture
def three(saved_thrice, tmp_path):
    """A folder after three saves, of which the last two are kept."""
    return Checkpoints(shutil.copytree(saved_thrice, tmp_path / "checkpoints"))


def stages_of(checkpoints):
    restored = checkpoints.restore(state_of())
    return None if restored is None else restored[1]["stages_done"]


def test_the_last_two_are_kept_and_the_newest_is_restored(three):
    assert sorted(path.name for path in three.folder.iterdir() if path.is_dir()) == ["2", "3"]
    assert stages_of(three) == 3


def test_one_that_a_kill_left_half_written_does_not_count(three):
    shutil.copytree(three.folder / "3", three.folder / "4.orbax-checkpoint-tmp")
    assert stages_of(three) == 3


def halve(path):
    for file in [file for file in path.rglob("*") if file.is_file()]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(path):
    shutil.rmtree(path)
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "part"),
    [(halve, ""), (halve, "state"), (halve, "record"), (empty, "state"), (empty, "record")],
)
def test_a_damaged_one_is_named_and_the_one_before_serves_once_it_is_gone(three, damage, part):
    damage(three.folder / "3" / part)
    with pytest.raises(UserError) as error:
        stages_of(three)
    message = str(error.value)
    assert str(three.folder / "3") in message
    assert "remove" in message
    assert "\n" not in message
    shutil.rmtree(three.folder / "3")
    assert stages_of(three) == 2


@pytest.mark.parametrize(
    ("like", "words"),
    [
        ({"method": L2P}, "lacks leaf .pool.key' another method?"),
        ({"method": methods.Finetune()}, "lacks leaf .backbone.blocks"),
        ({"classes": 8}, ".head.bias' (8,) (6,)"),
        ({"optimizer": Optimizer("sgd")}, "foreign leaf '.opt_state"),
    ],
    ids=["method", "trained", "classes", "optimizer"],
)
def test_another_model_is_refused_with_the_leaf_named(three, like, words):
    with pytest.raises(UserError) as error:
        three.restore(state_of(**like))
    assert all(word in str(error.value) for word in words.split()), error.value
