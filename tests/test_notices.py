"""What a run says before it trains: images unlike pre-training, and tasks that train nothing."""

import dataclasses
import json

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import torch_vit as others
import toy
from safetensors.numpy import save_file

from promptax import nn
from promptax.cli import main
from promptax.cli.train import _parse_flags, _start
from promptax.core.settings import Images
from promptax.runs.preprocessing import as_in_pretraining, pretraining_of, remarks
from promptax.training.trainer import Trainer

DINO = {
    "architecture": "vit_small_patch16_224",
    "model_args": {"num_heads": others.HEADS},
    "pretrained_cfg": {
        "tag": "dino",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "crop_pct": 0.5,
        "interpolation": "bicubic",
    },
}


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A file as timm publishes DINO, with a config beside it."""
    folder = tmp_path_factory.mktemp("dino")
    save_file(others.make(others.TIMM), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(DINO))
    return folder / "model.safetensors"


def images_of(argv):
    """The preparation of images that a command line asks for."""
    start, rest = _start(argv)
    assert start is not None
    return _parse_flags(start, rest).images


def test_images_are_prepared_as_the_weights_say_unless_a_flag_says_otherwise(dino):
    size = nn.read_weights(dino).config().image
    images = images_of(["l2p", "--weights", str(dino)])
    assert (images.size, images.resize) == (size, 2 * size)
    assert (images.normalisation, images.interpolation) == ("imagenet", "bicubic")
    other = images_of(["l2p", f"--weights={dino}", "--images.normalisation", "clip"])
    assert other == dataclasses.replace(images, normalisation="clip")
    # The presets of what comes with the package are for its own weights, those of papers for any.
    assert images_of(["l2p"]).size == 32
    assert images_of(
        ["--preset", "split-glyphs-l2p", "--weights", str(dino)]
    ) == dataclasses.replace(images, flip=False)
    published = ["--preset", "cifar100-l2p", "--weights", str(dino)]
    assert images_of(published) == images_of(published[:2])


def test_a_config_file_takes_the_images_of_its_weights_and_keeps_what_it_gives(dino, tmp_path):
    by_flag = images_of(["l2p", "--weights", str(dino)])
    config = tmp_path / "mine.yaml"
    config.write_text(f"method: l2p\nbackbone: {{weights: {dino}}}")
    assert images_of(["--config", str(config)]) == by_flag
    given = "recipe: {images: {normalisation: unit}}"
    kept = dataclasses.replace(by_flag, normalisation="unit")
    assert kept != by_flag
    config.write_text(f"method: l2p\nbackbone: {{weights: {dino}}}\n{given}")
    assert images_of(["--config", str(config)]) == kept
    config.write_text(f"method: l2p\n{given}")
    assert images_of(["--config", str(config), "--weights", str(dino)]) == kept


def test_what_weights_do_not_say_stays_as_it_is():
    images = Images(size=32, resize=40, normalisation="clip", interpolation="bicubic")
    assert as_in_pretraining(images, {"size": 36}) == dataclasses.replace(images, size=36)
    assert as_in_pretraining(images, {"size": 64}).resize is None
    (said, unsaid) = remarks(images, {"size": 32})
    assert "as the weights were trained: size 32" in said
    assert "do not say how pixels were scaled" in unsaid
    assert not list(remarks(images, {}))


def test_a_difference_from_pre_training_is_named_with_the_flags_that_end_it(dino):
    said = pretraining_of(nn.read_weights(dino))
    (line,) = remarks(Images(size=16, resize=None), said)
    assert "(unit: to [0, 1], as the published prompt methods do)" in line
    flags = line.rpartition("use ")[2].rstrip(".").split()
    assert images_of(["l2p", "--weights", str(dino), *flags]) == images_of(
        ["l2p", "--weights", str(dino)]
    )


@pytest.mark.parametrize(
    ("mask", "masks"), [("task", (2, 3, 2)), ("seen", (2, 5, 7)), ("none", (7, 7, 7))]
)
def test_the_class_mask_decides_which_classes_compete(mesh, mask, masks):
    stream = toy.make_stream()
    recipe = dataclasses.replace(toy.RECIPE, class_mask=mask)
    trainer, _ = Trainer.create(
        toy.METHODS["linear"], toy.make_vit(), stream, recipe, mesh=mesh, key=jr.key(0)
    )
    assert tuple(int(trainer.task(stream, n).competing.sum()) for n in range(3)) == masks


OFTEN = ("linear",)
MASKED = [name for name, method in toy.EVERY.items() if method.loss is not None]


@pytest.mark.parametrize("name", toy.slow_except(OFTEN, MASKED))
def test_every_method_with_a_loss_heeds_the_class_mask(name):
    method = toy.EVERY[name]
    model, state = method.init(toy.make_vit(), toy.make_stream(), key=jr.key(0))
    raw = toy.make_batch(np.random.default_rng(0), 48)
    batch = toy.prepared(raw, method, model, stored_logits=jnp.zeros((48, toy.CLASSES)))
    own = toy.make_task()
    every = dataclasses.replace(own, competing=jnp.ones(toy.CLASSES, bool))
    loss = eqx.filter_jit(method.loss)
    losses = [float(loss(model, state, batch, task, key=jr.key(0))[0]) for task in (own, every)]
    assert losses[1] > losses[0] + 0.1


@pytest.mark.slow
def test_tasks_of_one_class_are_named_and_their_accuracy_is_not_logged(tiny, tmp_path, caplog):
    argv = ["train", "linear", *tiny.flags(tasks=6), "--epochs", "10", "--learning-rate", "0.5"]
    # Ten steps in each task: every tenth one is logged.
    assert main([*argv, "--run", str(tmp_path / "task")]) == 0
    (line,) = [line for line in caplog.messages if "warning" in line]
    assert "in 6 of 6 tasks only one class competes" in line
    for remedy in ("--class-mask seen", "--buffer-size", "ncm", "ranpac"):
        assert remedy in line
    assert "train/accuracy" not in tags(tmp_path / "task")
    caplog.clear()
    assert main([*argv, "--class-mask", "seen", "--run", str(tmp_path / "seen")]) == 0
    (line,) = [line for line in caplog.messages if "warning" in line]
    assert "in 1 of 6 tasks" in line
    assert "train/accuracy" in tags(tmp_path / "seen")
    caplog.clear()
    assert main([*argv, "--class-mask", "none", "--run", str(tmp_path / "none")]) == 0
    assert not [line for line in caplog.messages if "warning" in line]


def tags(folder):
    """The text of the names in the event files of a run."""
    files = (folder / "tensorboard").iterdir()
    return b"".join(file.read_bytes() for file in files).decode(errors="ignore")
