"""The command line: what it answers, and one or two lines and exit code 2 for whatever is wrong."""

import functools
import hashlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import toy
import yaml

from promptax.cli import COMMANDS, completion, main
from promptax.cli.data import COMMANDS as DATA_COMMANDS
from promptax.cli.train import _parse_flags, _start
from promptax.cli.void import RULES, refuse_void
from promptax.methods.registry import builtin_methods
from promptax.runs.config import _Loader
from promptax.runs.presets import PRESETS


def contents(folder):
    """All files below a folder, and what is in them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny, trained):
    """A working directory with a finished run, and all that can be wrong with files."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(trained, folder / "done")
    make_weights(folder, dict(np.load(tiny.weights)))
    make_data(folder, dict(np.load(tiny.train)))
    make_runs(folder)
    (folder / "file").write_text("not a folder")
    for seed in range(2):
        shutil.copytree(trained, folder / "seeds" / f"seed-{seed}")
    (folder / "notes").mkdir()
    (folder / "notes" / "thesis.txt").write_text("dear to somebody")
    return folder


def make_weights(folder, good):
    position = good["Transformer/posembed_input/pos_embedding"]
    last = "Transformer/encoderblock_4/LayerNorm_0/bias"
    for name, change in {
        "lacking": {last: None},
        "extra": {"Transformer/encoderblock_0/Adapter/kernel": np.ones(3)},
        "narrow": {last: np.zeros(31, np.float32)},
        "nan": {"cls": np.full_like(good["cls"], np.nan)},
        "integer": {last: np.zeros(32, int)},
        "oblong": {"Transformer/posembed_input/pos_embedding": position[:, :16]},
        "rgba": {"embedding/kernel": np.zeros((8, 8, 4, 32), np.float32)},
        "flat": {"embedding/kernel": np.zeros((192, 32), np.float32)},
        "resnet": dict.fromkeys(good) | {"conv1/kernel": np.ones((3, 3))},
    }.items():
        leaves = {leaf: value for leaf, value in (good | change).items() if value is not None}
        np.savez(folder / f"w-{name}.npz", **leaves)
    whole = (folder / "w-extra.npz").read_bytes()
    (folder / "w-half.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "w-text.npz").write_text("<html>404</html>")
    (folder / "w-empty.npz").touch()
    np.save(folder / "w-array.npz.npy", np.ones(3))


def make_data(folder, good):
    images, labels = good["images"], good["labels"]
    for name, change in {
        "float": {"images": images / 255},
        "channels": {"images": np.stack([images] * 2, -1)},
        "deep": {"images": images[..., None, None]},
        "fractions": {"labels": labels + 0.5},
        "short": {"labels": labels[1:]},
        "pairs": {"labels": np.stack([labels] * 2, 1)},
        "negative": {"labels": labels - 1},
        "from-one": {"labels": labels + 1},
        "huge": {"labels": labels * 10**9},
        "few": {"images": images[labels < 4], "labels": labels[labels < 4]},
        "none": {"images": images[:0], "labels": labels[:0]},
        "renamed": {"labels": None, "targets": labels},
    }.items():
        arrays = {key: value for key, value in (good | change).items() if value is not None}
        np.savez(folder / f"d-{name}.npz", **arrays)
    whole = (folder / "d-few.npz").read_bytes()
    (folder / "d-half.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "d-text.npz").write_text("label,pixel0")
    np.savez(folder / "d-pickle.npz", images=np.array([{}], object), labels=labels)


def make_runs(folder):
    good = json.loads((folder / "done" / "config.json").read_text())
    schedule = {**good["recipe"]["schedule"], "epochs": 0}
    for name, config in {
        "text": "once upon a time",
        "list": [],
        "empty": {},
        "newer": {**good, "schema": 99},
        "method": {**good, "method": {"name": "ewk"}},
        "nameless": {**good, "method": "l2p"},
        "field": {**good, "data": {**good["data"], "colour": "red"}},
        "type": {**good, "seed": "many"},
        "range": {**good, "recipe": {**good["recipe"], "schedule": schedule}},
        "begun": good,
    }.items():
        (folder / f"r-{name}").mkdir()
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / f"r-{name}" / "config.json").write_text(text)
    for name, text in {"cut": '{"schema": 1, "met', "list": "[]", "hollow": "{}"}.items():
        shutil.copytree(folder / "done", folder / f"result-{name}")
        (folder / f"result-{name}" / "result.json").write_text(text)
    damaged = shutil.copytree(folder / "done", folder / "checkpoint-cut") / "checkpoints"
    for file in [file for file in damaged.rglob("*") if file.is_file()]:
        file.write_bytes(file.read_bytes()[:10])


# Each row: arguments, and words of the answer. OWN stands for a working run on tiny files, and
# DATA for that without its data.
ROWS = {
    "commands": {
        "trian linear": "'trian' 'train'",
        "--verbose": "command '--verbose'",
        "train l2q": "method 'l2q' 'l2p'",
        "train joint": "joint property of the stream train linear --data.joint",
        "train joint --preset cifar100-l2p": "joint property of the stream --data.joint",
        "train prompt": "method 'prompt' l2p dualprompt finetune linear",
        "train --learning-rate 1": "which method l2p --preset",
        "train --preset split-fashion-mnist-l2q": "'split-fashion-mnist-l2p'",
        "train --preset": "--preset needs a value",
        "train linear --preset zzz": "preset 'zzz' Known",
        "train linear --learning-rat 1": "--learning-rat --learning-rate",
        "train linear --epoch 3": "--epoch --epochs",
        "train linear --pool-size 3": "--pool-size --help",
        "train linear more": "more",
        "train linear --epochs": "--epochs",
        "train linear --epochs two": "--epochs two",
        "train linear --epochs 1.5": "--epochs 1.5",
        "train linear --optimizer adan": "adan adam",
        "train linear --dtype float16": "float16 bfloat16",
        "train l2p --readout tokens": "tokens token",
        "presets --all": "--all",
        "evaluate": "Missing RUN Folder of the run",
        "report": "run",
        "report --format html done": "html markdown",
    },
    "numbers": {
        "train linear OWN --learning-rate -0.1": "learning rate -0.1",
        "train linear OWN --learning-rate nan": "learning rate nan",
        "train linear OWN --learning-rate inf": "learning rate inf finite",
        "train linear OWN --epochs 0": "epochs 0 at least 1",
        "train linear OWN --epochs -3": "epochs -3",
        "train linear OWN --batch-size 0": "batch size 0",
        "train linear OWN --warmup 2": "warm-up 2",
        "train linear OWN --momentum 1": "momentum 1",
        "train linear OWN --weight-decay -1": "weight decay -1",
        "train linear OWN --weight-decay inf": "weight decay inf",
        "train linear OWN --clip-norm 0": "clip norm 0",
        "train linear OWN --clip-norm inf": "clip norm inf",
        "train linear OWN --images.size 0": "image size 0",
        "train linear OWN --images.resize 8": "resize 8 32",
        "train linear OWN --images.crop-area 0 1": "crop area 0",
        "train linear OWN --images.crop-area 0.9 0.1": "crop area 0.9 0.1",
        "train linear OWN --images.crop-aspect 1 inf": "crop aspect inf",
        "train linear OWN --eval.batch-size 0": "evaluation batch size 0",
        "train linear OWN --seeds 0 0": "seeds (0, 0) different",
        "train linear OWN --seeds -1": "seeds (-1,)",
        "train linear OWN --seed 5000000000": "seeds 5000000000",
    },
    "methods": {
        "train l2p OWN --pool-size 2": "top-k 4 pool of 2",
        "train l2p OWN --pool-size 0": "0 prompts at least 1",
        "train l2p OWN --top-k 0": "top-k 0",
        "train l2p OWN --prompt-length 0": "length 0",
        "train l2p OWN --layers 9": "9 blocks 0 to 5",
        "train l2p OWN --layers -1": "-1 blocks 0 to 5",
        "train l2p OWN --layers 0 0": "(0, 0) twice",
        "train l2p OWN --layers": "no block is given at least one",
        "train coda OWN --layers": "no block is given at least one",
        "train hide OWN --layers": "no block is given at least one",
        "train dualprompt OWN --g-layers --e-layers": "neither --e-layers --g-layers",
        "train l2p OWN --vote-group 3": "vote group of 3 does not divide batch of 8",
        "train l2p OWN --vote-group 0": "vote group 0",
        "train l2p OWN --pull nan": "pull nan",
        "train l2p OWN --vote-group 4 --position after_cls --layers 1": "class token block 0",
        "train dualprompt OWN --e-layers 2 6": "(2, 6) blocks 0 to 5",
        "train dualprompt OWN --g-layers 7": "(7,) blocks 0 to 5",
        "train dualprompt OWN --e-length -1": "length -1",
        "train dualprompt OWN --pool-size 1 --top-k 2": "top-k 2 pool of 1",
        "train dualprompt OWN --readout prompt": "read-out 'prompt' prompt tokens",
        "train coda OWN": "50 components width 32 at most 32",
        "train coda OWN --components 2": "2 components 3 tasks at least 3",
        "train coda OWN --components 8 --layers 9": "(9,) blocks 0 to 5",
        "train coda OWN --components 8 --layers 1 1": "(1, 1) twice",
        "train coda OWN --components 8 --length 3": "length 3 even",
        "train coda OWN --components 8 --orthogonality nan": "orthogonality nan",
        "train coda DATA --weights random --backbone resnet-18-small": "ViT ResNet",
        "train sprompts OWN --length 0": "length 0",
        "train sprompts OWN --clusters 0": "clusters 0",
        "train sprompts OWN --sample -1": "sample -1",
        "train sprompts DATA --weights random --backbone resnet-18-small": "ViT ResNet",
        "train hide OWN --layers 2 6": "(2, 6) blocks 0 to 5",
        "train hide OWN --ensemble 1.5": "ensemble 1.5",
        "train hide OWN --contrast -1": "contrast -1",
        "train hide OWN --temperature 0": "temperature 0",
        "train hide OWN --head-rate inf": "head rate inf",
        "train hide DATA --weights random --backbone resnet-18-small": "ViT ResNet",
        "train linear OWN --batch-size 12": "batch size 12 8 devices",
        "train l2p OWN --vote-group 4 --eval.vote-group 5": "vote group 5 16",
        "train l2p OWN --vote-group 4 --eval.vote-group 0": "vote group 0",
        "train l2p OWN --vote-group 4 --eval.vote-group 4 --eval.batch-size 12": "12 8 devices",
        "train linear OWN --eval.vote-group 4": "LinearProbe no prompt pool vote",
    },
    "weights": {
        "train linear DATA --weights none.npz": "'none.npz' not found glyph-vit",
        "train linear DATA --weights glyph-vitt": "'glyph-vitt' not found glyph-vit",
        "train linear DATA --weights notes": "'notes' is a folder",
        "train linear DATA --weights w-half.npz": "w-half.npz cannot be read cut off?",
        "train linear DATA --weights w-text.npz": "w-text.npz cannot be read",
        "train linear DATA --weights w-empty.npz": "w-empty.npz cannot be read",
        "train linear DATA --weights w-array.npz.npy": "w-array.npz.npy cannot be read",
        "train linear DATA --weights w-resnet.npz": "w-resnet.npz embedding/kernel missing ViT",
        "train linear DATA --weights w-lacking.npz": "encoderblock_4/LayerNorm_0/bias missing",
        "train linear DATA --weights w-extra.npz": "encoderblock_0/Adapter/kernel not part",
        "train linear DATA --weights w-narrow.npz": "encoderblock_4/LayerNorm_0/bias (32,) (31,)",
        "train linear DATA --weights w-flat.npz": "embedding/kernel 4 axes (192, 32)",
        "train linear DATA --weights w-nan.npz": "'cls' not finite",
        "train linear DATA --weights w-integer.npz": "LayerNorm_0/bias floats int64",
        "train linear DATA --weights w-oblong.npz": "pos_embedding square 16",
        "train linear DATA --weights w-rgba.npz": "(32, 32, 4) (32, 32, 3)",
        "train linear DATA --weights random": "random vit-b/16",
        "train linear DATA --weights random --vit vit-b/17": "'vit-b/17' 'vit-b/16'",
        "train linear OWN --images.size 4": "4 patch 8",
    },
    "data": {
        "train linear --data.stream split-fashion-minst": "'split-fashion-mnist'",
        "train linear --data.class-order 0 1 2 3 4 5 6 7 8": "class 9 0 tasks",
        "train linear --data.class-order 0 1 2 3 4 5 6 7 8 9 9": "class 9 2 tasks",
        "train linear OWN --data.class-order 0 1 2 3 4 6": "class 5 0 tasks",
        "train linear OWN --data.class-order 5 4 3 2 1 0 6": "class 6 does not exist",
        "train linear OWN --data.class-order 5 4 3 2 1 0 --data.shuffle-classes": "order seed",
        "train linear OWN --data.class-seed 1993": "class-seed shuffle-classes",
        "train linear OWN --data.shuffle-like coda": "shuffle-like shuffle-classes",
        "train linear OWN --data.shuffle-classes --data.class-seed -1": "-1 at least 0",
        "train linear OWN --data.tasks 7": "6 classes 7 tasks",
        "train linear OWN --data.tasks 0": "0 tasks",
        "train linear OWN --data.tasks None": "how many tasks",
        "train linear OWN --data.test None": "training file test file",
        "train linear OWN --data.train none.npz": "'none.npz' not found",
        "train linear OWN --data.train notes": "'notes' is a folder",
        "train linear OWN --data.test d-half.npz": "d-half.npz cannot be read",
        "train linear OWN --data.train d-text.npz": "d-text.npz cannot be read",
        "train linear OWN --data.train d-pickle.npz": "d-pickle.npz cannot be read",
        "train linear OWN --data.train d-renamed.npz": "`images` `labels` targets",
        "train linear OWN --data.train d-float.npz": "d-float.npz uint8 float64",
        "train linear OWN --data.train d-channels.npz": "1 or 3 channels 2",
        "train linear OWN --data.train d-deep.npz": "height, width (48, 16, 16, 1, 1)",
        "train linear OWN --data.train d-fractions.npz": "integers float64",
        "train linear OWN --data.train d-short.npz": "48 integers (47,)",
        "train linear OWN --data.train d-pairs.npz": "48 integers (48, 2)",
        "train linear OWN --data.train d-negative.npz": "from 0 -1",
        "train linear OWN --data.train d-from-one.npz": "class 0 of 7 without gaps",
        "train linear OWN --data.train d-huge.npz": "from 0 5000000000",
        "train linear OWN --data.train d-few.npz": "class 4 of 6 no training example",
        "train linear OWN --data.test d-few.npz": "'task 3' no test example",
        "train linear OWN --data.train d-none.npz": "d-none.npz no images",
        "train linear --data.stream glyph-domains --data.class-order 1 0": "an order of classes",
    },
    "void flags": {
        "train linear OWN --momentum 0.5": "--momentum no effect --optimizer sgd",
        "train linear OWN --nesterov": "--nesterov no effect --optimizer sgd",
        "train linear OWN --weight-decay 0.1": "--weight-decay no effect --optimizer adam adamw",
        "train linear OWN --step-at 0.5": "--step-at no effect --schedule step",
        "train linear OWN --step_at=0.5": "--step-at no effect --schedule step",
        "train linear OWN --schedule-floor 0.5": "--schedule-floor no effect --schedule cosine",
        "train linear OWN --cache-queries --images.flip": "--cache-queries --images.no-flip",
        "train linear OWN --images.crop-aspect 1 1": "--images.crop-aspect --images.crop-area",
        "train linear OWN --images.augment.magnitude 3": "augment.magnitude augment.operations",
        "train linear OWN --images.augment.erase-area 0.1 0.2": "augment.erase-area augment.erase",
        "train linear OWN --images.augment.mix-probability 0.5": "mix-probability mixup cutmix",
        "train linear OWN --replay-batch 4": "--replay-batch no effect --buffer-size",
        "train linear OWN --buffer-kind ring": "--buffer-kind no effect --buffer-size",
        "train l2p OWN --buffer-per-class": "--buffer-per-class no effect --buffer-size",
        "train ncm OWN --class-mask seen": "--class-mask no training loss",
        "train finetune OWN --no-train-backbone --backbone-rate 1": "--backbone-rate frozen",
        "train er OWN --no-train-backbone --backbone-rate 1": "--backbone-rate frozen",
        "train slca OWN --align-epochs 0 --align-rate 1": "--align-rate --align-epochs",
        "train hide OWN --contrast 0 --temperature 1": "--temperature --contrast",
        "train l2p OWN --no-learned-keys --transfer-keys": "--transfer-keys --learned-keys",
        "train dualprompt OWN --g-layers --g-length 3": "--g-length no effect --g-layers",
        "train dualprompt OWN --e-layers --top-k 2": "--top-k no effect --e-layers",
        "train dualprompt OWN --e-layers --eval.vote-group 4": "no prompt pool",
        "train linear OWN --data.stream split-glyphs": "--data.stream --data.train",
        "train linear OWN --data-dir notes": "--data-dir --data.train",
        "train linear --data.stream core50 --data.sets a b": "--data.stream --data.sets",
        "train linear OWN --data.sets a b": "--data.sets your own files",
        "train linear OWN --data.domains sun": "kind 'classes' 'domains'",
        "train linear OWN --data.tasks 3 --data.task-sizes 2 4": "--data.tasks --data.task-sizes",
        "train linear OWN --data.joint --data.reverse": "--data.reverse --data.joint",
        "train linear OWN --backbone vit-b/16": "--backbone vit-b/16 --weights random",
        "train linear DATA --weights random --vit resnet-18-small --blocks scan": "--blocks ResNet",
        "train linear DATA --weights random --vit resnet-18 --remat projections": "--remat ResNet",
        "train linear OWN --distributed.timeout 9": "--distributed.timeout no effect --distributed",
    },
    "run folders": {
        "train linear OWN --run file": "'file' cannot be written",
        "train linear OWN --run file/below": "'file/below' cannot be written directory",
        f"train linear OWN --run {'x' * 300}": "cannot be written name too long",
        "train linear OWN --run notes": "'notes' not empty not a run",
        "train linear OWN --run notes --overwrite": "'notes' not empty not a run",
        "train linear OWN --run notes --resume": "'notes' not empty not a run",
        "train linear OWN --run done": "'done' exists --resume --overwrite",
        "train linear OWN --run done --resume --overwrite": "one of --resume --overwrite",
        "train linear OWN --run done --resume --learning-rate 0.5": "learning_rate was now 0.5",
        "train linear OWN --run done --resume --seed 1": "seed was 0, now 1",
        "train linear OWN --run done --resume --data.joint": "data.joint False now True",
        "train finetune OWN --run done --resume": "method.name linear finetune",
        "train linear OWN --run r-text --resume": "config.json damaged",
        "train linear OWN --run r-list --resume": "config.json damaged",
    },
    "evaluate": {
        "evaluate none": "'none' not a run folder config.json",
        "evaluate notes": "'notes' not a run folder",
        "evaluate file": "'file' not a run folder",
        "evaluate r-text": "config.json damaged",
        "evaluate r-list": "config.json damaged schema",
        "evaluate r-empty": "config.json damaged schema",
        "evaluate r-newer": "schema 99 3",
        "evaluate r-method": "ewk",
        "evaluate r-nameless": "config cannot be read",
        "evaluate r-field": "colour",
        "evaluate r-type": "config cannot be read",
        "evaluate r-range": "epochs",
        "evaluate r-begun": "'r-begun' first task --resume",
        "evaluate done --eval.vote-group 4": "no prompt pool",
        "evaluate done --eval.batch-size 0": "evaluation batch size 0",
        "evaluate done --eval.classes some": "some seen all",
    },
    "report and predict": {
        "report none": "'none'",
        "report notes": "no run in 'notes'",
        "report r-begun": "result.json does not exist first task",
        "report r-begun done": "result.json does not exist first task",
        "report result-cut": "result.json damaged",
        "report result-list": "result.json damaged",
        "report result-hollow": "result.json damaged",
        "report done --figure file/figure.png": "file/figure.png cannot be written",
        "predict done": "image",
        "predict done none.png": "'none.png' not found",
        "predict done file": "'file' cannot be read",
        "predict notes file": "'notes' not a run folder",
        "predict done file --top 0": "top 0 at least 1",
    },
}


@pytest.mark.parametrize(
    ("line", "words"),
    [pytest.param(*row, id=row[0][:60]) for part in ROWS.values() for row in part.items()],
)
def test_bad_input_is_answered_in_a_line_or_two(line, words, place, tiny, monkeypatch, capsys):
    monkeypatch.chdir(place)
    own = " ".join(tiny.flags())
    data = own.partition("--data.train")
    line = line.replace("OWN", own).replace("DATA", data[1] + data[2])
    before = contents(place)
    code = main(line.split())
    out, err = capsys.readouterr()
    assert code == 2, err
    assert err.startswith("promptax: ")
    assert 1 <= err.count("\n") <= 3, err
    assert "Traceback" not in err
    assert len(err) < 600, err
    assert out == "" or "--figure" in line  # the table is good, whatever becomes of the figure
    assert [word for word in words.split() if word not in err] == [], err
    assert contents(place) == before


def answer(capsys, *argv):
    assert main(argv) == 0
    return capsys.readouterr().out


def test_help_lists_the_commands_and_methods(capsys):
    for argv in ((), ("--help",), ("-h",)):
        assert all(name in answer(capsys, *argv) for name in COMMANDS)
    for argv in (("train",), ("train", "--help")):
        assert all(name in answer(capsys, *argv) for name in builtin_methods())
    assert answer(capsys, "--version").startswith("promptax ")


@pytest.mark.parametrize(
    "argv", [(c,) for c in COMMANDS if c not in ("train", "data")] + [("train", "l2p")]
)
def test_help_of_a_command_says_what_its_flags_mean(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*argv, "--help"])
    assert not stop.value.code
    out = capsys.readouterr().out
    assert f"promptax {' '.join(argv)}" in out
    if argv == ("train", "l2p"):
        assert "Prompts in the pool (M)." in out
        assert "Delete the files of the run that is in the folder" in out


