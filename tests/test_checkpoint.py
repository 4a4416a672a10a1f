"""Checkpoints: what comes back is what was saved, and what is damaged or foreign says so."""

import contextlib
import errno
import gc
import itertools
import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import toy

from promptax import data, methods, nn
from promptax.core.errors import UserError
from promptax.core.files import sha256_of
from promptax.core.settings import Images, Optimizer, Recipe
from promptax.core.sharding import make_mesh
from promptax.runs.checkpoint import Checkpoints, NotSaved, _files, _signed
from promptax.training.position import StreamPosition
from promptax.training.trainer import Trainer

LINEAR, ADAM = methods.LinearProbe(), Optimizer()
L2P = methods.L2P(prompt_length=2, pool_size=4, top_k=2)


def state_of(method=LINEAR, *, classes=6, seed=0, optimizer=ADAM, devices=8):
    vit = nn.ViT(nn.ViTConfig(8, 16, 2, 2, 16, image=16), key=jr.key(0))
    images = data.ArraySource(np.zeros((classes, 16, 16, 3), np.uint8), np.arange(classes))
    stream = data.class_incremental(images, images, num_tasks=1)
    recipe = Recipe(optimizer, images=Images(16, None))
    mesh = make_mesh(devices)
    return Trainer.create(method, vit, stream, recipe, mesh=mesh, key=jr.key(seed))[1]


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
    Checkpoints(tmp_path / "c").save(StreamPosition(3), state, {"rows": [[0.5, None]]})
    like = state_of(method, seed=1, optimizer=optimizer)
    restored = Checkpoints(tmp_path / "c").restore(like)
    assert restored is not None
    again, record = restored
    assert record == {"rows": [[0.5, None]]}
    assert jax.tree.structure(again) == jax.tree.structure(state)
    for kept, before in zip(leaves(again), leaves(state), strict=True):
        np.testing.assert_array_equal(kept, before)
    assert jr.bits(again.key) == jr.bits(state.key) != jr.bits(like.key)
    for kept, wanted in zip(jax.tree.leaves(again), jax.tree.leaves(like), strict=True):
        assert kept.sharding.is_equivalent_to(wanted.sharding, kept.ndim)


def test_a_run_can_go_on_with_another_number_of_devices(tmp_path):
    Checkpoints(tmp_path).save(StreamPosition(1), state_of(devices=2), {})
    restored = Checkpoints(tmp_path).restore(state_of(devices=8))
    assert restored is not None
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(restored[0])} == {8}


def test_only_what_is_trained_is_written(tmp_path):
    state = state_of()
    Checkpoints(tmp_path).save(StreamPosition(1), state, {})
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
        Checkpoints(folder).save(StreamPosition(stages), state, {"stages": stages})
    return folder


@pytest.fixture
def three(saved_thrice, tmp_path):
    """A folder after three saves, of which the last two are kept."""
    return Checkpoints(shutil.copytree(saved_thrice, tmp_path / "checkpoints"))


def stages_of(checkpoints):
    restored = checkpoints.restore(state_of())
    return None if restored is None else restored[1]["stages"]


def test_the_last_two_are_kept_and_the_newest_is_restored(three):
    assert sorted(path.name for path in three.folder.iterdir() if path.is_dir()) == ["2", "3"]
    assert stages_of(three) == 3


def test_one_that_a_kill_left_half_written_does_not_count(three):
    shutil.copytree(three.folder / "3", three.folder / "4.draft")
    assert stages_of(three) == 3

    three.save(StreamPosition(3, 5), state_of(), {})
    assert not list(three.folder.glob("*.draft"))


def test_the_newest_are_kept_and_always_two_between_tasks_that_a_learner_can_be_made_of(three):
    for step in (5, 10, 15):
        three.save(StreamPosition(3, step), state_of(), {"stages": 3, "step": step})
    assert three.positions() == [
        StreamPosition(2),
        StreamPosition(3),
        StreamPosition(3, 10),
        StreamPosition(3, 15),
    ]
    assert three.newest().record["step"] == 15
    assert three.newest(between=True).path.name == "3"
    every = replace(three, keep_tasks=True, keep=1)
    every.save(StreamPosition(4), state_of(), {})
    every.save(StreamPosition(5), state_of(), {})
    assert every.positions() == [
        StreamPosition(2),
        StreamPosition(3),
        StreamPosition(4),
        StreamPosition(5),
    ]


