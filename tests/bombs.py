"""Small files that promise, or decompress to, far more than fits into memory.

Each function of `BOMBS` writes one into an empty folder. Run as a script, this opens some of them
with the command line, in a process whose memory is limited, and prints the answers as JSON:

    python tests/bombs.py FOLDER NAME...
"""

import bz2
import contextlib
import functools
import gzip
import io
import json
import lzma
import os
import resource
import shlex
import struct
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import archives
import numpy as np
from PIL import Image, PngImagePlugin

MEGABYTE = 10**6
SIZE = 128 * MEGABYTE
"""Bytes that a bomb becomes."""
LIMITS = {
    "PROMPTAX_MAX_FILE": "20MB",
    "PROMPTAX_MAX_HEADER": "1MB",
    "PROMPTAX_MAX_DIRECTORY": "5MB",
    "PROMPTAX_MAX_TEXT": "5MB",
    "PROMPTAX_MAX_UNPACKED": "20MB",
    "PROMPTAX_MAX_PIXELS": "5000000",
    "PROMPTAX_MAX_MEMORY": "100MB",
}
"""Lower than by default, so that bombs can be small and are made quickly."""
MEMORY = 120 * MEGABYTE
"""Address space that the process may take beyond what it has before the first bomb is opened."""


# --- tar and zip ---


def tar_header(kind: bytes, size: int, name: str = "a/1.png") -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def long_header(folder: Path, kind: bytes) -> Path:
    """A tar whose first header says that gigabytes of attributes follow; they are a hole."""
    path = folder / "a.tar"
    with path.open("wb") as file:
        file.write(tar_header(kind, 10 * SIZE))
        file.truncate(11 * SIZE)
    return path


def pax_record(key: str, length: int) -> bytes:
    size = length + len(key) + 3
    total = size + len(str(size))
    total = size + len(str(total))
    return f"{total} {key}=".encode() + b"x" * (total - len(str(total)) - len(key) - 3) + b"\n"


def global_headers(folder: Path) -> Path:
    """A tar with attributes for all files before each file, which add up."""
    path = folder / "a.tar.gz"
    with gzip.open(path, "wb", 1) as file:
        for number in range(30):
            content = pax_record(f"key{number}", 400_000)
            file.write(tar_header(tarfile.XGLTYPE, len(content)))
            file.write(content + bytes(-len(content) % 512))
            file.write(tar_header(tarfile.REGTYPE, 0, f"a/{number}.png"))
        file.write(bytes(1024))
    return path


def many_members(folder: Path) -> Path:
    path = folder / "a.tar.gz"
    with gzip.open(path, "wb", 1) as file:
        for number in range(27_000):
            file.write(tar_header(tarfile.REGTYPE, 0, f"a/{number:090}.png"))
    return path


