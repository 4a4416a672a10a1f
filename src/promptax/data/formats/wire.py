"""A reader of `tf.train.Example` messages in the wire format of protocol buffers.

It saves the dependency on TensorFlow or protobuf. The format is described at
https://protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator
from typing import Any

Value = list[bytes] | list[int]

# Numbers of fields, from TensorFlow's `example.proto` and `feature.proto`.
FEATURES = 1
ENTRY = 1
KEY = 1
VALUE = 2
BYTES_LIST = 1
INT64_LIST = 3
ITEM = 1

# Wire types: the ways in which fields are encoded.
WIRE_TYPE_BITS = 3
VARINT = 0
LENGTH_DELIMITED = 2
FIXED_SIZES = {1: 8, 5: 4}
"""Bytes of the wire types of fixed size."""
MOST_VARINT_BYTES = 10
"""Bytes of an integer of 64 bits."""


def parse_example(record: bytes) -> dict[str, Value]:
    """Parse a serialized `tf.train.Example`: its features that are bytes or integers.

    Raises `ValueError` for anything else than such a message.
    """
    values = {}
    for _, features in _fields(record, only=FEATURES):
        for _, entry in _fields(features, only=ENTRY):
            pair = dict(_fields(entry))
            values[pair[KEY].decode()] = _values(pair[VALUE])
    return values


def _values(feature: bytes) -> Value:
    for kind, values in _fields(feature):
        if kind == BYTES_LIST:
            return [value for _, value in _fields(values, only=ITEM)]
        if kind == INT64_LIST:
            return [
                number for _, value in _fields(values, only=ITEM) for number in _integers(value)
            ]
    return []


def _integers(value: bytes | int) -> Iterator[int]:
    """The integers of a field: a single one, or many of them packed into bytes."""
    if isinstance(value, int):
        yield value
        return
    offset = 0
    while offset < len(value):
        number, offset = _varint(value, offset)
        yield number


def _fields(message: Any, only: int | None = None) -> Iterator[tuple[int, Any]]:
    """The number and the content of each field, or of those with the number `only`.

    The content is an `int` for integers, and `bytes` for everything else.
    """
    if not isinstance(message, bytes):
        raise ValueError("a message was expected")
    offset = 0
    while offset < len(message):
        tag, offset = _varint(message, offset)
        number = tag >> WIRE_TYPE_BITS
        content, offset = _content(message, offset, tag & (2**WIRE_TYPE_BITS - 1))
        if only in (None, number):
            yield number, content


def _content(message: bytes, offset: int, wire_type: int) -> tuple[bytes | int, int]:
    """The content of the field at `offset`, and the offset of the next one."""
    if wire_type == VARINT:
        return _varint(message, offset)
    if wire_type == LENGTH_DELIMITED:
        size, offset = _varint(message, offset)
    elif wire_type in FIXED_SIZES:
        size = FIXED_SIZES[wire_type]
    else:
        raise ValueError(f"field of wire type {wire_type}")
    if offset + size > len(message):
        raise ValueError("message is cut off")
    return message[offset : offset + size], offset + size


def _varint(message: bytes, offset: int) -> tuple[int, int]:
    """The signed integer at `offset`, and the offset after it.

    Each byte has seven bits of the integer, the lowest first. The eighth bit says that more follow.
    """
    number = 0
    for shift in range(0, MOST_VARINT_BYTES * 7, 7):
        if offset >= len(message):
            raise ValueError("message is cut off")
        byte = message[offset]
        offset += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (number if number < 2**63 else number - 2**64), offset
    raise ValueError("integer of more than 64 bits")
