"""Whatever is given, the answer is exit code 2 and at most three lines that name it.

    python tests/test_bad_inputs.py

lists every case, those of `test_cli.py` and `test_data_cli.py` too, and their number. A case is a
command line and words of its answer. OWN stands for a working run on tiny files, DATA for that
without its data.
"""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import archives
import numpy as np
import pytest
import torch_vit as other
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

from promptax.cli import main
from promptax.core.errors import UserError
from promptax.data.formats import FORMATS
from promptax.methods import registry
from promptax.methods.registry import builtin_methods
from promptax.runs.runner import _log_to

HUGE = "99999999999999999999"
CASES: dict[str, dict[str, str]] = {
    "huge numbers": {
        f"train linear OWN --epochs {HUGE}": f"epochs {HUGE}",
        "train linear OWN --epochs 1000001": "epochs 1000001 1000000",
        f"train linear OWN --batch-size {HUGE}": f"batch size {HUGE}",
        "train linear OWN --batch-size 8000000000": "batch size 8000000000",
        f"train linear OWN --eval.batch-size {HUGE}": f"evaluation batch size {HUGE}",
        f"train linear OWN --images.size {HUGE}": f"image size {HUGE}",
        "train linear OWN --images.size 80000": "image size 80000",
        f"train linear OWN --images.resize {HUGE}": f"resize {HUGE}",
        f"train linear OWN --images.augment.operations {HUGE}": f"operations {HUGE}",
        f"train linear OWN --data.tasks {HUGE}": f"6 classes {HUGE} tasks",
        f"train linear OWN --data.tasks None --data.task-sizes {HUGE}": f"tasks of {HUGE} classes",
        f"train linear OWN --data.class-order 0 1 2 3 4 5 {HUGE}": f"class {HUGE}",
        f"train linear OWN --data.first {HUGE}": f"1 to 3 tasks not {HUGE}",
        f"train linear OWN --data.kind gaussian --data.tasks {HUGE}": f"{HUGE}",
        f"train linear OWN --seed {HUGE}": f"seeds {HUGE}",
        "train linear OWN --learning-rate 1e400": "learning rate inf",
        "train linear OWN --weight-decay 1e39": "weight decay 1e+39",
        "train linear OWN --clip-norm 1e-50": "clip norm 1e-50",
        "train linear OWN --images.crop-aspect 1e-30 1": "crop aspect 1e-30",
        "train linear OWN --images.augment.mixup 1e39": "mixup 1e+39",
        f"train l2p OWN --pool-size {HUGE}": f"pool {HUGE}",
        "train l2p OWN --pool-size 1000000000000": "pool 1000000000000",
        f"train l2p OWN --prompt-length {HUGE}": f"length {HUGE}",
        "train l2p OWN --prompt-length 1000000000000": "length 1000000000000",
        f"train l2p OWN --top-k {HUGE}": f"top-k {HUGE}",
        f"train l2p OWN --layers {HUGE}": HUGE,
        f"train l2p OWN --vote-group {HUGE}": f"vote group {HUGE}",
        "train l2p OWN --pull 1e39": "pull 1e+39",
        f"train dualprompt OWN --e-length {HUGE}": f"length {HUGE}",
        f"train dualprompt OWN --g-length {HUGE}": f"length {HUGE}",
        f"train linear OWN --epochs {'9' * 5000}": "--epochs",
        f"predict done good.png --top -{HUGE}": f"top -{HUGE}",
        f"data prepare mine good.zip --format folder --size {HUGE}": f"size {HUGE} 1 to 4096",
        f"data info good --per-class {HUGE}": f"per class {HUGE} 1 to 100",
        "weights inspect glyph-vit --norm-eps 1e400": "norm eps inf",
        f"weights inspect good.safetensors --heads {HUGE}": HUGE,
    },
    "methods": {
        "train er OWN --buffer-size 0": "buffer at least 1 image 0",
        "train derpp OWN --buffer-size 0": "buffer at least 1 image 0",
        "train er OWN --buffer-size -1": "buffer size -1",
        "train er OWN --buffer-size 49": "buffer of 49 images 1 to 48",
        "train l2p OWN --buffer-size 49": "buffer of 49 images 1 to 48",
        "train dualprompt OWN --buffer-size 9 --buffer-per-class": "buffer of 54 images 1 to 48",
        "train er OWN --buffer-size 20": "32 images buffer of 20 smaller replay batch",
        "train er OWN --buffer-size 5 --replay-batch 2 --buffer-kind ring": "no slot 6 classes",
        "train er OWN --replay-batch 0": "replay batch 0",
        "train l2p OWN --review-epochs 1": "review epochs 1 without a buffer",
        "train er OWN --review-epochs -1": "review epochs -1",
        "train derpp OWN --alpha -1": "alpha -1",
        "train derpp OWN --beta nan": "beta nan",
        "train derpp OWN --buffer-size 40 --images.augment.mixup 1": "mixup off",
        "train er OWN --buffer-size 40 --backbone-rate -1": "backbone rate -1",
        "train ewc OWN --backbone-rate nan": "backbone rate nan",
        "train ewc OWN --coefficient -1": "coefficient -1",
        "train ewc OWN --gamma 2": "gamma 2",
        "train lwf OWN --coefficient inf": "coefficient inf",
        "train lwf OWN --temperature 0": "temperature 0",
        "train ranpac OWN --width -1": "width -1",
        "train ranpac OWN --ridge 0": "ridge 0",
        "train slca OWN --backbone-rate 2": "backbone rate 2",
        "train slca OWN --temperature 0": "temperature 0",
        "train slca OWN --shrink 1": "shrink 1",
        "train slca OWN --align-epochs -1": "align epochs -1",
        "train slca OWN --align-rate 0": "align rate 0",
        "train sldc OWN --rank 0": "rank 0",
        "train sldc OWN --rank 33": "rank 33 1 to 32",
        "train sldc OWN --distill -1": "distill -1",
        "train sldc OWN --ridge 0": "ridge 0",
        "train sldc OWN --smoothing 0": "smoothing 0",
        "train sldc DATA --weights random --backbone resnet-18-small": "LoRA needs a ViT ResNet",
        "train l2p DATA --weights random --backbone resnet-18-small": "prompts need a ViT",
        "train dualprompt DATA --weights random --backbone resnet-18-small": "prompts need a ViT",
    },
    "methods of a user's own": {
        "train --method none.py:Own OWN": "method file 'none.py' does not exist",
        "train --method notes.py:Own OWN": "method file 'notes.py' does not exist",
        "train --method own.py:Other OWN": "'own.py' has no class 'Other' It defines Own",
        "train --method own.py:Options OWN": "'Options' 'own.py' not a method AbstractMethod",
        "train --method own.py:number OWN": "'number' 'own.py' not a method",
        "train --method own.py:Partial OWN": "'Partial' does not define init predict",
        "train --method own.py OWN": "method 'own.py'",
        "train --method own.py:Required OWN": "no default for rate give each field one",
        "train --method broken.py:Own OWN": "'broken.py' cannot be run NameError line 1",
        "train --method words.py:Own OWN": "'words.py' cannot be run SyntaxError line 1",
        "train --method own.py:Untrained OWN": "Untrained.trainable names no leaf nothing trained",
        "train l2p --method linear OWN": "two methods 'l2p' 'linear' choose one",
        "train --method own.py:Own --buffer-size 49 OWN": "buffer of 49 images 1 to 48",
        "evaluate done --method own.py:Own": "trained with the method 'linear' but Own",
        "evaluate done --method none.py:Own": "method file 'none.py' does not exist",
        "evaluate done --method l2q": "method 'l2q' 'l2p'",
        "evaluate r-own": "'own.py:Own' code only runs if you name it --method path/to/own.py:Own",
        "evaluate r-own --method own.py:Untrained": "method 'own.py:Own' but Untrained",
        "predict r-own good.png": "'own.py:Own' code only runs if you name it",
        "predict done good.png --method own.py:Own": "trained with the method 'linear' but Own",
        "reproduce done --method own.py:Own": "trained with the method 'linear' but Own",
    },
    "edges": {
        "train linear OWN --data.tasks None --data.task-sizes 0 6": "0, 6 classes",
        "train linear OWN --data.tasks None --data.task-sizes -1 7": "-1, 7 classes",
        "train linear OWN --data.tasks None --data.task-sizes 3": "3 classes",
        "train linear OWN --data.first 0": "1 to 3 tasks not 0",
        "train linear OWN --data.first 4": "1 to 3 tasks not 4",
        "train linear OWN --data.per-class 0": "0 examples",
        "train linear OWN --data.validation 0": "share 0",
        "train linear OWN --data.validation 1": "share 1",
        "train linear OWN --data.validation nan": "share nan",
        "train linear OWN --data.per-class 1 --data.validation 0.5": "class single example",
        "train linear OWN --data.kind domains": "domains",
        "train linear OWN --data.kind sets": "sets",
        "train linear OWN --data.kind gaussian --data.reverse": "Gaussian reversed",
        "train linear OWN --data.kind gaussian --data.tasks 0": "micro-tasks 0",
        "train linear OWN --images.crop-area -1 1": "crop area",
        "train linear OWN --images.crop-area nan 1": "crop area nan",
        "train linear OWN --images.crop-aspect 0 1": "crop aspect 0",
        "train linear OWN --images.augment.operations -1": "operations -1",
        "train linear OWN --images.augment.magnitude 11": "magnitude 11 between 0 10",
        "train linear OWN --images.augment.hue 0.6": "hue 0.6 between 0 0.5",
        "train linear OWN --images.augment.erase 2": "erase 2",
        "train linear OWN --images.augment.mixup -1": "mixup -1",
        "train linear OWN --images.augment.mix-probability 1.1": "mix probability 1.1",
        "train linear OWN --eval.every 0": "interval of evaluations 0",
        "train linear OWN --warmup -0.1": "warm-up -0.1",
        "train linear OWN --momentum -0.1": "momentum -0.1",
        "train linear OWN --clip-norm -1": "clip norm -1",
        "train linear --preset": "--preset needs a value",
        "train --preset= linear": "preset ''",
        "train ''": "method ''",
        "''": "command ''",
        "data ''": "''",
        "data prepare ''": "''",
        "weights convert": "Missing",
        "weights convert glyph-vit": "Missing",
        "predict done good.png --top -1": "top -1 at least 1",
        "data prepare mine good.zip --format folder --test-share 0": "0",
        "data prepare mine good.zip --format folder --test-share 1": "1",
        "data prepare mine good.zip --format folder --test-share nan": "nan",
        "data prepare mine good.zip --format zip": "format 'zip'",
        "evaluate done --eval.batch-size 12 --eval.vote-group 5": "vote group 5 12",
        "reproduce": "Missing",
        "reproduce none": "'none' not a run folder",
        "reproduce done --resume --overwrite": "one of --resume --overwrite",
        "reproduce done --run notes": "'notes' not empty not a run",
        "reproduce done --run done": "'done' is the run itself",
        "reproduce r-half": "finished 1 of 3 tasks",
        "doctor --data-dir": "--data-dir",
        "doctor everything": "everything",
    },
    "names": {
        "train linear OWN --run ''": "'.' not empty",
        "train linear OWN --run loop": "'loop' cannot be written",
        "train linear OWN --run loop/run": "'loop/run' cannot be written",
        "train linear OWN --run /dev/null": "'/dev/null' cannot be written",
        "train linear OWN --run /dev/null/run": "cannot be written",
        "train linear OWN --run /proc/run": "'/proc/run' cannot be written",
        f"train linear OWN --run {'ü' * 200}": "cannot be written name too long",
        f"train linear OWN --run {'/'.join(['deep'] * 1100)}": "cannot be written name too long",
        "train linear OWN --weights ''": "'.' is a folder regular file",
        "train linear OWN --weights loop": "'loop' cannot be read links",
        "train linear OWN --weights dangling": "'dangling' not found",
        "train linear OWN --weights fifo": "'fifo' is a named pipe",
        "train linear OWN --weights /dev/zero": "'/dev/zero' is a device",
        "train linear OWN --weights 'no such file.npz'": "'no such file.npz' not found",
        "train linear OWN --weights ☃.npz": "'☃.npz' not found",
        "train linear OWN --weights 'a\nb\nc\nd\ne'": "not found",
        "train linear OWN --weights '\x1b[31mred'": "x1b[31mred not found",
        "train linear OWN --weights '\udcff.npz'": "not found",
        f"train linear OWN --weights {'w' * 5000}": "www name too long",
        "train linear OWN --data.train ''": "'.' is a folder regular file",
        "train linear OWN --data.train loop": "'loop' cannot be read links",
        "train linear OWN --data.train fifo": "'fifo' is a named pipe",
        "train linear OWN --data.train 'ünï côdé.npz'": "'ünï côdé.npz' cannot be read",
        "train linear OWN --data.test '~/none.npz'": "'~/none.npz' not found",
        f"train linear OWN --data.train {'d' * 300}.npz": "ddd name too long",
        "train linear --data.stream ''": "stream ''",
        "train linear --data.stream ../notes": "stream '../notes'",
        "train linear --data.stream ☃": "stream '☃'",
        "train linear --data.stream 'split fashion mnist'": "'split-fashion-mnist'",
        "train linear --data.stream 'a\n\n\n\nb'": "stream",
        "evaluate loop": "'loop' not a run folder",
        "evaluate fifo": "'fifo' not a run folder",
        "evaluate r-looped": "not a run folder",
        "evaluate ''": "'.' not a run folder",
        "evaluate '\udcff'": "not a run folder",
        f"evaluate {'r' * 300}": "rrr name too long",
        "report loop": "'loop' not a run folder",
        "report ''": "result.json is damaged",
        "report ringed": "no run in 'ringed'",
        "report done --figure loop.png": "cannot be written",
        "report done --figure ''": "cannot be written",
        "report done --figure notes": "cannot be written",
        "report done --figure figure.xyz": "figure.xyz cannot be written",
        "reproduce loop": "'loop' not a run folder",
        "reproduce loop/x": "not a run folder",
        "reproduce /": "'/' not a run folder",
        "reproduce done --run loop": "'loop' cannot be written",
        "predict done loop": "'loop'",
        "predict done fifo": "'fifo' is a named pipe",
        "predict done /dev/zero": "'/dev/zero' is a device",
        "predict done /dev/null": "'/dev/null' is a device",
        "predict done notes": "'notes' holds no image file",
        "predict done socket": "'socket' is a socket",
        "predict done ''": "'i-bomb.png' has too many pixels",
        "predict done 'no such.png'": "'no such.png' not found",
        "predict done 'a\n\n\n\nb.png'": "not found",
        f"predict done {'p' * 300}": "name too long",
        "predict loop good.png": "'loop' not a run folder",
        "data prepare mine loop --format folder": "'loop' not found",
        "data prepare mine fifo --format folder": "'fifo'",
        "data prepare mine /dev/zero --format folder": "'/dev/zero'",
        "data prepare mine ringed --format folder": "'ringed'",
        "data prepare '☃ ☃' good.zip --format folder": "'☃ ☃' cannot be the name",
        "data prepare a/b good.zip --format folder": "'a/b' cannot be the name",
        "data prepare .. good.zip --format folder": "'..' cannot be the name",
        f"data prepare {'n' * 300} good.zip --format folder": "too long",
        "data prepare mine good.zip --format folder --data-dir loop": "loop",
        "data prepare mine good.zip --format folder --data-dir /proc/none": "/proc/none",
        "data info ☃": "'☃'",
        "data list --data-dir /dev/null": "'/dev/null' is a file",
        "data info good --grid loop.png": "'loop.png'",
        "data info good --grid notes": "'notes'",
        "weights inspect loop": "'loop' cannot be read links",
        "weights inspect fifo": "'fifo' is a named pipe",
        "weights inspect ''": "'.' is a folder regular file",
        "weights convert loop out.npz": "'loop' cannot be read",
        "weights convert good.safetensors .npz": "'.npz' .npz",
        "weights convert good.safetensors notes/none/out.npz --heads 4": "cannot be written",
        f"weights convert good.safetensors {'o' * 300}.npz --heads 4": "too long",
    },
    "weights": {
        f"weights inspect {name} --heads 4": f"{name.partition('.')[0]} {words}"
        for name, words in {
            "s-empty.safetensors": "cannot be read",
            "s-short.safetensors": "cannot be read",
            "s-long.safetensors": "cannot be read",
            "s-header.safetensors": "cannot be read",
            "s-list.safetensors": "cannot be read",
            "s-deep.safetensors": "cannot be read",
            "s-offsets.safetensors": "cannot be read",
            "s-dtype.safetensors": "cannot be read",
            "s-negative.safetensors": "cannot be read",
            "s-vast.safetensors": "cannot be read",
            "s-wrap.safetensors": "cannot be read",
            "s-overlap.safetensors": "cannot be read",
            "s-names.safetensors": "no leaf has a name of a ViT",
            "s-none.safetensors": "no leaf",
            "s-torch.pt": "pickle convert",
            "s-zip.npz": "cannot be read",
            "s-vast.npz": "cannot be read",
            "s-object.npz": "cannot be read",
            "s-version.npz": "cannot be read",
            "s-about.npz": "promptax.json convert",
            "s-text.safetensors.index.json": "cannot be read as JSON",
            "s-list.safetensors.index.json": "JSON object list",
            "s-map.safetensors.index.json": "should list",
            "s-climb.safetensors.index.json": "should list",
            "s-lost.safetensors.index.json": "lost.safetensors not found",
            "s-deep.safetensors.index.json": "cannot be read as JSON",
        }.items()
    }
    | {
        f"weights inspect {folder}/model.safetensors": f"{folder}/config.json {words}"
        for folder, words in {
            "beside-text": "cannot be read as JSON",
            "beside-list": "JSON object",
            "beside-heads": "heads",
            "beside-null": "",
            "beside-deep": "cannot be read as JSON",
            "beside-latin": "cannot be read as JSON",
        }.items()
    },
    "own data": {
        f"train linear OWN --data.train e-{name}.npz": f"e-{name} {words}"
        for name, words in {
            "empty": "`images` `labels` nothing",
            "scalar": "uint8 ()",
            "tall": "no images",
            "text": "uint8",
            "bool": "uint8 bool",
            "wide": "uint8 uint16",
            "labels-text": "integers",
            "labels-nan": "integers float64",
            "labels-complex": "integers complex",
            "gap": "class 3 of 6",
            "vast-label": "without gaps",
            "unsigned": "",
            "groups-short": "groups",
            "groups-negative": "groups",
            "groups-float": "groups",
            "groups-vast": "groups without gaps",
            "names-few": "class names",
            "names-many": "class 6 of 8",
            "names-scalar": "class names",
            "vast": "cannot be read",
            "member": "cannot be read",
            "lzma": "",
            "crypt": "cannot be read",
        }.items()
    },
    "images": {
        f"predict done {name}": f"'{name}' {words}"
        for name, words in {
            "i-empty.png": "cannot be read",
            "i-text.jpg": "cannot be read",
            "i-svg.svg": "cannot be read",
            "i-eps.eps": "cannot be read",
            "i-cut.png": "cannot be read",
            "i-cut.jpg": "cannot be read",
            "i-bomb.png": "too many pixels",
            "i-zero.bmp": "cannot be read",
            "i-float.tif": "mode F",
            "i-pdf.png": "cannot be read",
            "i-zip.png": "cannot be read",
        }.items()
    },
    "archives and lists": {
        **{
            f"data prepare mine {name} --format folder": f"'{name}' {words}"
            for name, words in {
                "a-empty.zip": "",
                "a-none.zip": "",
                "a-text.zip": "damaged cut off or of another format",
                "a-cut.zip": "damaged",
                "a-cut.tar": "damaged",
                "a-climb.zip": "leads out",
                "a-root.zip": "leads out",
                "a-drive.zip": "leads out",
                "a-lines.zip": "line break",
                "a-twice.zip": "twice",
                "a-crypt.zip": "damaged",
                "a-link.tar": "link",
                "a-noimage.zip": "",
                "a-one": "",
                "a-lonely.zip": "",
                "file": "",
            }.items()
        },
        "data prepare bad a-bad.zip --format folder": "no training image that can",
        "data prepare worse a-bad.zip --format folder --skip-damaged": "no image that can",
        "data prepare mine good.zip --format cifar10": "good.zip batches.meta",
        "data prepare mine good.zip --format cifar100": "good.zip meta",
        "data prepare mine good.zip --format idx": "good.zip",
        "data prepare mine good.zip --format svhn": "train_32x32.mat",
        "data prepare mine good.zip --format notmnist": "",
        "data prepare mine good.zip --format core50": "50 objects",
        "data prepare mine good.zip --format imagenet-r": "n01443537",
        "data prepare mine good.zip --format domainnet": "lists",
        "data prepare mine good.zip --format arrays": "good.zip",
        "data prepare mine good.zip --format array-record": "good.zip",
        "data prepare mine good.zip --format huggingface": "good.zip",
        "data prepare imagenet-r imagenet-r.tar --train-list r.txt": "no training image list r.txt",
        **{
            f"data prepare imagenet-r imagenet-r.tar --train-list {name} --test-list r.txt": words
            for name, words in {
                "none.txt": "'none.txt' not found",
                "notes": "'notes' is a folder",
                "loop": "'loop' symbolic links",
                "l-empty.txt": "'l-empty.txt' names no image",
                "l-binary.txt": "'l-binary.txt' damaged",
                "l-utf16.txt": "'l-utf16.txt'",
                "l-other.txt": "n01443537/none.jpg l-other.txt",
                "l-twice.txt": "'l-twice.txt' twice",
            }.items()
        },
    },
    "prepared sets": {
        f"data {command} {name}": f"{name} {words}"
        for name, words in {
            "m-text": "meta.json damaged",
            "m-list": "meta.json damaged",
            "m-null": "meta.json damaged",
            "m-deep": "meta.json damaged",
            "m-newer": "another version",
            "m-lacks": "meta.json damaged",
            "m-shape": "damaged",
            "m-vast": "damaged",
            "m-count": "damaged",
            "m-names": "damaged",
            "m-files": "damaged",
            "m-cut": "damaged",
            "m-gone": "damaged",
            "m-object": "damaged",
        }.items()
        for command in ("info", "verify")
    },
    "runs": {
        f"{command} {name}": f"'{name} {words}"
        for command, rows in {
            "evaluate": {
                "c-nan": "",
                "c-deep": "config.json damaged",
                "c-latin": "config.json damaged",
                "c-bom": "config.json damaged",
                "c-null": "config.json damaged",
                "c-number": "config.json damaged",
                "c-folder": "not a run folder",
                "c-data": "config",
                "c-seed": "",
                "c-huge": "config.json damaged",
                "c-crlf-cut": "config.json damaged",
            },
            "reproduce": {
                "j-bare": "result.json",
                "j-deep": "result.json damaged",
                "j-matrix": "result.json damaged",
                "j-rows": "result.json damaged",
                "j-beside": "result.json damaged",
                "j-config": "config",
                "j-stages": "",
            },
            "report": {
                "j-bare": "",
                "j-deep": "result.json damaged",
                "j-matrix": "",
                "j-config": "",
                "j-weights": "",
                "j-average": "",
                "j-stages": "",
                "j-seed": "",
                "j-evaluation": "",
                "j-source": "",
            },
        }.items()
        for name, words in rows.items()
    },
}

DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny, trained):
    """A working directory with a finished run, and all that can be wrong with files."""
    folder = tmp_path_factory.mktemp("bad")
    shutil.copytree(trained, folder / "done")
    make_names(folder)
    make_safetensors(folder)
    make_own_data(folder, dict(np.load(tiny.train)))
    make_images(folder)
    make_archives(folder)
    make_prepared(folder)
    make_runs(folder)
    make_methods(folder)
    return folder


OWN_METHODS = """
import promptax as px
from promptax.methods import cross_entropy, only

number = 5

class Options:
    pass

class Partial(px.AbstractMethod):
    pass

class Own(px.AbstractMethod):
    def init(self, backbone, stream, *, key):
        return px.nn.Classifier(backbone, stream.num_classes), None

    def trainable(self, model, task):
        return only(model, lambda model: model.head)

    def loss(self, model, state, batch, task, *, key):
        logits = model(batch.images)
        return cross_entropy(logits, batch, task.competing), (logits, state)

    def predict(self, model, state, images, query):
        return px.methods.Prediction(model(images))

class Required(Own):
    rate: float

class Untrained(Own):
    def trainable(self, model, task):
        return only(model, lambda model: ())
"""


def make_methods(folder: Path) -> None:
    (folder / "own.py").write_text(OWN_METHODS)
    (folder / "broken.py").write_text("Own = Missing")
    (folder / "words.py").write_text("once upon a time")
    (folder / "notes.py").mkdir()
    config = json.loads((folder / "done" / "config.json").read_text())
    (folder / "r-own").mkdir()
    own = {**config, "method": {"name": "own.py:Own"}}
    (folder / "r-own" / "config.json").write_text(json.dumps(own))


