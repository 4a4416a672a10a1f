"""The same numbers as the published code where a file holds them, and as `reference.py`, which
was written apart from the library and itself reproduces those files, everywhere else."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
import toy
from reference import make_meta

DATA = Path(__file__).parent / "data"
PUBLISHED = sorted(path.name for path in DATA.glob("*.npz"))


@pytest.fixture(scope="module")
def parity():
    """The script as a module."""
    path = DATA.parents[1] / "scripts" / "parity.py"
    spec = importlib.util.spec_from_file_location("parity", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["parity"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow  # `scripts/parity.py` runs all of them, which `.ci/run` does too
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_passes(parity, name, capsys):
    assert parity.main([str(DATA / name)]) == 0
    assert capsys.readouterr().out.endswith("all quantities agree\n")


QUICK = ("l2p_trajectory.npz",)


@pytest.mark.parametrize("name", toy.slow_except(QUICK, PUBLISHED[:-1]))
def test_the_reference_reproduces_a_published_file(name):
    meta, arrays = reference.load(DATA / name)
    group = lambda prefix: {
        key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)
    }
    make = reference.trajectory if name.endswith("trajectory.npz") else reference.step
    ours = make(meta, group("params/"), *group("in/").values())
    wanted = {key for key in arrays if not key.startswith(("in/", "params/"))}
    assert wanted <= set(ours)
    for key in wanted:
        scale = np.abs(arrays[key]).max() or 1
        np.testing.assert_allclose(ours[key] / scale, arrays[key] / scale, atol=1e-5)


DUALPROMPT = {"prefix": True, "pool_size": 6}
G_PROMPT = {"layers": [0], "length": 3, "prefix": True, "same_key_value": False}
STEPS = {
    "mean-token": make_meta(
        e_prompt={"embedding_key": "mean", "layers": [0, 1]},
        classifier="token",
        pull_constraint_coeff=0.5,
    ),
    "max-gap-no-keys": make_meta(
        e_prompt={"embedding_key": "max", "prompt_key": False, "layers": [1]},
        classifier="gap",
        arch={"hidden": 24, "heads": 3, "patch": 4, "mlp": 20},
    ),
    "mean-max-both-vote-no-keys": make_meta(
        e_prompt={
            "embedding_key": "mean_max",
            "prompt_key": False,
            "layers": [0, 1],
            "batchwise": True,
        },
        classifier="token+prompt",
    ),
    "many-layers-vote-past-the-pool-and-a-prefix": make_meta(
        e_prompt={"layers": [0, 1, 2], "batchwise": True, "train_mask_by_task": True},
        g_prompt=G_PROMPT,
        task=2,
        arch={"layers": 3},
    ),
    "overlap-one-array": make_meta(
        e_prompt=DUALPROMPT
        | {"layers": [0, 1], "same_key_value": True, "train_mask_by_task": True},
        g_prompt=G_PROMPT | {"same_key_value": True},
        classifier="token",
        task=2,
    ),
    "overlap-mixed-gap-past-the-pool-everything": make_meta(
        e_prompt=DUALPROMPT | {"layers": [1], "train_mask_by_task": True, "embedding_key": "max"},
        g_prompt=G_PROMPT | {"layers": [0, 1], "same_key_value": True},
        classifier="gap",
        task=3,
        trainable="all",
    ),
}
ADAM = {"name": "adam", "learning_rate": 0.002, "clip_global_norm": 1.0, "reinit_each_task": True}
SGD = {"name": "sgd", "learning_rate": 0.01, "momentum": 0.9, "nesterov": True}
THREE = {"tasks": [[0, 1], [2, 3], [4, 5]], "steps_per_task": 3}
TRAJECTORIES = {
    "five-datasets-with-keys": make_meta(
        e_prompt={
            "batchwise": True,
            "train_mask_by_task": True,
            "transfer_prompts": True,
            "transfer_keys": True,
        },
        pull_constraint_coeff=0.5,
        optimizer=ADAM,
        **THREE,
    ),
    "overlap-one-array": make_meta(
        e_prompt=DUALPROMPT
        | {"same_key_value": True, "train_mask_by_task": True, "transfer_prompts": True},
        g_prompt=G_PROMPT,
        classifier="token",
        optimizer=ADAM | {"clip_global_norm": None},
        **THREE,
    ),
    "everything-nesterov-no-mask": make_meta(
        trainable="all",
        train_class_mask=False,
        e_prompt={"batchwise": True},
        optimizer=SGD | {"clip_global_norm": 1.0, "reinit_each_task": False},
        **THREE,
    ),
}


OFTEN = ("many-layers-vote-past-the-pool-and-a-prefix", "five-datasets-with-keys")


@pytest.mark.parametrize("name", toy.slow_except(OFTEN, STEPS))
def test_a_step_agrees_with_the_reference(parity, name, tmp_path):
    meta = STEPS[name]
    path = reference.save(tmp_path / "step.npz", meta, reference.make_step(meta))
    assert parity.main([str(path)]) == 0


@pytest.mark.parametrize("name", toy.slow_except(OFTEN, TRAJECTORIES))
def test_a_trajectory_agrees_with_the_reference(parity, name, tmp_path):
    meta = TRAJECTORIES[name]
    arrays = reference.make_trajectory(meta)
    path = reference.save(tmp_path / "trajectory.npz", meta, arrays)
    assert parity.main([str(path)]) == 0


def test_one_wrong_number_or_index_fails(parity, tmp_path, capsys):
    meta = STEPS["mean-token"]
    arrays = reference.make_step(meta)
    shift = {"out/loss": 0.01, "grad/prompt_pool/key": 0.01, "out/eval_prompt_idx": 1}
    for name, error in shift.items():
        wrong = arrays[name].copy()
        wrong.ravel()[0] += error * np.abs(wrong).max() if wrong.dtype.kind == "f" else error
        path = reference.save(tmp_path / "wrong.npz", meta, {**arrays, name: wrong})
        assert parity.main([str(path)]) == 1
        failed = [x for x in capsys.readouterr().out.splitlines() if x.endswith("FAILED")]
        assert len(failed) == 1
        assert name.removeprefix("out/") in failed[0]
