"""The presets of the papers, each run to its end on small archives of the published layout."""

import json
from functools import partial

import archives
import jax
import pytest

from promptax.cli import main
from promptax.methods.registry import method_name
from promptax.runs.inputs import Data
from promptax.runs.presets import PAPER_PRESETS, PRESETS, PUBLISHED, default_for, preset

SETS = {
    "cifar10": partial(archives.cifar, each=1),
    "cifar100": partial(archives.cifar, classes=100, each=3),
    "mnist": archives.idx,
    "fashion-mnist": archives.idx,
    "svhn": archives.svhn,
    "notmnist": archives.notmnist,
    "core50": archives.core50,
    "imagenet-r": archives.imagenet_r,
    "domainnet": archives.domainnet,
}
# The tiny ViT takes 32x32 images; vote groups have to divide the batch.
SMALL = ["--images.size", "32", "--images.resize", "36", "--epochs", "1", "--eval.batch-size", "16"]
RUNS = {
    "cifar100-l2p": ["--batch-size", "16"],
    "cifar100-gaussian-l2p": ["--batch-size", "16", "--data.tasks", "4", "--eval.every", "3"],
    "five-datasets-l2p": ["--batch-size", "16"],
    "core50-l2p": ["--batch-size", "16", "--data.first", "3"],
    "cifar100-dualprompt": ["--batch-size", "24", "--eval.vote-group", "8"],
    "imagenet-r-dualprompt": ["--batch-size", "8", "--data.tasks", "3"],
    "l2p-v1": ["--batch-size", "16", "--data.first", "2"],
    "core50-sprompts": ["--batch-size", "16", "--data.first", "3"],
    **{
        f"{stream}-{method}": ["--batch-size", "8", *first, *own]
        for stream, first in (
            ("cifar100", ["--data.first", "2"]),
            ("imagenet-r", ["--data.tasks", "3"]),
        )
        for method, own in (
            # 100 components do not fit the width of the tiny ViT.
            ("coda", ["--components", "10"]),
            ("hide", ["--align-epochs", "1"]),
            ("slca", ["--align-epochs", "1"]),
            ("ncm", []),
            ("ranpac", ["--width", "100"]),
        )
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder in which every set of the papers is prepared."""
    place = tmp_path_factory.mktemp("data")
    for name, make in SETS.items():
        made = place / "made" / name
        made.mkdir(parents=True)
        make(made)
        arguments = [name, str(made), "--data-dir", str(place / "sets"), "--size", "16"]
        assert main(["data", "prepare", *arguments]) == 0
    return place / "sets"


def test_there_is_a_run_and_a_published_result_for_each():
    assert set(RUNS) == set(PAPER_PRESETS) == set(PUBLISHED)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_preset_runs_on_archives_as_published(name, folder, tiny, tmp_path, capsys):
    # Presets that differ in numbers only would share their compiled steps.
    jax.clear_caches()
    run = tmp_path / "run"
    where = ["--data-dir", str(folder), "--weights", str(tiny.weights), "--run", str(run)]
    code = main(["train", "--preset", name, *where, *SMALL, *RUNS[name]])
    assert code == 0, capsys.readouterr().err
    result = json.loads((run / "result.json").read_text())
    stages = len(result["accuracy_matrix"])
    steps = 1 if PAPER_PRESETS[name].method.loss is not None else 0
    assert (result["tasks_done"], result["compiles"].get("train", 0)) == (stages, steps)
    assert 0 <= result["average_accuracy"] <= 1
    assert result["config"]["method"]["name"] == PAPER_PRESETS[name].to_json()["method"]["name"]
    # A moved data folder is no other run; nothing is left to train.
    folder.rename(folder.with_name("moved"))
    try:
        moved = [str(folder.with_name("moved")) if word == str(folder) else word for word in where]
        again = ["train", "--preset", name, *moved, *SMALL, *RUNS[name], "--resume"]
        assert main(again) == 0, capsys.readouterr().err
    finally:
        folder.with_name("moved").rename(folder)


@pytest.mark.parametrize(
    ("stream", "tasks", "classes", "tests"),
    [
        ("split-cifar100", 10, 100, 10),
        ("split-cifar10", 5, 10, 5),
        ("five-datasets", 5, 50, 5),
        ("core50", 8, 50, 1),
        ("domainnet", 6, 2, 6),
    ],
)
def test_a_stream_of_the_papers_has_its_published_shape(folder, stream, tasks, classes, tests):
    cut = Data(stream, dir=folder).load()
    assert (len(cut.tasks), cut.num_classes, len(cut.test_sets)) == (tasks, classes, tests)


def test_a_set_of_your_own_is_a_stream_by_its_name(folder, tiny, tmp_path, capsys):
    flowers = tmp_path / "flowers"
    archives.image_folder(flowers)
    place = ["--data-dir", str(folder)]
    assert main(["data", "prepare", "flowers", str(flowers), "--format", "folder", *place]) == 0
    run = ["train", "linear", "--data.stream", "flowers", *place, "--run", str(tmp_path / "run")]
    run += ["--weights", str(tiny.weights), "--batch-size", "8"]
    assert main(run) == 2
    assert "--data.tasks N" in capsys.readouterr().err
    assert main([*run, "--data.tasks", "2"]) == 0, capsys.readouterr().err


def test_every_preset_names_its_method_and_a_method_without_one_takes_the_papers_recipe():
    for name in PAPER_PRESETS:
        assert preset(name) is PRESETS[name]
    assert default_for("l2p", "split-cifar100") is PRESETS["cifar100-l2p"]
    other = default_for("finetune", "split-imagenet-r")
    assert method_name(other.method) == "finetune"
    assert other.backbone.weights == "ViT-B_16.npz"
    assert other.recipe.images.size == 224
    assert default_for("l2p", "flowers").recipe.images.size == 32