def make_names(folder: Path) -> None:
    (folder / "file").write_text("not a folder")
    (folder / "notes").mkdir()
    (folder / "notes" / "thesis.txt").write_text("dear to somebody")
    (folder / "ünï côdé.npz").write_text("no archive")
    (folder / "loop").symlink_to("loop")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "loop.npz").symlink_to("loop.npz")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "ringed").mkdir()
    (folder / "ringed" / "ring").symlink_to(folder / "ringed")
    (folder / "r-looped").mkdir()
    (folder / "r-looped" / "config.json").symlink_to("config.json")
    os.mkfifo(folder / "fifo")
    # The path of a socket may have 107 bytes, so it is made where paths are short.
    with contextlib.chdir(folder), socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")


def header(content: bytes, size: int | None = None) -> bytes:
    """The start of a .safetensors file."""
    return struct.pack("<Q", len(content) if size is None else size) + content


def make_safetensors(folder: Path) -> None:
    good = other.make(other.TIMM)
    save_file(good, folder / "good.safetensors")
    whole = (folder / "good.safetensors").read_bytes()
    tensor = lambda **changes: json.dumps(
        {"cls_token": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}
    ).encode()
    for name, content in {
        "s-empty.safetensors": b"",
        "s-short.safetensors": whole[:-4],
        "s-long.safetensors": header(b"{}", 2**62),
        "s-header.safetensors": header(b'{"a": '),
        "s-list.safetensors": header(b"[]"),
        "s-deep.safetensors": header(DEEP.encode()),
        "s-offsets.safetensors": header(tensor(data_offsets=[8, 4])) + bytes(4),
        "s-dtype.safetensors": header(tensor(dtype="F7")) + bytes(4),
        "s-negative.safetensors": header(tensor(data_offsets=[-4, 0])) + bytes(4),
        "s-vast.safetensors": header(tensor(shape=[2**62, 2**62])) + bytes(4),
        "s-wrap.safetensors": header(tensor(shape=[2**32, 2**32, 4])) + bytes(4),
        "s-overlap.safetensors": header(
            json.dumps(
                {
                    name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
                    for name in ("cls_token", "pos_embed")
                }
            ).encode()
        )
        + bytes(4),
        "s-none.safetensors": header(b"{}"),
        "s-torch.pt": b"\x80\x02}q\x00.",
        "s-text.safetensors.index.json": b"weights",
        "s-list.safetensors.index.json": b"[]",
        "s-map.safetensors.index.json": b'{"weight_map": 5}',
        "s-climb.safetensors.index.json": b'{"weight_map": {"a": "../good.safetensors"}}',
        "s-lost.safetensors.index.json": b'{"weight_map": {"a": "s-lost.safetensors"}}',
        "s-deep.safetensors.index.json": DEEP.encode(),
    }.items():
        (folder / name).write_bytes(content)
    save_file({"encoder.conv\n\n\n\n": np.ones(3, np.float32)}, folder / "s-names.safetensors")
    make_npz_weights(folder)
    for name, content in {
        "text": b"vit",
        "list": b"[]",
        "heads": b'{"model_type": "vit", "num_attention_heads": "many"}',
        "null": b'{"model_type": null, "architecture": null}',
        "deep": DEEP.encode(),
        "latin": "{'model_type': 'größe'}".encode("latin-1"),
    }.items():
        (folder / f"beside-{name}").mkdir()
        (folder / f"beside-{name}" / "config.json").write_bytes(content)
        shutil.copy(folder / "good.safetensors", folder / f"beside-{name}" / "model.safetensors")


