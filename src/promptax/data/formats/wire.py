"""`tf.train.Example` messages, from the wire format of protocol buffers."""

from collections.abc import Iterator
from typing import Any

Value = list[bytes] | list[int]


def parse_example(record: bytes) -> dict[str, Value]:
    """The features of a serialized `tf.train.Example`: bytes or integers; floats are left out.

    Raises `ValueError` for anything that is no such message.
    """
    features = {}
    for _, block in _fields(record, 1):
        for _, entry in _fields(block, 1):
            pair = dict(_fields(entry))
            features[pair[1].decode()] = _value(pair[2])
    return features


def _value(feature: bytes) -> Value:
    for kind, block in _fields(feature):
        if kind == 1:
            return [value for _, value in _fields(block, 1)]
        if kind == 3:
            return [number for _, value in _fields(block, 1) for number in _integers(value)]
    return []


def _integers(value: bytes | int) -> Iterator[int]:
    """One integer, or many of them packed."""
    if isinstance(value, int):
        yield value
        return
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield number


def _fields(message: Any, only: int | None = None) -> Iterator[tuple[int, Any]]:
    """Number and content of each field; integers come as `int`."""
    if not isinstance(message, bytes):
        raise ValueError("a message was expected")
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        content, at = _content(message, at, tag & 7)
        if only in (None, tag >> 3):
            yield tag >> 3, content


def _content(message: bytes, at: int, kind: int):
    if kind == 0:
        return _varint(message, at)
    if kind == 2:
        size, at = _varint(message, at)
    elif kind in (1, 5):
        size = 8 if kind == 1 else 4
    else:
        raise ValueError(f"field of kind {kind}")
    if at + size > len(message):
        raise ValueError("message is cut off")
    return message[at : at + size], at + size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("message is cut off")
        number |= (message[at] & 0x7F) << shift
        at += 1
        if message[at - 1] < 0x80:
            return (number if number < 2**63 else number - 2**64), at
    raise ValueError("integer of more than 64 bits")