@pytest.mark.parametrize(
    ("position", "name"),
    [
        (StreamPosition(12), "12"),
        (StreamPosition(0, 40), "0.40"),
        (StreamPosition(1, 90, True), "1.90.trained"),
    ],
)
def test_a_position_is_read_back_from_its_name_and_ordered(position, name):
    assert str(position) == name
    assert StreamPosition.of(name) == position
    assert StreamPosition.of(name + ".damaged") is StreamPosition.of("x") is None
    at = StreamPosition(1, 90)
    assert (
        StreamPosition(1)
        < at
        < StreamPosition(1, 90, True)
        < StreamPosition(2)
        < StreamPosition(10)
    )


# --- damage ---


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def pick(folder, name):
    """A file of a checkpoint; of the arrays, the largest."""
    found = [file for file in folder.rglob("*") if file.is_file() and name in str(file)]
    return max(found, key=lambda file: file.stat().st_size)


@pytest.mark.parametrize("damage", [halve, empty, flip, Path.unlink])
@pytest.mark.parametrize("name", ["state/d/", "state/_METADATA", "record.json", "manifest.json"])
def test_a_damaged_one_is_named_and_set_aside_and_the_one_before_serves(
    three, damage, name, caplog
):
    damage(pick(three.folder / "3", name))
    assert stages_of(three) == 2
    assert f"checkpoint {three.folder / '3'} is damaged ({name[:7]}" in caplog.text
    assert "set aside as 3.damaged" in caplog.text
    assert (three.folder / "3.damaged").is_dir()
    assert three.positions() == [StreamPosition(2)]


def into_a_folder(file):
    file.unlink()
    file.mkdir()


def into_a_loop(file):
    file.unlink()
    file.symlink_to(file.name)


def into_a_pipe(file):
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("oddity", [into_a_folder, into_a_loop, into_a_pipe])
@pytest.mark.parametrize("name", ["state/d/", "record.json", "manifest.json"])
def test_whatever_stands_in_the_place_of_a_file_the_one_before_serves(three, oddity, name, caplog):
    oddity(pick(three.folder / "3", name))
    assert stages_of(three) == 2
    assert "set aside as 3.damaged" in caplog.text


def test_what_is_no_checkpoint_but_has_the_name_of_one_is_set_aside(three, caplog):
    (three.folder / "4").write_text("not a folder")
    (three.folder / "5").mkdir()
    (three.folder / "99").symlink_to("99")
    assert stages_of(three) == 3
    assert caplog.text.count("set aside as") == 3
    (three.folder / "1").write_text("older than all, and deleted as a checkpoint is")
    three.save(StreamPosition(4), state_of(), {"stages": 4})
    assert three.positions() == [StreamPosition(3), StreamPosition(4)]


@pytest.mark.parametrize("name", ["../2/record.json", "/etc/hostname", "/dev/zero"])
def test_a_manifest_cannot_name_files_elsewhere(three, name):
    manifest = _signed({"format": 3, "files": {name: "0" * 64}})
    (three.folder / "3" / "manifest.json").write_text(json.dumps(manifest))
    assert stages_of(three) == 2