def npy(shape: str, dtype: str = "<f4", version: bytes = b"\x01\x00") -> bytes:
    """The header of a .npy file that promises more than follows."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text


def make_npz_weights(folder: Path) -> None:
    archives.zipped(folder / "s-zip.npz", {"cls.npy": b"no array"})
    archives.zipped(folder / "s-vast.npz", {"cls.npy": npy("(999999999999,)")})
    archives.zipped(folder / "s-version.npz", {"cls.npy": npy("(1,)", version=b"\x09\x00")})
    np.savez(folder / "s-object.npz", cls=np.array([{}], object))
    about: dict[str, Any] = {"promptax.json": np.array('{"colour": "red"}')}
    np.savez(folder / "s-about.npz", **about)


def make_own_data(folder: Path, good: dict[str, np.ndarray]) -> None:
    images, labels = good["images"], good["labels"]
    count = len(labels)
    for name, change in {
        "scalar": {"images": np.uint8(3)},
        "tall": {"images": images[:, :0]},
        "text": {"images": np.array(["a"] * count)},
        "bool": {"images": images > 50},
        "wide": {"images": images.astype(np.uint16)},
        "labels-text": {"labels": labels.astype(str)},
        "labels-nan": {"labels": np.full(count, np.nan)},
        "labels-complex": {"labels": labels * 1j},
        "gap": {"labels": np.where(labels == 3, 2, labels)},
        "vast-label": {"labels": np.where(labels == 5, 2 * 10**9, labels)},
        "unsigned": {"labels": np.full(count, 2**64 - 1, np.uint64)},
        "groups-short": {"groups": labels[1:]},
        "groups-negative": {"groups": labels - 1},
        "groups-float": {"groups": labels / 2},
        "groups-vast": {"groups": labels + 2 * 10**9},
        "names-few": {"class_names": np.array(["a", "b"])},
        "names-many": {"class_names": np.array(list("abcdefgh"))},
        "names-scalar": {"class_names": np.array("a")},
    }.items():
        arrays: dict[str, Any] = {**good, **change}
        np.savez(folder / f"e-{name}.npz", **arrays)
    np.savez(folder / "e-empty.npz")
    archives.zipped(folder / "e-vast.npz", {"images.npy": npy("(99999999, 999999)", "|u1")})
    archives.zipped(folder / "e-member.npz", {"images.npy": b"\x93NUMPY"})
    encrypted(archives.zipped(folder / "e-crypt.npz", {"images.npy": b"secret"}))


def encrypted(path: Path) -> None:
    """Set the flag of encryption in the headers of a zip."""
    content = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for found in re.finditer(re.escape(mark), bytes(content)):
            content[found.start() + at] |= 1
    path.write_bytes(content)


def make_images(folder: Path) -> None:
    (folder / "good.png").write_bytes(archives.encoded(0))
    size = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    bomb = archives.encoded(0)
    for name, content in {
        "i-empty.png": b"",
        "i-text.jpg": b"<html>404</html>",
        "i-svg.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "i-eps.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\nshowpage\n",
        "i-cut.png": archives.encoded(1, 64)[:900],
        "i-cut.jpg": archives.encoded(1, 64, "JPEG")[:300],
        "i-bomb.png": bomb[:16] + size + struct.pack(">I", zlib.crc32(b"IHDR" + size)) + bomb[33:],
        "i-zero.bmp": archives.encoded(1, 4, "BMP")[:18] + bytes(8),
        "i-pdf.png": b"%PDF-1.7\n",
    }.items():
        (folder / name).write_bytes(content)
    Image.new("F", (4, 4)).save(folder / "i-float.tif")
    archives.zipped(folder / "i-zip.png", {"a.png": archives.encoded(0)})


def make_archives(folder: Path) -> None:
    files = archives.class_files()
    good = archives.zipped(folder / "good.zip", files).read_bytes()
    tar = archives.tar(folder / "a-cut.tar", files)
    tar.write_bytes(tar.read_bytes()[:3000])
    (folder / "a-cut.zip").write_bytes(good[:-100])
    (folder / "a-none.zip").touch()
    (folder / "a-text.zip").write_text("<html>404</html>")
    (folder / "a-one").mkdir()
    image = archives.encoded(0)
    for name, members in {
        "a-empty.zip": {},
        "a-climb.zip": {"../../bird/1.png": image},
        "a-root.zip": {"/bird/1.png": image},
        "a-drive.zip": {"C:\\bird\\1.png": image},
        "a-lines.zip": {"bird/1\n2.png": image},
        "a-noimage.zip": {"bird/1.txt": b"", "cat/1.txt": b""},
        "a-lonely.zip": {"1.png": image},
        "a-bad.zip": {f"{kind}/{n}.jpg": b"bad" for kind in ("a", "b") for n in range(9)},
    }.items():
        with zipfile.ZipFile(folder / name, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
    with zipfile.ZipFile(folder / "a-twice.zip", "w") as archive:
        archive.writestr("bird/1.png", image)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("bird/1.png", image)
    encrypted(archives.zipped(folder / "a-crypt.zip", files))
    with tarfile.open(folder / "a-link.tar", "w") as archive:
        link = tarfile.TarInfo("bird/1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    make_lists(folder)


def make_lists(folder: Path) -> None:
    archives.imagenet_r(folder)
    good = "n01443537/art_0.jpg\nn01484850/art_1.jpg\nn02009912/art_1.jpg\n"
    for name, content in {
        "r.txt": b"n01443537/art_4.jpg\n",
        "l-empty.txt": b"",
        "l-binary.txt": bytes(range(128, 256)),
        "l-utf16.txt": good.encode("utf-16"),
        "l-other.txt": b"n01443537/none.jpg\n",
        "l-twice.txt": f"{good}{good}".encode(),
        "l-windows.txt": b"\xef\xbb\xbf" + good.replace("\n", "\r\n").encode(),
        "l-unix.txt": good.encode(),
    }.items():
        (folder / name).write_bytes(content)


def make_prepared(folder: Path) -> None:
    archives.image_folder(folder)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.chdir(folder):
        prepare = "data prepare good set --format folder --size 8 --data-dir data"
        assert main(prepare.split()) == 0
    meta = json.loads((folder / "data" / "good" / "meta.json").read_text())
    for name, content in {
        "text": "once upon a time",
        "list": "[]",
        "null": "null",
        "deep": DEEP,
        "newer": {**meta, "version": 99},
        "lacks": {key: value for key, value in meta.items() if key != "files"},
        "shape": {**meta, "shape": [8, 8]},
        "vast": {**meta, "shape": [10**30, 8, 3]},
        "count": {**meta, "examples": {"train": -1, "test": 4}},
        "names": {**meta, "class_names": 5},
        "files": {**meta, "files": []},
        "cut": meta,
        "gone": meta,
        "object": meta,
    }.items():
        text = content if isinstance(content, str) else json.dumps(content)
        made = shutil.copytree(folder / "data" / "good", folder / "data" / f"m-{name}")
        (made / "meta.json").write_text(text)
    images = folder / "data" / "m-cut" / "train.images.npy"
    images.write_bytes(images.read_bytes()[:-1])
    (folder / "data" / "m-gone" / "test.labels.npy").unlink()
    np.save(folder / "data" / "m-object" / "test.groups.npy", np.array([{}], object))


def make_runs(folder: Path) -> None:
    text = (folder / "done" / "config.json").read_text()
    config = json.loads(text)
    changed = lambda part, **values: {**config, part: {**config[part], **values}}
    for name, content in {
        "nan": re.sub(r'("learning_rate":) [\d.]+', r"\1 NaN", text),
        "deep": DEEP,
        "latin": '{"schema": "größe"}'.encode("latin-1"),
        "bom": b"\xef\xbb\xbf" + text.encode(),
        "null": "null",
        "number": "7",
        "data": {**config, "data": []},
        "seed": {**config, "seed": -1},
        "huge": '{"schema": ' + "9" * 5000 + "}",
        "crlf-cut": text.replace("\n", "\r\n")[:-9],
        "weights": changed("backbone", weights="none\n\n\n\n.npz"),
    }.items():
        run = shutil.copytree(folder / "done", folder / f"c-{name}")
        raw = content if isinstance(content, str | bytes) else json.dumps(content)
        (run / "config.json").write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    (folder / "c-folder" / "config.json").mkdir(parents=True)
    make_results(folder)


def make_results(folder: Path) -> None:
    result = json.loads((folder / "done" / "result.json").read_text())
    config = result["config"]
    for name, content in {
        "bare": {"schema": 1},
        "deep": DEEP,
        "matrix": {**result, "accuracy_matrix": 5},
        "rows": {**result, "accuracy_matrix": [1, "x", None]},
        "beside": {**result, "beside": {"vote": 5}},
        "config": {**result, "config": 5},
        "weights": {**result, "weights": None},
        "average": {**result, "average_accuracy": "high"},
        "stages": {**result, "tasks_done": "x"},
        "seed": {**result, "config": {**config, "seed": []}},
        "evaluation": {**result, "evaluation": 5},
        "source": {**result, "source": 5},
        "tasks": {**result, "after_each_task": 5},
        "usage": {**result, "prompt_usage": 5},
    }.items():
        run = shutil.copytree(folder / "done", folder / f"j-{name}")
        text = content if isinstance(content, str) else json.dumps(content)
        (run / "result.json").write_text(text)
    half = shutil.copytree(folder / "done", folder / "r-half")
    first = result["after_each_task"][0]
    stopped = {**result, **first, "after_each_task": [first], "tasks_done": 1}
    (half / "result.json").write_text(json.dumps(stopped))


@pytest.fixture(autouse=True)
def no_hang():
    """What never answers, such as a read of a FIFO, fails too."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def own_flags(tiny: Any) -> tuple[str, str]:
    """What OWN and DATA stand for."""
    own = shlex.join(tiny.flags())
    data = own.partition("--data.train")
    return own, data[1] + data[2]


