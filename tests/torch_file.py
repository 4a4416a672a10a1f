"""PyTorch's files, made by hand: instructions of pickles, and the archives around them."""

import pickle
import struct
import zipfile

import numpy as np

START = b"\x80\x02"


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def pair_of(*items):
    return b"(" + b"".join(items) + b"t"


def numbers(values):
    return pair_of(*map(number, values))


def dictionary(**items):
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def tensor(key, shape, *, size=None, offset=0, strides=None, storage="FloatStorage"):
    """As `torch.save` describes a tensor."""
    size = int(np.prod(shape)) if size is None else size
    if strides is None:
        strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    place = pair_of(text("storage"), name("torch", storage), text(key), text("cpu"), number(size))
    hooks = name("collections", "OrderedDict") + b")R"
    arguments = (place + b"Q", number(offset), numbers(shape), numbers(strides), b"\x89", hooks)
    return name("torch._utils", "_rebuild_tensor_v2") + pair_of(*arguments) + b"R"


def state(tensors):
    """A state dictionary, and its storages by key."""
    keys = {entry: str(number) for number, entry in enumerate(tensors)}
    # PyTorch adds the versions of modules as the state of the dictionary.
    versions = dictionary(_metadata=name("collections", "OrderedDict") + b")R")
    entries = b"".join(text(n) + tensor(keys[n], t.shape) for n, t in tensors.items())
    pickled = name("collections", "OrderedDict") + b")R(" + entries + b"u" + versions + b"b"
    return pickled, {keys[n]: t.tobytes() for n, t in tensors.items()}


def archive(path, pickled, storages, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", START + pickled + b".")
        for key, content in storages.items():
            file.writestr(f"archive/data/{key}", content, compression)
    return path


def stream(path, pickled, storages):
    """As PyTorch wrote files before version 1.6."""
    before = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    parts = [pickle.dumps(value, protocol=2) for value in before]
    parts += [START + pickled + b".", pickle.dumps(list(storages), protocol=2)]
    parts += [struct.pack("<q", len(content) // 4) + content for content in storages.values()]
    path.write_bytes(b"".join(parts))
    return path