def entries(folder):
    return {(str(path.relative_to(folder)), path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_reading_passes_over_damage_and_changes_nothing(three, caplog):
    flip(pick(three.folder / "3", "record.json"))
    before = entries(three.folder)
    found = three.newest(between=True)
    assert (found.path.name, found.record["stages"]) == ("2", 2)
    assert "3 is damaged (record.json has changed): passed over" in caplog.text
    flip(pick(three.folder / "2", "record.json"))
    with pytest.raises(UserError, match=r"all checkpoints at the end .* are damaged: train on"):
        three.newest(between=True)
    assert {name for name, _ in entries(three.folder)} == {name for name, _ in before}
    assert not list(three.folder.glob("*.damaged"))


def test_what_is_set_aside_is_never_deleted(three):
    for _ in range(2):
        flip(pick(three.folder / "3", "record.json"))
        assert stages_of(three) == 2
        three.save(StreamPosition(3), state_of(), {"stages": 3})
    assert {"3", "3.damaged", "3.damaged1"} <= {path.name for path in three.folder.iterdir()}


def test_where_all_are_damaged_the_error_says_so(three):
    for path in list(three.folder.iterdir()):
        empty(pick(path, "state/d/"))
    for _ in range(2):
        with pytest.raises(UserError, match=r"all checkpoints .* damaged and set aside: start"):
            three.newest()
    assert {path.name for path in three.folder.iterdir()} == {"2.damaged", "3.damaged"}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("record/metadata", "3 has format 1, but this version reads 3"),
        ("manifest.json", "3 has format 4, but this version reads 3"),
    ],
)
def test_another_format_is_refused_by_name_and_left_alone(three, path, words):
    file = three.folder / "3" / path
    (three.folder / "3" / "manifest.json").unlink()
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(_signed({"format": 4, "files": {}})))
    with pytest.raises(UserError, match=words):
        three.newest()
    assert (three.folder / "3").is_dir()


@pytest.mark.parametrize(
    "content",
    [b"[]", b"5", b'"x"', b"{}", b'{"format": 3}', b'{"format": 3, "files": 5}', b"[" * 100_000],
)
@pytest.mark.parametrize("name", ["manifest.json", "record.json"])
def test_json_of_another_shape_is_damage_even_where_its_digest_is_right(three, name, content):
    folder = three.folder / "3"
    (folder / name).write_bytes(content)
    if name == "record.json":
        sign(folder)
    # Any object may be a record: what it holds is the caller's.
    serves = name == "record.json" and content.startswith(b"{")
    assert three.newest().path.name == ("3" if serves else "2")


def sign(folder):
    """Write the manifest anew, as somebody would who means harm."""
    (folder / "manifest.json").unlink()
    files = {str(file.relative_to(folder)): sha256_of(file) for file in _files(folder)}
    (folder / "manifest.json").write_text(json.dumps(_signed({"format": 3, "files": files})))


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["state/d/", "_METADATA", "_sharding", "manifest.ocdbt", "record"])
@pytest.mark.parametrize(
    "payload",
    toy.slow_except([pickle.dumps], [pickle.dumps, lambda bomb: YAML % str(bomb.mark).encode()]),
)
def test_no_file_runs_code_even_where_its_digest_is_right(three, name, payload, tmp_path):
    folder, mark = three.folder / "3", tmp_path / "ran"
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()
    mark.unlink()
    pick(folder, name).write_bytes(payload(Bomb(mark)))
    sign(folder)
    with contextlib.suppress(UserError):
        three.restore(state_of())
    gc.collect()  # while what Orbax leaves behind after a failure is ignored
    assert not mark.exists()


YAML = b"!!python/object/apply:pathlib.Path.touch [%s]"


# --- faults of the disk ---


@pytest.mark.parametrize("call", [1, 2, 9, 14])
def test_a_full_disk_is_named_and_leaves_the_last_one_as_it_was(three, monkeypatch, call):
    calls = itertools.count(1)

    def fsync(descriptor):
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(NotSaved, match=r"checkpoint .*/4 cannot be written: No space left"):
        three.save(StreamPosition(4), state_of(), {})
    monkeypatch.undo()
    assert sorted(path.name for path in three.folder.iterdir()) == ["2", "3"]
    assert stages_of(three) == 3


def test_a_folder_that_is_gone_is_not_made_anew(three):
    shutil.rmtree(three.folder.parent)
    with pytest.raises(NotSaved, match="/4 cannot be written: No such file"):
        three.save(StreamPosition(4), state_of(), {})
    assert not three.folder.parent.exists()


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