def answered(line: str) -> tuple[int, str]:
    """Exit code and stderr of a command line; where it is refused, in a line or two."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(shlex.split(line))
    told = err.getvalue()
    assert "Traceback" not in told, told
    if code == 2:
        assert told.startswith("promptax: "), told
        assert told.count("\n") <= 3, told
        assert len(told) < 700, told
        assert "\x1b" not in told, told
    else:
        assert code in (0, 1), told
    return code, told


def refusal(line: str) -> str:
    """The answer to a bad command line."""
    code, told = answered(line)
    assert code == 2, (code, told)
    return told


ALL = [(group, *row) for group, rows in CASES.items() for row in rows.items()]
QUICK = ("edges", "runs", "own data")
"""Of the table, what the fast suite runs too."""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param(line, words, id=f"{n} {group}", marks=[pytest.mark.slow][group in QUICK :])
        for n, (group, line, words) in enumerate(ALL)
    ],
)
def test_a_bad_input_is_answered_in_a_line_or_two(line, words, place, tiny, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("PROMPTAX_DATA", "data")
    monkeypatch.setattr(registry, "_own_methods", {})  # as in a process of its own
    own, data = own_flags(tiny)
    try:
        told = refusal(line.replace("OWN", own).replace("DATA", data))
        assert not Path("runs").exists(), "a run was begun"
    finally:
        shutil.rmtree("runs", ignore_errors=True)
    assert [word for word in words.split() if word not in told] == [], told


# --- every flag ---

COMMANDS = (
    *(f"train {method}" for method in builtin_methods()),
    *("evaluate done", "report done", "reproduce done", "predict done good.png", "doctor"),
    *("data list", "data fetch svhn", "data info good", "data verify good"),
    *(f"data prepare mine --format {form}" for form in FORMATS),
    *("weights convert good.safetensors out.npz", "weights inspect glyph-vit"),
)
WRONG: Mapping[str, tuple[str, ...]] = {
    "INT": ("x", "1.5", "''", "1e3", "0x10", "--"),
    "FLOAT": ("x", "''", "1,5", "1e", "--"),
    "[INT": ("x", "1 x", "1,2"),
    "FLOAT FLOAT": ("x x", "1", "0 x"),
    "{": ("zzz", "''"),
    "switch": ("=maybe", "=2"),
}
"""Values that no flag of a kind takes, by how the help names the kind."""


def flags_of(command: str) -> Iterator[tuple[str, str]]:
    """The flags of a command and their kinds, as its help lists them."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*shlex.split(command), "--help-all"])
    text = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    for names in re.findall(r"^[│ ]{1,2}(--\w.*)$", text, re.MULTILINE):
        name, _, kind = re.split(r" {2,}|, --|│", names)[0].strip().partition(" ")
        yield name, kind.removeprefix("{None}|").removeprefix("{None,").lstrip("{[") or "switch"


