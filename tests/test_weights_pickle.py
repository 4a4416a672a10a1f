"""PyTorch's files, made by hand: what is read of them, and what hostile ones cannot do."""

import contextlib
import io
import os
import pickle
import struct
import subprocess
import zipfile

import numpy as np
import pytest
import torch_vit as other
import toy
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from torch_file import (
    START,
    archive,
    dictionary,
    name,
    number,
    pair_of,
    state,
    stream,
    tensor,
    text,
)

from promptax import UserError, nn
from promptax.nn.weights.pickles import Refused, read_pickle
from promptax.nn.weights.torch import torch_tensors

KNOWN = nn.Metadata(heads=other.HEADS)


@pytest.mark.parametrize("write", [archive, stream])
@pytest.mark.parametrize("nested", [None, "model", "state_dict", "teacher"])
def test_the_tensors_of_a_pytorch_file_are_read(write, nested, tmp_path):
    tensors = other.make(other.TIMM)
    pickled, storages = state(tensors)
    if nested is not None:
        arguments = name("argparse", "Namespace") + b")R" + dictionary(lr=number(1)) + b"b"
        wrong = dictionary(bias=tensor("0", tensors["cls_token"].shape))
        pickled = dictionary(student=wrong, args=arguments, epoch=number(3), **{nested: pickled})
    # The format is told by the content.
    path = write(tmp_path / "weights.npz", pickled, storages)
    save_file(tensors, tmp_path / "model.safetensors")
    wanted = nn.read_weights(tmp_path / "model.safetensors", KNOWN)
    found = nn.read_weights(path, KNOWN)
    assert toy.same_bits(found.build(), wanted.build())
    assert (found.name, found.metadata) == ("weights.npz", wanted.metadata)


def test_views_types_and_parameters_are_read_as_pytorch_means_them(tmp_path):
    values = np.arange(6, dtype=np.float32)
    half = np.arange(3, dtype=np.float16)
    parameter = name("torch._utils", "_rebuild_parameter")
    hooks = name("collections", "OrderedDict") + b")R"
    pickled = dictionary(
        transposed=tensor("0", (3, 2), strides=(1, 3)),
        part=tensor("0", (2,), size=6, offset=4),
        scalar=tensor("0", (), size=6),
        empty=tensor("0", (0, 2), size=6),
        half=tensor("1", (3,), storage="HalfStorage"),
        parameter=parameter + pair_of(tensor("0", (6,)), b"\x88", hooks) + b"R",
    )
    storages = {"0": values.tobytes(), "1": half.tobytes()}
    found = torch_tensors(archive(tmp_path / "x.pth", pickled, storages))
    np.testing.assert_array_equal(found["transposed"], values.reshape(2, 3).T)
    np.testing.assert_array_equal(found["part"], values[4:])
    np.testing.assert_array_equal(found["parameter"], values)
    assert (found["scalar"].shape, found["empty"].shape) == ((), (0, 2))
    assert found["half"].dtype == np.float16


