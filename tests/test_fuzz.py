"""Every reader of files from elsewhere, on files with bytes changed, added, removed and repeated.

A reader gives a `UserError` or what it has read, and nothing else.
"""

import bz2
import contextlib
import gzip
import json
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path

import archives
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from promptax.core.errors import UserError
from promptax.core.files import read_json, read_npz, read_text
from promptax.data.archive import open_tree, reading
from promptax.data.compressed import decompressed
from promptax.data.formats.cifar import _unpickle
from promptax.data.formats.huggingface import HuggingFace
from promptax.data.formats.idx import _read
from promptax.data.formats.matlab import read_mat
from promptax.data.formats.riegeli import chunks
from promptax.data.image import DamagedImage, decode
from promptax.nn.weights.safetensors import read_safetensors
from promptax.runs.tensorboard import EventWriter, read_events


def packed(path: Path) -> bytes:
    return path.read_bytes()


def npz(folder: Path) -> bytes:
    np.savez_compressed(folder / "a.npz", a=np.arange(12), b=np.array("text"))
    return packed(folder / "a.npz")


def mat(folder: Path) -> bytes:
    return packed(archives.svhn(folder) / "test_32x32.mat")


def array_record(folder: Path) -> bytes:
    return packed(next(archives.array_record(folder).glob("*/*/*test*-of-*")))


def cifar(folder: Path) -> bytes:
    return archives.cifar_files(10, binary=False)["cifar-10-batches-py/batches.meta"]


def tar(folder: Path) -> bytes:
    return packed(archives.tar(folder / "a", archives.class_files(each=1)))


def whole_tree(path: Path) -> None:
    tree = open_tree(path)
    for _ in tree.read(tree.names):
        pass


def whole_file(path: Path) -> None:
    with reading(path), decompressed(path) as file:
        file.seek(100)
        file.read()


def riegeli(path: Path) -> None:
    with reading(path), path.open("rb") as file:
        for number, _ in enumerate(chunks(file)):
            assert number < 10_000


def unpickled(path: Path) -> None:
    with reading(path):
        _unpickle(path.read_bytes())


def event_file(folder: Path) -> bytes:
    writer = EventWriter(folder / "events", lambda tag, step: True)
    for step in range(4):
        writer.scalar("loss", step / 2, step)
    writer.histogram("prompts", np.arange(5), 1)
    writer.close()
    return packed(next((folder / "events").iterdir()))


def events(path: Path) -> None:
    """Changed events are left out: each one that is read was written so."""
    written = list(read_events(path.with_name("good")))
    for event in read_events(path):
        assert event in written


def hub_file(folder: Path) -> bytes:
    pytest.importorskip("pyarrow")
    return packed(next(archives.parquet(folder).glob("data/train*")))


def hub_images(path: Path) -> None:
    """List and read a set whose two splits are in this file."""
    hub = path.with_name("changed")
    hub.mkdir(exist_ok=True)
    for split in ("train", "test"):
        shutil.copy(path, hub / f"{split}-00000-of-00001.parquet")
    train = HuggingFace().list(hub).train
    for stored in train.images.read(np.arange(len(train.labels))):
        assert isinstance(stored, bytes)


def image(path: Path) -> None:
    with contextlib.suppress(DamagedImage):
        decode(path.read_bytes(), 4)


TENSORS = {"cls_token": np.ones((1, 1, 4), np.float32), "norm.weight": np.ones(4, np.float32)}
READERS: dict[str, tuple[Callable[[Path], bytes], Callable[[Path], object]]] = {
    "json": (lambda f: json.dumps({"a": [1, "x", None]}).encode(), read_json),
    "text": (lambda f: b"n01443537/art_0.jpg\n", read_text),
    "npz": (npz, read_npz),
    "safetensors": (lambda f: save(TENSORS), read_safetensors),
    "zip": (lambda f: packed(archives.zipped(f / "a", archives.class_files(each=1))), whole_tree),
    "tar": (tar, whole_tree),
    "tar.gz": (lambda f: gzip.compress(tar(f)), whole_tree),
    "gz": (lambda f: gzip.compress(bytes(1000)), whole_file),
    "bz2": (lambda f: bz2.compress(bytes(1000)), whole_file),
    "xz": (lambda f: lzma.compress(bytes(1000)) + bytes(4) + lzma.compress(b"x"), whole_file),
    "idx": (lambda f: archives.idx_bytes(np.zeros((2, 3, 3), np.uint8)), lambda p: _read(p, 3)),
    "mat": (mat, lambda p: read_mat(p, ["X", "y"])),
    "array-record": (array_record, riegeli),
    "pickle": (cifar, unpickled),
    "png": (lambda f: archives.encoded(0), image),
    "jpeg": (lambda f: archives.encoded(0, kind="JPEG"), image),
    "gif": (lambda f: archives.encoded(0, kind="GIF"), image),
    "tiff": (lambda f: archives.encoded(0, kind="TIFF"), image),
    "events": (event_file, events),
    "parquet": (hub_file, hub_images),
    "webp": (lambda f: archives.encoded(0, kind="WEBP"), image),
}


def changed(content: bytes, draw: Callable) -> bytes:
    """A few places changed: bits, numbers at their edges, parts that are missing or doubled."""
    new = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(new)))
        length = draw(st.integers(1, 16))
        part = draw(st.sampled_from(["bits", "edge", "cut", "double", "noise"]))
        if part == "bits":
            new[at : at + 1] = bytes(b ^ draw(st.integers(1, 255)) for b in new[at : at + 1])
        elif part == "edge":
            edge = draw(st.sampled_from([b"\0", b"\xff", b"\x7f", b"\x80"]))
            new[at : at + length] = edge * len(new[at : at + length])
        elif part == "cut":
            del new[at : at + length]
        elif part == "double":
            new[at:at] = new[at : at + 64 * length]
        else:
            new[at:at] = draw(st.binary(min_size=1, max_size=16))
    return bytes(new)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.filterwarnings("ignore")  # parsers warn about what they then refuse
@pytest.mark.parametrize("name", READERS)
@settings(max_examples=40)
@given(draw=st.data())
def test_a_reader_reads_or_refuses(name, place, draw):
    make, read = READERS[name]
    folder = place / name
    if not folder.is_dir():
        folder.mkdir()
        (folder / "good").write_bytes(make(folder))
    good = (folder / "good").read_bytes()
    (folder / "bad").write_bytes(changed(good, draw.draw))
    with contextlib.suppress(UserError):
        read(folder / "bad")


@pytest.mark.parametrize("name", READERS)
def test_what_is_not_changed_is_read(name, tmp_path):
    make, read = READERS[name]
    (tmp_path / "good").write_bytes(make(tmp_path))
    if name == "safetensors":  # these two leaves are no whole model
        with pytest.raises(UserError, match=r"norm|blocks|depth|leaf|missing"):
            read(tmp_path / "good")
    else:
        read(tmp_path / "good")