def flag_cases() -> Iterator[tuple[str, str]]:
    """Each flag once, with every value that its kind does not take; and the words expected."""
    known: set[tuple[str, str]] = set()
    for command in COMMANDS:
        program = command.split()[0]
        for name, kind in flags_of(command):
            if (program, name) not in known:
                known.add((program, name))
                for value in _values(kind):
                    # A switch takes no value, so what is named is the value that came.
                    word = value.lstrip("=") if kind == "switch" else name
                    yield f"{command} {name}{value}", word


def _values(kind: str) -> tuple[str, ...]:
    if kind == "switch":
        return WRONG[kind]
    if "," in kind:
        return tuple(f" {value}" for value in WRONG["{"])
    wrong = WRONG.get(kind, WRONG["[INT"] if kind == "INT ..." else ())
    return tuple(f" {value}" for value in wrong)


@pytest.mark.slow
def test_every_flag_refuses_what_is_not_of_its_kind(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "100")
    cases = list(flag_cases())
    assert len(cases) > 300
    for line, word in cases:
        signal.alarm(60)
        told = refusal(line)
        assert word in told, (line, told)


# --- damaged files ---


def mutants(content: bytes, draw: Callable[[int], int]) -> bytes:
    """A few bytes changed, some taken away or put in, or the end cut off."""
    changed = bytearray(content)
    for _ in range(1 + draw(4)):
        at = draw(len(changed))
        kind = draw(5)
        if kind < 2:
            changed[at] ^= 1 << draw(8)
        elif kind == 2:
            changed[at : at + 1 + draw(16)] = b""
        elif kind == 3:
            changed[at:at] = bytes(draw(256) for _ in range(1 + draw(8)))
        else:
            del changed[at:]
        if not changed:
            break
    return bytes(changed)