def test_help_shows_what_people_change_first_and_the_rest_on_demand(capsys):
    short, whole = (helped(capsys, "train", "l2p", flag) for flag in ("--help", "--help-all"))
    assert [short.index(flag) for flag in FIRST] == sorted(short.index(flag) for flag in FIRST)
    assert "--pool-size INT" in short
    assert "--images.augment.hue" not in short
    assert f"--help-all shows {whole.count(FLAG) - short.count(FLAG)} more options." in short
    names = [set(re.findall(r"^  --[\w.-]+", text, re.MULTILINE)) for text in (short, whole)]
    assert names[0] < names[1]
    for noise in ("None}", "{None", "(default: )", "(default: None)", "(default: False)"):
        assert noise not in whole


FIRST = ("--epochs", "--batch-size", "--learning-rate", "--data.stream", "--weights", "--pool-size")
FLAG = "\n  -"


def helped(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert not stop.value.code
    return capsys.readouterr().out


EVERY_COMMAND = (
    *((name,) for name in COMMANDS if name not in ("train", "data")),
    *(("data", name) for name in DATA_COMMANDS if name != "prepare"),
    ("data", "prepare", "cifar100"),
    *(("weights", name) for name in ("convert", "fetch", "inspect", "list")),
    ("train", "l2p"),
    ("train", "hide"),
)


@pytest.mark.parametrize("command", EVERY_COMMAND, ids=" ".join)
def test_no_help_speaks_of_types_or_of_none(command, capsys):
    text = helped(capsys, *command, "--help-all")
    for noise in (" STR ", "{None", "if None", "If None", "(required)", "(default: )"):
        assert noise not in text, noise
    assert not re.search(r"--[\w.-]+ PATH|^  PATH", text, re.MULTILINE)
    assert not re.search(r"^ +[\w,]+\}$", text, re.MULTILINE), "a choice without its flag"


def test_help_names_other_settings_by_their_flags(capsys):
    text = " ".join(helped(capsys, "train", "dualprompt", "--help-all").split())
    assert "with `--top-k` 1" in text
    assert "falls to a tenth at `--step-at`" in text
    assert "with `--images.keep-aspect`, length of its shorter side." in text
    assert "with `images` (uint8) and `labels`" in " ".join(
        helped(capsys, "train", "ewc", "--help").split()
    )


def test_a_switch_that_is_on_is_shown_by_how_it_is_switched_off(capsys):
    text = helped(capsys, "doctor", "--help")
    assert "[--no-numbers]" in text
    assert "--numbers" not in text.replace("--no-numbers", "")


def test_help_leaves_out_what_a_method_ignores(capsys):
    out = helped(capsys, "train", "ncm", "--help")
    assert "--metric {cosine,euclidean}" in out
    assert "--epochs" not in out
    assert "--learning-rate" not in out


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("train linear --lr 0.1", "--learning-rate"),
        ("train linear --bach-size 3", "--batch-size"),
        ("train linear --stream x", "--data.stream"),
        ("report done --fig x.png", "--figure"),
        ("weights inspct", "inspect"),
        ("wieghts", "'weights'"),
        ("data lst", "'list'"),
        ("evaluate dome", "'done'"),
        ("evaluate seeds", "It holds the runs 'seeds/seed-0', 'seeds/seed-1'."),
    ],
)
def test_the_nearest_name_is_suggested(line, meant, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert meant in err
    assert err.count("\n") == 1


def test_help_is_a_command_too(capsys):
    assert answer(capsys, "help") == answer(capsys, "--help")
    assert answer(capsys, "help", "train") == answer(capsys, "train", "--help")


def test_a_run_starts_from_a_config_file(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    flags = flags_of(["--config", "done/config.json", "--learning-rate", "0.5", "--run", "x"])
    ((experiment, path, _),) = flags.runs()
    stored = json.loads((place / "done" / "config.json").read_text())
    stored["recipe"]["optimizer"]["learning_rate"] = 0.5
    assert json.loads(json.dumps(experiment.to_json())) == stored
    assert path == Path("x")
    own = stored["method"]["name"]
    flags = flags_of([own, "--config", "done", "--learning-rate", "0.5"])
    assert flags.runs()[0][0] == experiment
    assert main(["train", "l2p", "--config", "done/config.json"]) == 2
    assert f"is for {own}, not for l2p" in capsys.readouterr().err
    assert main(["train", "--config", "none.json"]) == 2
    assert "'none.json' not found" in capsys.readouterr().err


def names_of(choice):
    """The names of the commands in a choice between them."""
    return {get_args(member)[1].name for member in get_args(choice)}


def test_the_completion_knows_every_command():
    assert names_of(completion.all_commands()) == {*COMMANDS}
    assert names_of(completion.data_commands()) == {*DATA_COMMANDS}


def test_a_shell_without_a_script_is_refused(capsys):
    """The script for tcsh would take another package."""
    assert main(["completion", "tcsh"]) == 2
    err = capsys.readouterr().err
    assert "tcsh" in err
    assert "bash" in err
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", "train data presets completion"),
        ("train ", "l2p coda sldc --preset"),
        ("train l2p --epo", "--epochs"),
        ("train l2p --learning-rate 0.1 --optimizer ", "adam adamw sgd"),
        ("train --preset cifar100-l", "cifar100-l2p"),
        ("data info --sam", "--sample"),
    ],
)
def test_bash_completes(words, found, capsys, tmp_path):
    script = tmp_path / "promptax"
    script.write_text(answer(capsys, "completion", "bash"))
    ask = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _tyro_promptax;'
    argv = ["bash", "-c", f'{ask} echo "${{COMPREPLY[@]}}"', "bash", str(script), "promptax"]
    done = subprocess.run([*argv, *words.split(" ")], capture_output=True, text=True, timeout=60)
    assert not {*found.split()} - {*done.stdout.split()}, done


