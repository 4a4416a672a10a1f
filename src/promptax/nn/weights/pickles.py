"""Read the tensors of a pickle without executing it.

A pickle is a program for a small stack machine, which can import and call any function of Python.
This machine can do neither: a name to import is only compared with a list, and a description takes
the place of what would be called. What `torch.save` writes for tensors, numbers, texts and
containers of these can be read in this way; everything else is refused by its name.
"""

import io
import pickletools
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Any, cast

import ml_dtypes
import numpy as np


class Refused(Exception):
    """The file holds something that a file of weights has no need of."""


class Damaged(Refused):
    """The file is not a pickle, is cut off, or does not fit together."""


@dataclass(frozen=True)
class Storage:
    """A flat array that is kept outside the pickle, and of which tensors are views."""

    dtype: np.dtype
    key: str
    size: int


@dataclass(frozen=True)
class TensorView:
    """A tensor as PyTorch describes it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Name:
    """A name that the pickle would import."""

    text: str


class Ignored:
    """An object in a checkpoint that holds no weights, such as the arguments of the training."""


DTYPES: Mapping[str, np.dtype] = {
    f"torch.{name}Storage": np.dtype(dtype)
    for name, dtype in {
        "Double": np.float64,
        "Float": np.float32,
        "Half": np.float16,
        "BFloat16": ml_dtypes.bfloat16,
        "Long": np.int64,
        "Int": np.int32,
        "Short": np.int16,
        "Char": np.int8,
        "Byte": np.uint8,
        "Bool": np.bool_,
    }.items()
}
_REBUILD_TENSOR = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_REBUILD_PARAMETER = "torch._utils._rebuild_parameter"
_DICTS = ("collections.OrderedDict", "builtins.dict", "__builtin__.dict")
_IGNORED = (
    "argparse.Namespace",
    "torch.Size",
    "torch.device",
    "torch.float16",
    "torch.float32",
    "torch.float64",
    "torch.bfloat16",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "_codecs.encode",
    "builtins.set",
    "__builtin__.set",
)
"""Types that checkpoints hold beside weights. Only the names are allowed; nothing is imported."""
ALLOWED = frozenset({*DTYPES, *_REBUILD_TENSOR, _REBUILD_PARAMETER, *_DICTS, *_IGNORED})

_MARK = object()
_MOST_STACK = 10**7
"""More values than any checkpoint has, and few enough for the memory."""


def read_pickle(file: io.BufferedIOBase) -> Any:
    """The value of the pickle that begins at the position of a file, which is left behind it.

    Returns:
        Dictionaries, lists, tuples, texts and numbers; `TensorView`s in the place of tensors, and
        `Ignored` in that of other objects.

    Raises:
        Refused: it holds an object of a type that is not on the list.
        Damaged: it breaks off, or is no pickle.
    """
    try:
        # Bytes that are no pickle may look like a text with an escape that Python warns of.
        with warnings.catch_warnings(action="ignore"):
            return _value_of(pickletools.genops(cast(IO[bytes], file)))
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, UnicodeError) as error:
        raise Damaged(f"the pickle is damaged: {error}") from None


def _value_of(instructions: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> Any:
    machine = _Machine()
    for code, argument, _ in instructions:
        if code.name == "STOP":
            return machine.pop()
        machine.run(code.name, argument)
    raise Damaged("the pickle has no end")


class _Machine:
    """The stack and the memory of a pickle that is being read."""

    def __init__(self):
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise Damaged("the pickle is damaged: a mark in the place of a value")
        return value

    def pop_to_mark(self) -> list[Any]:
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        values.reverse()
        return values

    def pop_two(self) -> list[Any]:
        value = self.pop()
        return [self.pop(), value]

    def run(self, code: str, argument: Any) -> None:
        """Carry out one instruction of a pickle, or refuse it.

        Args:
            code: Its name, as in `pickletools`.
            argument: The value that follows it in the file, if there is one.
        """
        if code in _NOTHING:
            return
        if len(self.stack) > _MOST_STACK:
            raise Refused("the pickle holds too many values")
        if code in _CONSTANTS:
            self.stack.append(_CONSTANTS[code]())
        elif code in _LITERALS:
            self.stack.append(argument)
        elif code in _PUT:
            self.memory[len(self.memory) if argument is None else argument] = self.stack[-1]
        elif code in _GET:
            self.stack.append(self.memory[argument])
        elif code in _INSTRUCTIONS:
            _INSTRUCTIONS[code](self, argument)
        else:
            raise Refused(f"the pickle has the instruction {code}, which no file of weights needs")

    def name(self, argument: str) -> None:
        self.stack.append(_allowed(argument.replace(" ", ".", 1)))

    def stacked_name(self, argument: None) -> None:
        attribute = self.pop()
        module = self.pop()
        self.stack.append(_allowed(f"{module}.{attribute}"))

    def call(self, argument: None) -> None:
        arguments = self.pop()
        self.stack.append(_result(self.pop(), arguments))

    def build(self, argument: None) -> None:
        # The state of an object: of those that are kept, only a dictionary can have one, in which
        # PyTorch notes the versions of modules.
        self.pop()

    def persistent(self, argument: None) -> None:
        kind, storage, key, _, size, *_ = self.pop()
        if kind != "storage" or not isinstance(storage, Name) or storage.text not in DTYPES:
            raise Refused("a tensor is stored in an unknown way")
        if not isinstance(size, int) or not isinstance(key, str):
            raise Refused("a tensor is stored in an unknown way")
        self.stack.append(Storage(DTYPES[storage.text], key, size))

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(values)))

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Ignored):
            raise Damaged("the pickle is damaged: values for something that is no list")

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Ignored):
            return
        if not isinstance(target, dict):
            raise Damaged("the pickle is damaged: items for something that is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # No other key of a checkpoint has a meaning here, and their hashes could be slow.
            if isinstance(key, str | int):
                target[key] = value


def _allowed(text: str) -> Name:
    if text not in ALLOWED:
        raise Refused(f"it would import '{text}', which a file of weights has no need of")
    return Name(text)


def _result(called: Any, arguments: Any) -> Any:
    """Stands for the result of a call that is not made."""
    if not isinstance(called, Name) or not isinstance(arguments, tuple):
        raise Refused("the pickle would call something that is not a name")
    if called.text in _REBUILD_TENSOR:
        storage, offset, shape, strides, *_ = arguments
        return _view(storage, offset, shape, strides)
    if called.text == _REBUILD_PARAMETER:
        return arguments[0]
    if called.text in _DICTS:
        return {}
    if called.text in _IGNORED:
        return Ignored()
    raise Refused(f"the pickle would call '{called.text}'")


def _view(storage: Any, offset: Any, shape: Any, strides: Any) -> TensorView:
    """A tensor, whose description is checked as far as that is possible without the storage."""
    if not isinstance(storage, Storage) or not isinstance(offset, int):
        raise Refused("a tensor is described in an unknown way")
    for numbers in (shape, strides):
        if not isinstance(numbers, tuple) or not all(
            isinstance(number, int) and number >= 0 for number in numbers
        ):
            raise Refused("a tensor is described in an unknown way")
    return TensorView(storage, offset, shape, strides)


_NOTHING = ("PROTO", "FRAME")
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "MARK": lambda: _MARK,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": Ignored,
}
_LITERALS = (
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
    *("BINSTRING", "SHORT_BINSTRING", "STRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)
_PUT = ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE")
_GET = ("BINGET", "LONG_BINGET", "GET")
_INSTRUCTIONS: Mapping[str, Callable[[_Machine, Any], Any]] = {
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stacked_name,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": lambda machine, _: machine.stack.append(machine.pop_to_mark()),
    "APPEND": lambda machine, _: machine.extend([machine.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop_two()),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "POP": lambda machine, _: machine.stack.pop(),
}