DAMAGED = {
    "npz weights": ("w.npz", "weights inspect w.npz"),
    "safetensors": ("s/model.safetensors", "weights inspect s/model.safetensors --heads 4"),
    "config of weights": ("s/config.json", "weights inspect s/model.safetensors --heads 4"),
    "own data": ("d.npz", "train linear --data.train d.npz --data.test d.npz --weights none"),
    "png": ("x.png", "predict done x.png"),
    "jpeg": ("x.jpg", "predict done x.jpg"),
    "zip": ("x.zip", "data prepare x x.zip --format folder --size 8 --data-dir data"),
    "tar": ("x.tar", "data prepare x x.tar --format folder --size 8 --data-dir data"),
    "tar.gz": ("x.tar.gz", "data prepare x x.tar.gz --format folder --size 8 --data-dir data"),
    "arrays": ("a.npz", "data prepare x a.npz --format arrays --data-dir data"),
    "list": (
        "x.txt",
        "data prepare x imagenet-r.tar --format imagenet-r --train-list x.txt --test-list r.txt "
        "--data-dir data",
    ),
    "meta.json": ("data/set/meta.json", "data verify set --data-dir data"),
    "npy": ("data/set/train.labels.npy", "data verify set --data-dir data"),
    "config.json": ("run/config.json", "evaluate run"),
    "result.json": ("run/result.json", "report run"),
    "result.json again": ("run/result.json", "reproduce run --run notes"),
}
"""A file, and a command that reads it."""