def backwards(folder: Path) -> Path:
    """A tar whose second header says that the next one is before it."""
    path = folder / "a.tar"
    info = bytearray(tar_header(tarfile.REGTYPE, 0))
    info[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1024, as GNU tar writes numbers
    info[148:156] = b" " * 8
    info[148:156] = f"{sum(info):06o}\0 ".encode()
    path.write_bytes(tar_header(tarfile.REGTYPE, 0, "a/0.png") + bytes(info) + bytes(2048))
    return path


def packed_tar(folder: Path, compress: Callable[[bytes], bytes]) -> Path:
    path = folder / "a.tar"
    content = tar_header(tarfile.REGTYPE, SIZE) + bytes(SIZE) + bytes(1024)
    path.write_bytes(compress(content))
    return path


def hungry_xz(folder: Path) -> Path:
    """A small tar.xz that asks for a decompressor of a gigabyte."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**20}]
    content = bytearray(lzma.compress(bytes(10_000), filters=filters))
    # The header of the first block: its size, flags, filter, length of properties, dictionary.
    at = 12 + 4
    content[at] = 37  # 1 GiB; by the formula of the format, 24 is 4 MiB
    end = 12 + 4 * (content[12] + 1)
    content[end - 4 : end] = struct.pack("<I", zlib.crc32(content[12 : end - 4]))
    path = folder / "a.tar.xz"
    path.write_bytes(content)
    return path


def lying_zip(folder: Path, compression: int, declared: int) -> Path:
    """A zip with an image of `SIZE` bytes, of which it says that it has others."""
    path = folder / "a.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("train/a/1.png", bytes(SIZE))
        archive.writestr("test/a/1.png", bytes(10))
    content = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = content.index(mark) + at
        content[start : start + 4] = struct.pack("<I", declared)
    path.write_bytes(content)
    return path


def long_directory(folder: Path) -> Path:
    """A zip that is a hole, with a list of files of gigabytes."""
    path = folder / "a.zip"
    with path.open("wb") as file:
        file.truncate(SIZE)
        file.seek(SIZE)
        file.write(struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 9, 9, SIZE, 0, 0))
    return path


# --- arrays ---


def idx_gz(folder: Path) -> Path:
    archives.idx(folder)
    head = bytes([0, 0, 8, 3]) + struct.pack(">3I", SIZE // 784, 28, 28)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + bytes(SIZE), 1))
    return folder


def mat_element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def mat_array(kind: int, shape: tuple[int, ...], content: bytes, name: bytes = b"X") -> bytes:
    """An array of a class, whose content may be less than its shape promises."""
    flags = mat_element(6, struct.pack("<II", kind, 0))
    dims = mat_element(5, struct.pack(f"<{len(shape)}i", *shape))
    return mat_element(14, flags + dims + mat_element(1, name) + content)


def mat_file(array: bytes) -> bytes:
    """A MATLAB file with a compressed variable."""
    packed = zlib.compress(array, 1)
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    return header + struct.pack("<II", 15, len(packed)) + packed


def mat(folder: Path, kind: int, shape: tuple[int, ...], content: bytes) -> Path:
    """`train_32x32.mat` with a variable X of an own type."""
    archives.svhn(folder)
    (folder / "train_32x32.mat").write_bytes(mat_file(mat_array(kind, shape, content)))
    return folder


def mat_table(folder: Path, kind: int, shape: tuple[int, ...], content: bytes) -> Path:
    """`cars_annos.mat` whose table of annotations is an array of an own type."""
    archives.cars(folder)
    array = mat_array(kind, shape, content, b"annotations")
    (folder / "cars_annos.mat").write_bytes(mat_file(array))
    return folder


def nested_cells(depth: int) -> bytes:
    """Arrays of one cell inside one another."""
    array = b""
    for _ in range(depth):
        array = mat_array(1, (1, 1), array)
    return array


def mat_fields(names: bytes) -> bytes:
    """The names of the fields of structs, each of 8 characters."""
    return struct.pack("<HHI", 5, 4, 8) + mat_element(1, names)


def cifar(folder: Path, content: bytes) -> Path:
    files = archives.cifar_files(10, binary=False)
    files["cifar-10-batches-py/data_batch_1"] = content
    return archives.tar(folder / "cifar-10-python.tar.gz", files, "w:gz")


def repeated_text() -> bytes:
    """A pickle that encodes a text of a megabyte 300 times."""
    text = b"x" * MEGABYTE
    start = b"\x80\x02]" + b"X" + struct.pack("<I", len(text)) + text + b"q\x000"
    once = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R\x94"
    return start + once.replace(b"\x94", b"a") * (SIZE // MEGABYTE) + b"."


def npz(folder: Path) -> Path:
    path = folder / "a.npz"
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (SIZE,)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(SIZE))
    return path


def array_record(folder: Path) -> Path:
    path = archives.array_record(folder)
    file = next(path.glob("*/*/*train*-00000-of-*"))
    writer = archives.ArrayRecordWriter(str(file), "group_size:1,zstd:1")
    writer.write(archives.example({"image": bytes(SIZE), "label": [0]}))
    writer.close()
    return path


def parquet(folder: Path) -> Path:
    """A value of 4 MB that 64 rows share."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = archives.parquet(folder)
    rows, value = 64, bytes(4 * MEGABYTE)
    table = archives.hub_table(0, 1)
    column = pa.array([{"bytes": value, "path": ""}] * rows, table.schema.field("img").type)
    labels = pa.array([0] * rows)
    big = pa.table({"img": column, "label": labels}).replace_schema_metadata(table.schema.metadata)
    file = next(path.glob("data/train*"))
    pq.write_table(big, file, compression="zstd", dictionary_pagesize_limit=2**30)
    return path


# --- weights and images ---


def safetensors(folder: Path) -> Path:
    path = folder / "a.safetensors"
    entry = '"{}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    header = "{" + ",".join(entry.format(number) for number in range(100_000)) + "}"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    return path


def png(folder: Path, kind: str) -> Path:
    """An image whose text or colour profile decompresses to `SIZE`."""
    about = PngImagePlugin.PngInfo()
    start = {"iCCP": b"a\0\0", "zTXt": b"a\0\0", "iTXt": b"a\0\1\0\0\0"}[kind]
    about.add(kind.encode(), start + packed_zeros())
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG", pnginfo=about)
    return archives.folder(
        folder / "set", {**archives.class_files(), "bird/0.png": file.getvalue()}
    )


def large_png(folder: Path) -> Path:
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG")
    return archives.folder(
        folder / "set", {**archives.class_files(), "bird/0.png": file.getvalue()}
    )


def long_list(folder: Path) -> Path:
    archives.imagenet_r(folder)
    (folder / "list.txt").write_bytes(b"a\n" * (3 * MEGABYTE))
    return folder


class Bomb(NamedTuple):
    """A hostile file."""

    make: Callable[[Path], Path]
    command: str
    """What reads it."""
    words: str
    """Words of the answer; "" if the file is read, without the part that explodes."""


@functools.cache
def packed_zeros() -> bytes:
    """`SIZE` zeros, compressed by zlib."""
    return zlib.compress(bytes(SIZE), 1)


def prepare(form: str) -> str:
    return f"data prepare x PATH --format {form} --data-dir PATH.out"


FOLDER = prepare("folder")
LISTS = prepare("imagenet-r") + " --train-list PATH/list.txt --test-list PATH/list.txt"
CARS = prepare("cars")
OWN = "train linear --data.train PATH --data.test PATH"
DEFLATED = zipfile.ZIP_DEFLATED
BOMBS = {
    "tar PAX header": Bomb(lambda f: long_header(f, b"x"), FOLDER, "header of a file MAX_HEADER"),
    "tar GNU name": Bomb(lambda f: long_header(f, b"L"), FOLDER, "header of a file MAX_HEADER"),
    "tar headers for all": Bomb(global_headers, FOLDER, "header of all files MAX_HEADER"),
    "tar of many files": Bomb(many_members, FOLDER, "list of the files MAX_DIRECTORY"),
    "tar that leads back": Bomb(backwards, FOLDER, "damaged"),
    "tar.gz": Bomb(lambda f: packed_tar(f, lambda c: gzip.compress(c, 1)), FOLDER, "MAX_UNPACKED"),
    "tar.bz2": Bomb(lambda f: packed_tar(f, bz2.compress), FOLDER, "MAX_UNPACKED"),
    "tar.xz": Bomb(
        lambda f: packed_tar(f, lambda c: lzma.compress(c, preset=0)), FOLDER, "MAX_UNPACKED"
    ),
    "tar.xz that needs memory": Bomb(hungry_xz, FOLDER, "damaged Memory usage limit"),
    "zip that says so": Bomb(lambda f: lying_zip(f, DEFLATED, SIZE), FOLDER, "a/1.png MAX_FILE"),
    "zip that lies": Bomb(lambda f: lying_zip(f, DEFLATED, 9), FOLDER, "damaged"),
    "zip of bzip2 that lies": Bomb(lambda f: lying_zip(f, zipfile.ZIP_BZIP2, 9), FOLDER, "damaged"),
    "zip of LZMA that lies": Bomb(lambda f: lying_zip(f, zipfile.ZIP_LZMA, 9), FOLDER, "damaged"),
    "zip with a long list": Bomb(long_directory, FOLDER, "list of the files MAX_DIRECTORY"),
    "IDX": Bomb(idx_gz, prepare("idx"), "train-images MAX_UNPACKED"),
    "MATLAB array": Bomb(
        lambda f: mat(f, 9, (32, 32, 3, SIZE // 3072), mat_element(2, bytes(SIZE))),
        prepare("svhn"),
        "train_32x32.mat MAX_UNPACKED",
    ),
    "MATLAB cells": Bomb(
        lambda f: mat(f, 1, (2**14, 2**14), b""), prepare("svhn"), "'X' should be numbers"
    ),
    "MATLAB text": Bomb(
        lambda f: mat(f, 4, (2**14, 2**14), mat_element(16, b"")),
        prepare("svhn"),
        "'X' should be numbers",
    ),
    "MATLAB table of cells": Bomb(
        lambda f: mat_table(f, 1, (2**14, 2**14), b""), CARS, "array of 268435456 that holds 0"
    ),
    "MATLAB table of structs": Bomb(
        lambda f: mat_table(f, 2, (2**15, 2**15), mat_fields(b"fname\0\0\0")),
        CARS,
        "array of 1073741824 that holds 0",
    ),
    "MATLAB table without fields": Bomb(
        lambda f: mat_table(f, 2, (2**15, 2**15), mat_fields(b"")), CARS, "structs without a field"
    ),
    "MATLAB table of text": Bomb(
        lambda f: mat_table(f, 1, (1, 1), mat_array(4, (2**14, 2**14), mat_element(16, b""))),
        CARS,
        "array of 268435456 that holds 0",
    ),
    "MATLAB table that is deep": Bomb(
        lambda f: mat_table(f, 1, (1, 1), nested_cells(2000)), CARS, "more than 4 arrays inside"
    ),
    "MATLAB table of zeros": Bomb(
        lambda f: mat_table(f, 9, (1, SIZE // 8), mat_element(2, bytes(SIZE // 8))),
        CARS,
        "table cars_annos.mat MAX_TEXT",
    ),
    "table": Bomb(
        lambda f: archives.folder(f, {"a.csv": b"a,b\n" * (2 * MEGABYTE), "1.png": b""}),
        prepare("csv"),
        "a.csv MAX_TEXT",
    ),
    "pickle of many lists": Bomb(
        lambda f: cifar(f, b"\x80\x02" + b"]" * (3 * MEGABYTE) + b"."),
        prepare("cifar10"),
        "damaged instructions",
    ),
    "pickle that repeats": Bomb(
        lambda f: cifar(f, repeated_text()), prepare("cifar10"), "damaged encodes the same text"
    ),
    "npz": Bomb(npz, prepare("arrays"), "a.npz MB of memory"),
    "npz of one's own": Bomb(npz, OWN, "a.npz MB of memory"),
    "npz weights": Bomb(npz, "weights inspect PATH", "a.npz MB of memory"),
    "ArrayRecord": Bomb(array_record, prepare("array-record"), "a chunk MAX_FILE"),
    "Parquet": Bomb(parquet, prepare("huggingface"), "memory MAX_MEMORY"),
    "safetensors header": Bomb(safetensors, "weights inspect PATH", "header of weights MAX_HEADER"),
    "PNG text": Bomb(lambda f: png(f, "zTXt"), FOLDER, "bird/0.png cannot be read"),
    "PNG profile": Bomb(lambda f: png(f, "iCCP"), FOLDER, ""),
    "PNG international text": Bomb(lambda f: png(f, "iTXt"), FOLDER, "bird/0.png cannot be read"),
    "PNG of many pixels": Bomb(large_png, FOLDER, "bird/0.png many pixels MAX_PIXELS"),
    "list": Bomb(long_list, LISTS, "list.txt MAX_TEXT"),
}

SLOW = ("tar.", "tar of", "zip of", "zip that", "IDX", "MATLAB array", "pickle of", "Parquet")
"""Beginnings of the names of bombs that take seconds to make or to refuse."""


class Answer(NamedTuple):
    """What the command line said to a bomb."""

    code: int
    told: str
    seconds: float


def answer(command: str, path: Path) -> Answer:
    """Run a command line on a bomb, in this process."""
    from promptax.cli import main

    began = time.monotonic()
    err = io.StringIO()
    line = shlex.split(command.replace("PATH", shlex.quote(str(path))))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        code = main(line)
    return Answer(code, err.getvalue(), time.monotonic() - began)


def address_space() -> int:
    """Bytes that `RLIMIT_AS` counts."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def run(folder: Path, names: Sequence[str]) -> dict[str, Answer]:
    """Make some bombs, and open each in this process, with its memory limited."""
    paths = {}
    for name in names:
        (folder / name).mkdir()
        paths[name] = BOMBS[name].make(folder / name)
    # What is imported first takes address space for itself.
    answer("data prepare x PATH --format huggingface", folder)
    answer("weights inspect PATH", folder)
    answer("train linear --data.train PATH --data.test PATH", folder)
    os.environ.update(LIMITS)
    most = address_space() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    return {name: answer(BOMBS[name].command, path) for name, path in paths.items()}


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), sys.argv[2:])))