SYSTEM = name("os", "system") + pair_of(text("touch hacked")) + b"R"
GOOD = tensor("0", (4,))
BIG = 2**31 - 1
HOSTILE = {
    "a call": (SYSTEM, "would import 'os.system'"),
    "a call inside": (dictionary(x=GOOD, y=SYSTEM), "would import 'os.system'"),
    "eval": (name("builtins", "eval") + pair_of(text("1")) + b"R", "'builtins.eval'"),
    "newer name": (text("posix") + text("system") + b"\x93", "would import 'posix.system'"),
    "dotted name": (name("torch", "_utils.sys.modules"), "would import 'torch._utils.sys"),
    "an attribute": (name("builtins", "getattr"), "would import 'builtins.getattr'"),
    "instance": (b"(" + b"ios\nsystem\n", "instruction INST"),
    "object": (b"(" + name("argparse", "Namespace") + b"o", "instruction OBJ"),
    "extension": (b"\x82\x01", "instruction EXT1"),
    "keywords": (name("argparse", "Namespace") + b")}\x92", "instruction NEWOBJ_EX"),
    "call of a text": (text("x") + b")R", "would call something that is not a name"),
    "call of a storage": (name("torch", "FloatStorage") + b")R", "would call 'torch.FloatSt"),
    "other persistent id": (text("x") + b"Q", "damaged"),
    "a larger view": (dictionary(x=tensor("0", (5,), size=4)), "larger than its storage"),
    "a view behind": (dictionary(x=tensor("0", (2,), size=4, offset=3)), "larger than its"),
    "a repeated view": (
        dictionary(x=tensor("0", (BIG,), size=4, strides=(0,))),
        "bytes, but the file has",
    ),
    "a view before": (dictionary(x=tensor("0", (2,), size=4, offset=-8)), "larger than its"),
    "a negative stride": (dictionary(x=tensor("0", (2,), size=4, strides=(-9,))), "unknown way"),
    "a wrong size": (dictionary(x=tensor("0", (BIG,))), "bytes, but the file has"),
    "a missing storage": (dictionary(x=tensor("7", (4,))), "lacks 'archive/data/7'"),
    "another file": (dictionary(x=tensor("../../x", (4,))), "lacks 'archive/data/../../x'"),
    "itself": (b"}q\x00" + text("model") + b"h\x00s", "no tensors by name"),
    "a list": (b"]" + GOOD + b"a", "no tensors by name"),
    "a far place in memory": (b"}r\xff\xff\xff\xff", "no tensors by name"),
    "an empty stack": (b"0", "damaged"),
    "no mark": (b"u", "damaged"),
    "a long text": (b"\x8d" + struct.pack("<Q", 2**60), "damaged"),
    "deep nesting": (b"]" * 100_000 + b"a" * 99_999, "no tensors by name"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_runs_nothing_and_is_refused(kind, tmp_path, monkeypatch):
    pickled, words = HOSTILE[kind]
    monkeypatch.chdir(tmp_path)
    for module, function in ((os, "system"), (subprocess, "Popen")):
        monkeypatch.setattr(module, function, lambda *_: pytest.fail("executed"))
    path = archive(tmp_path / "x.pth", pickled, {"0": bytes(16)})
    with pytest.raises(UserError) as caught:
        nn.read_weights(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert [file.name for file in tmp_path.iterdir()] == ["x.pth"]


def test_a_refusal_says_how_to_convert(tmp_path):
    with pytest.raises(UserError, match=r"If you trust it, convert it where you have torch, with"):
        nn.read_weights(archive(tmp_path / "x.pth", SYSTEM, {}))


def test_a_compressed_storage_is_refused(tmp_path):
    path = archive(tmp_path / "x.pth", dictionary(x=GOOD), {"0": bytes(16)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"'archive/data/0' is compressed"):
        nn.read_weights(path)


@pytest.mark.parametrize("write", [archive, stream])
def test_a_truncated_file_is_a_user_error(write, tmp_path):
    pickled, storages = state(other.make(other.TIMM))
    whole = write(tmp_path / "whole.pth", pickled, storages).read_bytes()
    path = tmp_path / "x.pth"
    for length in (0, 1, 30, 500, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"x\.pth.*: is it cut off,"):
            nn.read_weights(path, KNOWN)


def test_a_pickle_of_something_else_is_told_as_such(tmp_path):
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"epoch": 1}))
    with pytest.raises(UserError, match="a pickle that PyTorch did not write"):
        nn.read_weights(tmp_path / "x.pth", KNOWN)


def test_an_archive_with_something_in_front_is_read(tmp_path):
    pickled, storages = state(other.make(other.TIMM))
    content = archive(tmp_path / "x.pth", pickled, storages).read_bytes()
    (tmp_path / "longer.pth").write_bytes(b"#!/bin/sh\n" + content)
    found = nn.read_weights(tmp_path / "longer.pth", KNOWN)
    assert toy.same_bits(found.build(), nn.read_weights(tmp_path / "x.pth", KNOWN).build())


def test_an_escape_in_a_damaged_pickle_is_not_warned_of():
    with pytest.raises(Refused, match="PERSID"):
        read_pickle(io.BytesIO(b"P\\{\n."))


@given(st.data())
def test_a_changed_pickle_is_read_or_refused(data):
    """Bytes of a valid pickle that are changed at random never do anything else."""
    whole = bytearray(START + dictionary(x=GOOD, args=name("argparse", "Namespace") + b")R") + b".")
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Refused):
        read_pickle(io.BytesIO(bytes(whole)))
