"""The presets of the papers, each run to its end on small archives of the published layout."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import archives
import jax
import pytest

from promptax.cli import main
from promptax.methods.registry import method_name
from promptax.nn.weights.cache import own_path
from promptax.nn.weights.catalogue import CATALOGUE
from promptax.runs.experiment import Experiment
from promptax.runs.inputs import Backbone, Data
from promptax.runs.presets import (
    FIGURES,
    PAPER_PRESETS,
    PRESETS,
    PUBLISHED,
    default_for,
    departures,
    preset,
    with_defaults,
)

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
            ("hide", ["--align-epochs", "1", "--identity-epochs", "1", "--contrast-rows", "4"]),
            ("slca", ["--align-epochs", "1"]),
            ("sldc", ["--align-epochs", "1", "--align-samples", "64"]),
            ("ncm", []),
            ("ranpac", ["--width", "100"]),
        )
    },
}
# On CIFAR-100 it trains adapters first, which are wider than the tiny ViT.
RUNS["cifar100-ranpac"] += ["--adapter-width", "8"]


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


def test_there_is_a_run_for_each_preset_and_none_has_figures_of_other_weights():
    assert set(RUNS) == set(PAPER_PRESETS)
    assert set(PUBLISHED) <= set(PAPER_PRESETS)
    for name, figure in PUBLISHED.items():
        weights = PAPER_PRESETS[name].backbone.weights
        assert figure.weights == weights
        assert weights in CATALOGUE
    assert not any("memory" in figure.source for figure in FIGURES)


ALWAYS = {
    "backbone.weights",
    "recipe.images.size",
    "recipe.schedule.batch_size",
    "recipe.schedule.epochs",
}
ALWAYS_IN_TRAINING = {"rate", "recipe.optimizer.name", "recipe.optimizer.schedule"}
"""Settings whose sources the table has even where a preset leaves them at their defaults."""
ELSEWHERE = ("data.stream", "recipe.optimizer.learning_rate", "recipe.evaluation")
"""Settings that are the name of a preset, given as `rate`, or not those of authors."""


def chosen(preset):
    """The settings of a preset that are not the defaults of their kind."""
    default = flat(Experiment(with_defaults(method_name(preset.method))).to_json())
    return {
        setting
        for setting, value in flat(preset.to_json()).items()
        if value != default[setting] and not setting.startswith(ELSEWHERE)
    }


def flat(settings, prefix=""):
    """Nested settings by their paths."""
    if not isinstance(settings, dict):
        return {prefix.removesuffix("."): settings}
    parts = [flat(value, f"{prefix}{name}.") for name, value in settings.items()]
    return {path: value for part in parts for path, value in part.items()}


@pytest.fixture(scope="module")
def script():
    """`scripts/sources.py`."""
    folder = Path(__file__).parents[1] / "scripts"
    sys.path.append(str(folder))  # it imports another script
    spec = importlib.util.spec_from_file_location("sources_script", folder / "sources.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["sources_script"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", PAPER_PRESETS)
def test_a_preset_has_the_values_of_the_table_and_every_choice_has_a_source(script, name):
    preset = PAPER_PRESETS[name]
    values = {value.setting: value.value for value in script.Sources.read().values[name]}
    for setting, value in values.items():
        found = script.setting_of(preset, setting)
        assert found == (pytest.approx(value) if isinstance(value, float) else value), setting
    assert chosen(preset) <= set(values)
    always = ALWAYS if preset.method.loss is None else {*ALWAYS, *ALWAYS_IN_TRAINING}
    weights = {f"method.{field}" for field in script.LOSS_WEIGHTS if hasattr(preset.method, field)}
    assert always | weights <= set(values)


def test_the_table_in_the_readme_of_the_presets_is_up_to_date(script):
    assert script.README.read_text() == script.readme(script.Sources.read())


GIVEN_WEIGHTS = {
    # Weights, normalisation of the images, and words of the warnings that are given.
    "the same tag": ("vit_base_patch16_224.orig_in21k", "unit", ()),
    "the published file": ("weights/ViT-B_16.npz", "unit", ()),
    "another tag": (
        "vit_base_patch16_224.augreg_in21k",
        "unit",
        ("has 'vit_base_patch16_224.augreg",),
    ),
    "another file": ("other.npz", "unit", ("'vit_base_patch16_224.orig_in21k' (ImageNet-21k)",)),
    "another normalisation": (
        "vit_base_patch16_224.dino",
        "unit",
        ("has 'vit_base_patch16_224.dino'", "add --images.normalisation imagenet."),
    ),
    "the right normalisation": (
        "vit_base_patch16_224.dino",
        "imagenet",
        ("has 'vit_base_patch16_224.dino'",),
    ),
}


@pytest.mark.parametrize(("weights", "normalisation", "words"), GIVEN_WEIGHTS.values())
def test_weights_that_a_preset_does_not_name_are_warned_of(weights, normalisation, words):
    start = PAPER_PRESETS["cifar100-l2p"]
    images = replace(start.recipe.images, normalisation=normalisation)
    recipe = replace(start.recipe, images=images)
    run = replace(start, backbone=Backbone(weights), recipe=recipe)
    warnings = list(departures(start, run))
    assert len(warnings) == len(words)
    for warning, word in zip(warnings, words, strict=True):
        assert word in warning
    # What comes with the package is no paper's, and takes any weights.
    bundled = PRESETS["split-glyphs-l2p"]
    assert not list(departures(bundled, replace(bundled, backbone=Backbone(weights))))


def test_a_downloaded_checkpoint_is_known_by_its_place(monkeypatch, tmp_path):
    monkeypatch.setenv("PROMPTAX_WEIGHTS", str(tmp_path))
    start = PAPER_PRESETS["cifar100-slca"]
    path = own_path(CATALOGUE[start.backbone.weights])
    run = replace(start, backbone=Backbone(str(path)))
    assert len(list(departures(start, run))) == 1
    path.parent.mkdir(parents=True)
    path.touch()
    assert not list(departures(start, run))


def test_a_line_that_authors_do_not_have_is_found(script, tmp_path):
    clone = tmp_path / "they" / "theirs"
    clone.mkdir(parents=True)
    git = lambda *words: subprocess.run(["git", *words], cwd=clone, check=True, capture_output=True)
    (clone / "config.py").write_text("rate = 1\nepochs = 5\n")
    git("init")
    git("add", ".")
    git("-c", "user.name=they", "-c", "user.email=they@example.org", "commit", "-m", "first")
    made = partial(
        script.Value,
        value=5,
        repository="they/theirs",
        commit="HEAD",
        file="config.py",
        quote="epochs = 5",
        note="",
    )
    values = [made(setting="right", line=2), made(setting="wrong", line=1)]
    (problem,) = script.missing_lines(script.Sources({"preset": values}, {}), tmp_path)
    assert problem.startswith("preset: wrong: ")
    assert problem.endswith("is 'rate = 1'")


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_preset_runs_on_archives_as_published(name, folder, tiny, tmp_path, capsys):
    # Presets that differ in numbers only would share their compiled steps.
    jax.clear_caches()
    run = tmp_path / "run"
    where = ["--data-dir", str(folder), "--weights", str(tiny.weights), "--run", str(run)]
    code = main(["train", "--preset", name, *where, *SMALL, *RUNS[name]])
    err = capsys.readouterr().err
    assert code == 0, err
    assert f"promptax: warning: the preset {name} is for the weights" in err
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
    assert other.backbone.weights == "vit_base_patch16_224.orig_in21k"
    assert other.recipe.images.size == 224
    assert default_for("l2p", "flowers").recipe.images.size == 32