@pytest.fixture(scope="module")
def whole(place, tiny):
    """The files of `DAMAGED`, as they should be."""
    shutil.copytree(place / "done", place / "run")
    shutil.copytree(place / "data" / "good", place / "data" / "set")
    shutil.copy(tiny.weights, place / "w.npz")
    shutil.copy(tiny.train, place / "d.npz")
    shutil.copy(place / "l-unix.txt", place / "x.txt")
    archives.arrays(place)
    (place / "arrays.npz").rename(place / "a.npz")
    (place / "s").mkdir()
    shutil.copy(place / "good.safetensors", place / "s" / "model.safetensors")
    config = {"model_type": "vit", "num_attention_heads": 4, "hidden_act": "gelu"}
    (place / "s" / "config.json").write_text(json.dumps(config))
    (place / "x.png").write_bytes(archives.encoded(0))
    (place / "x.jpg").write_bytes(archives.encoded(0, kind="JPEG"))
    archives.zipped(place / "x.zip", archives.class_files())
    archives.tar(place / "x.tar", archives.class_files())
    archives.tar(place / "x.tar.gz", archives.class_files(), "w:gz")
    return place


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGED)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_a_damaged_file_is_read_or_refused_but_never_breaks_the_program(kind, seed, whole):
    name, line = DAMAGED[kind]
    random = np.random.default_rng(seed)
    file = whole / name
    kept = file.read_bytes()
    signal.alarm(60)
    try:
        file.write_bytes(mutants(kept, lambda below: int(random.integers(below))))
        with contextlib.chdir(whole):
            answered(line)
    finally:
        file.write_bytes(kept)
        for made in ("data/x", "data/x.partial"):
            shutil.rmtree(whole / made, ignore_errors=True)


def test_a_named_pipe_in_the_place_of_the_log_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "log.txt")
    with (
        pytest.raises(UserError, match=r"log\.txt' is a named pipe"),
        _log_to(tmp_path / "log.txt"),
    ):
        pass


def test_lists_with_the_line_ends_of_windows_name_the_same_images(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    digests = []
    for ends in ("unix", "windows"):
        lists = f"--train-list l-{ends}.txt --test-list r.txt --data-dir {ends}"
        assert main(["data", "prepare", "imagenet-r", "imagenet-r.tar", *lists.split()]) == 0
        assert main(["data", "verify", "imagenet-r", "--data-dir", ends]) == 0
        digests.append(capsys.readouterr().out.split()[-1])
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    "name", ["ünï ☃.png", "a b.png", "-dash.png", "\udcff.png", "a\nb.png", "'q'.png"]
)
def test_unusual_names_are_names(name, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    shutil.copy("good.png", name)
    assert main(["predict", "done", f"./{name}"]) == 0
    assert "task" not in capsys.readouterr().err


def listed() -> Iterator[tuple[str, str, str]]:
    """Every case of the three tables, and those that `flag_cases` makes."""
    import test_cli
    import test_data_cli

    for table in (CASES, test_cli.ROWS, {"data": test_data_cli.ROWS}):
        for group, rows in table.items():
            yield from ((group, line, words) for line, words in rows.items())
    yield from (("flags", line, word) for line, word in flag_cases())


if __name__ == "__main__":
    os.environ["COLUMNS"] = "100"
    number = 0
    for number, (group, line, words) in enumerate(listed(), 1):
        print(f"{number:4} {group:18} {ascii(line)[1:100]} -> {ascii(words)[1:-1]}")
    print(f"\n{number} cases, and {len(DAMAGED)} kinds of files damaged at random, 25 times each")