YAML = """
method: {name: l2p, pool_size: 7}
data: {stream: split-glyphs}
recipe:
  optimizer: {learning_rate: 1e-3}
  schedule: {epochs: 2}
seed: 3
"""


def test_a_config_file_may_be_a_part_in_yaml(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(YAML)
    ((experiment, _, _),) = flags_of(["--config", "mine.yaml", "--top-k", "2"]).runs()
    preset = PRESETS["split-glyphs-l2p"]
    assert experiment.method == replace(preset.method, pool_size=7, top_k=2)
    assert experiment.recipe.optimizer == replace(preset.recipe.optimizer, learning_rate=1e-3)
    assert experiment.recipe.schedule == replace(preset.recipe.schedule, epochs=2)
    assert (experiment.data.stream, experiment.seed) == ("split-glyphs", 3)
    # What it prints starts the same run, and prints the same again.
    printed = answer(capsys, "train", "--config", "mine.yaml", "--top-k", "2", "--print-config")
    Path("whole.yml").write_text(printed)
    assert flags_of(["--config", "whole.yml"]).runs()[0][0] == experiment
    assert answer(capsys, "train", "--config", "whole.yml", "--print-config") == printed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("method: l2p\ndatta: {}", "unknown setting 'datta' mean 'data'"),
        ("method: {name: l2p, pool_sizes: 3}", "'pool_sizes' mean 'pool_size'"),
        ("method: l2p\nrecipe: {schedule: {epoch: 3}}", "'epoch' mean 'epochs'"),
        ("method: l22p", "unknown method 'l22p' mean 'l2p'"),
        ("method: l2p\nrecipe: {schedule: {epochs: 2.5}}", "2.5 not a whole number epochs"),
        ("method: l2p\nrecipe: {optimizer: {learning_rate: fast}}", "'fast' not a number"),
        ("method: l2p\nrecipe: {images: {flip: n}}", "'n' not true or false"),
        ("method: l2p\ndata: {stream: 3}", "3 not a text"),
        ("method: l2p\nrecipe: {optimizer: {name: adma}}", "'adma' mean 'adam'"),
        ("method: l2p\nrecipe: 3", "cannot be read"),
        ("method: l2p\nmethod: coda", "line 1 'method' given twice"),
        ("method: &a [*a]", "no valid YAML references"),
        ("method: [", "no valid YAML line"),
        ("", "`method: l2p`"),
        ("method: {pool_size: 3}", "`method` no name"),
        ("method: mine.py:Mine", "not part of promptax"),
        ("schema: 2\nmethod: l2p", "schema 2"),
        ("method: l2p\nearlier: [{stream: split-glyphs}]", "`earlier` --extend"),
        (
            "method: l2p\ndata: {stream: split-glyphs, sets: [a, b]}",
            "data.stream has no effect --data.sets names the data",
        ),
        (
            "method: l2p\ndata: {stream: split-glyphs, train: a.npz, test: b.npz}",
            "data.stream has no effect --data.train names the data",
        ),
        (
            "method: l2p\nrecipe: {optimizer: {name: adam, weight_decay: 0.1}}",
            "recipe.optimizer.weight_decay has no effect",
        ),
        ("method: l2p\ndata: {domains: real}", "'real' not a list domains"),
        ("method: l2p\nrecipe: {images: {crop_area: [0.5]}}", "[0.5] 2 values crop_area"),
    ],
)
def test_a_config_file_that_is_wrong_is_named_in_a_line(text, words, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert main(["train", "--config", str(path)]) == 2
    err = capsys.readouterr().err
    assert "mine.yaml" in err
    assert [word for word in words.split() if word not in err] == [], err
    assert err.count("\n") == 1


def test_several_seeds_are_not_lost_in_a_config(capsys):
    assert main(["train", "l2p", "--seeds", "1", "2", "--print-config"]) == 2
    assert "a config holds one seed, but --seeds gives 2" in capsys.readouterr().err


def test_the_names_of_a_large_mapping_are_checked_in_no_time():
    """To count each name among all of them took a minute for a file of 30,000."""
    text = functools.partial(yaml.ScalarNode, "tag:yaml.org,2002:str")
    pairs = [(text(f"name{n}"), text("1")) for n in range(30_000)]
    node = yaml.MappingNode("tag:yaml.org,2002:map", pairs)
    began = time.process_time()
    assert len(_Loader("").construct_mapping(node)) == len(pairs)
    assert time.process_time() - began < 3


@pytest.mark.parametrize("other", [["--preset", "split-glyphs-l2p"], ["--method", "coda"]])
def test_a_config_file_and_another_start_are_refused(other, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(YAML)
    assert main(["train", "--config", str(tmp_path / "mine.yaml"), *other]) == 2
    assert "--config" in capsys.readouterr().err


def test_every_preset_is_listed_in_lines_that_fit(capsys):
    text = answer(capsys, "presets")
    assert {*PRESETS} <= {*text.split()}
    assert max(map(len, text.splitlines())) <= 120
    papers = text.index("cifar100-l2p  ")
    assert papers < text.index("split-fashion-mnist-l2p  ")
    assert re.search(r"cifar100-l2p .* 83.83\n", text)


def test_what_is_shown_of_a_preset_starts_it(capsys, tmp_path):
    shown = answer(capsys, "presets", "cifar100-dualprompt")
    assert "# published accuracy: 86.51 %" in shown
    path = tmp_path / "preset.yaml"
    path.write_text(shown)
    ((experiment, _, _),) = flags_of(["--config", str(path)]).runs()
    assert experiment == PRESETS["cifar100-dualprompt"]
    assert main(["presets", "cifar100-l2q"]) == 2
    assert "did you mean 'cifar100-l2p'?" in capsys.readouterr().err


def python(code, **options):
    command = [sys.executable, *code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_help_imports_neither_jax_nor_numpy():
    code = "import sys, promptax.cli as c; c.main(['--help']); print(*sys.modules)"
    modules = python(["-c", code]).stdout.split("options of a command.")[1].split()
    assert "promptax.cli" in modules
    assert not {"jax", "numpy", "equinox", "tyro", "matplotlib"} & set(modules)


def test_the_module_is_the_command_and_says_nothing_but_its_own_line(place):
    done = python(["-m", "promptax", "evaluate", "checkpoint-cut"], cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    *aside, error = done.stderr.splitlines()
    assert [line.split(" is damaged")[0] for line in aside] == [
        f"checkpoint checkpoint-cut/checkpoints/{task}" for task in (3, 2)
    ]
    assert all(line.endswith("passed over.") for line in aside)
    assert error.startswith("promptax: all checkpoints at the end of a task in checkpoint-cut/")
    assert not list((place / "checkpoint-cut" / "checkpoints").glob("*.damaged"))


def test_a_reader_that_goes_away_is_no_error():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        command = [sys.executable, "-m", "promptax", "--help"]
        buffered = {name: value for name, value in os.environ.items() if "UNBUFFERED" not in name}
        gone = subprocess.run(command, env=buffered, stdout=pipe, stderr=subprocess.PIPE)
    assert (gone.returncode, gone.stderr) == (0, b"")


# --- odd surroundings ---


def shell(line, **options):
    """Run a command line in a shell, with `promptax` for this package."""
    line = line.replace("promptax", f"{sys.executable} -m promptax")
    command = ["sh", "-c", line]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


@pytest.mark.slow
def test_a_run_folder_may_have_any_name_in_the_plainest_locale(tiny, tmp_path):
    flags = " ".join(tiny.flags())
    env = {**os.environ, "LC_ALL": "C"}
    done = shell(f"promptax train linear {flags} --run läufe/é", cwd=tmp_path, env=env)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    done = shell("promptax report läufe", cwd=tmp_path, env=env)
    assert (done.returncode, "| linear |" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize(
    "closed", toy.slow_except(["<&- >&- 2>&-"], [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
)
@pytest.mark.parametrize(
    "command", toy.slow_except(["report done"], ["--help", "presets", "report done"])
)
def test_closed_streams_change_no_exit_code(closed, command, place):
    done = shell(f"promptax {command} {closed}", cwd=place)
    assert done.returncode == 0
    assert (done.stdout == "") == (">&-" in closed.replace("2>&-", ""))
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_mistake_without_a_stderr_still_has_its_exit_code(place):
    for closed in ("2>&-", "2>/dev/full", ">&- 2>&-"):
        assert shell(f"promptax evaluate nothing {closed}", cwd=place).returncode == 2


def test_a_closed_stream_is_not_the_next_file_that_is_opened(place):
    """A library that prints would write into it."""
    program = """if True:
        import os, sys
        from promptax.cli.output import open_streams
        open_streams()
        opened = os.open("file", os.O_RDONLY)
        sys.exit(0 if opened > 2 else 1)
    """
    command = [sys.executable, "-c", program]
    line = '"$@" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", line, "sh", *command], cwd=place, timeout=60)
    assert done.returncode == 0


@pytest.mark.parametrize(
    "command", toy.slow_except(["report done"], ["--help", "presets", "report done"])
)
def test_a_full_disk_below_the_output_is_one_line(command, place):
    done = shell(f"promptax {command} >/dev/full", cwd=place)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "promptax: No space left on device."
    # The report also says there which settings are not those of the preset.
    assert len(done.stderr.splitlines()) == (2 if command == "report done" else 1)


@pytest.mark.parametrize("columns", ["1", "0", "2", "-5", "7", "99999"])
def test_help_ends_in_a_terminal_of_any_width(columns):
    environment = {**os.environ, "COLUMNS": columns}
    done = python(["-m", "promptax", "doctor", "--help"], env=environment)
    assert done.returncode == 0
    assert "--data-dir" in done.stdout


EARLY = """
import sys, _signal

class Strike:
    def find_spec(self, name, path, target=None):
        if name == sys.argv[1]:
            _signal.raise_signal(_signal.SIGINT)

sys.meta_path.insert(0, Strike())
for name in ("signal", "enum", "functools"):  # some installations import them at the start
    sys.modules.pop(name, None)
from promptax.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    "module", ["signal", "enum", "functools", "promptax.cli", "promptax.core.interrupt"]
)
def test_ctrl_c_during_the_first_imports_is_one_line(module):
    done = python(["-c", EARLY, module])
    assert (done.returncode, done.stderr) == (130, "promptax: interrupted.\n")


STARTED = """
import os, runpy
os.write(1, b"started")
runpy.run_module("promptax", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["data list", "doctor", "presets", "report done", "train l2p"])
def test_ctrl_c_at_any_moment_is_no_traceback(command, place, tmp_path):
    for delay in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6):
        argv = command.replace("done", f"{place / 'done'}").split()
        process = subprocess.Popen(
            [sys.executable, "-c", STARTED, *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
        )
        assert process.stdout is not None
        assert process.stdout.read(len("started")) == b"started"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        assert b"Traceback" not in err
        # Python ends itself by the signal if it interrupted code that Python had compiled from a
        # text, or its own end: for a shell that is 130, too.
        assert process.returncode in (130, -signal.SIGINT) or (process.returncode, err) == (0, b"")


HUNG_UP = """
import os, sys, time
from promptax.core.interrupt import Terminated, deferred_interrupts

os.open(os.ttyname(0), os.O_RDWR)  # the terminal of this session, from now on
with deferred_interrupts() as interrupts:
    os.write(1, b"ready")
    while not interrupts.pending:
        time.sleep(0.01)
    print("to a terminal that is gone", flush=True)
    print("to a terminal that is gone", file=sys.stderr, flush=True)
    try:
        interrupts.check()
    except Terminated as error:
        open(sys.argv[1], "w").write(f"saved after signal {error.number}")
"""


def test_a_terminal_that_closes_leaves_time_to_save(tmp_path):
    """The system sends SIGHUP then, and every write to the terminal fails."""
    terminal, end = pty.openpty()
    command = [sys.executable, "-c", HUNG_UP, f"{tmp_path / 'saved'}"]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), end)
    process = subprocess.Popen(command, start_new_session=True, **streams)
    os.close(end)
    assert os.read(terminal, 5) == b"ready"
    os.close(terminal)
    assert process.wait(60) == 0
    assert (tmp_path / "saved").read_text() == f"saved after signal {int(signal.SIGHUP)}"


RED = "\x1b[31mred\x1b]0;title\x07"


def test_no_escape_sequence_of_a_file_reaches_the_terminal(place, tmp_path, capsys, monkeypatch):
    run = shutil.copytree(place / "done", tmp_path / "run")
    result = json.loads((run / "result.json").read_text())
    result["stream"]["name"] = result["method"] = RED
    (run / "result.json").write_text(json.dumps(result))
    for form in ("markdown", "csv", "latex"):
        told = answer(capsys, "report", f"{run}", "--format", form)
        assert "\x1b" not in told
        assert "x1b" in told
    monkeypatch.chdir(place)
    assert main(["predict", "done", f"{RED}.png"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def flags_of(argv):
    start, rest = _start(argv)
    assert start is not None
    return _parse_flags(start, rest)


def test_every_flag_that_can_be_void_exists(capsys):
    """A rule for a flag that was renamed would never apply."""
    for method in ("l2p", "dualprompt", "hide", "slca", "ranpac"):
        with pytest.raises(SystemExit):
            flags_of([method, "--help-all"])
    text = capsys.readouterr().out
    flags = {flag for rule in RULES for flag in rule.flags}
    # Of a flag that is on by default, the help shows only the form that switches it off.
    forms = lambda flag: (flag, f"--no-{flag.removeprefix('--')}")
    assert [flag for flag in sorted(flags) if not any(form in text for form in forms(flag))] == []


@pytest.mark.parametrize(
    "line",
    [
        "finetune --optimizer sgd --momentum 0.5 --nesterov --weight-decay 0.1",
        "linear --no-nesterov --weight-decay 0 --data.tasks None --data.task-sizes 5 5",
        "finetune --schedule step --step-at 0.5 --images.crop-area 0.5 1 --images.crop-aspect 1 1",
        "l2p --buffer-size 40 --buffer-kind ring --class-mask none",
        "l2p --cache-queries --images.no-flip",
        "er --replay-batch 4 --backbone-rate 0.1",
    ],
)
def test_flags_that_have_an_effect_are_not_refused(line):
    argv = line.split()
    refuse_void(flags_of(argv), argv[1:])
