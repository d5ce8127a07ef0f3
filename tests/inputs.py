"""Inputs of a fuzzer: several messages in one string of bytes, and damage done to them.

Before each part go four bytes: its length, little-endian, and 2³¹ added where a new message begins. Any bytes at all
are messages in this way, so whatever a fuzzer makes of an input is one.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import cbor2
import msgpack

from tests import hostile

Message = Sequence[bytes]

MOST_PATHS = 2000
"""Values of one message among which the damaged one is chosen; some have a hundred thousand."""

_BEGINS = 1 << 31


def pack(messages: Sequence[Message]) -> bytes:
    """Messages as the bytes of one input."""
    pieces = []
    for parts in messages:
        for n, part in enumerate(parts):
            pieces += [(len(part) | (0 if n else _BEGINS)).to_bytes(4, "little"), part]
    return b"".join(pieces)


def unpack(octets: bytes) -> list[list[bytes]]:
    """The messages in any bytes at all: of a part that is too long there is what is there."""
    messages: list[list[bytes]] = [[]]
    at = 0
    while at + 4 <= len(octets):
        head = int.from_bytes(octets[at : at + 4], "little")
        if head & _BEGINS and messages[-1]:
            messages.append([])
        end = at + 4 + (head & ~_BEGINS)
        messages[-1].append(bytes(octets[at + 4 : end]))
        at = end
    return messages


def mutate(
    octets: bytes, seed: int, known: Sequence[Message] = (), bytewise: Callable[[bytes], bytes] | None = None
) -> bytes:
    """An input with some damage, the same for the same seed.

    known: messages that are read, to be damaged in place of those of the input now and then. bytewise: what the engine
    does to bytes.
    """
    chance = random.Random(seed)
    messages = [[*chance.choice(known)]] if known and chance.random() < 0.3 else unpack(octets)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        n = chance.randrange(len(messages))
        parts = messages[n]
        match chance.randrange(10) if parts else 9:
            case 0 | 1 if bytewise:
                k = chance.randrange(len(parts))
                parts[k] = bytewise(parts[k])
            case 0 | 1 | 2 | 3:
                messages[n] = next(hostile.mutations(seed, 1, [parts]))
            case 4 | 5 | 6 | 7:
                k = chance.randrange(len(parts))
                parts[k] = retold(chance, parts[k])
            case 8:
                k, m = chance.randrange(len(parts)), chance.randrange(len(parts))
                parts[k : k + chance.randrange(2)] = parts[m : m + chance.randrange(3)]
            case 9:
                m = chance.randrange(len(messages))
                messages[n : n + chance.randrange(2)] = [[*one] for one in messages[m : m + chance.randrange(3)]]
                messages += [[*chance.choice(known)]] if known else []
                messages = messages or [[]]
    return pack(messages)


_CODECS: Sequence[tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = (
    (json.loads, lambda value: json.dumps(value).encode()),
    (lambda part: msgpack.unpackb(part, strict_map_key=False), msgpack.packb),
    (cbor2.loads, cbor2.dumps),
)
_ODD = (
    *(None, True, False, "", "x", "\0", "é\ud800", [], {}, {"": None}, [[]], b"", b"\xff", -0.0, 0.5, 1e308, -1e400),
    *(0, 1, 2, 3, 16, 17, 255, 256, 65535, 10**4, 10**4 + 1, -1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1),
    *(float("nan"), "bslz4", "lz4", "none", "uint64", "float64", "<f4", ">i8", "bool", "string", "start", "end"),
)


def retold(chance: random.Random, part: bytes) -> bytes:
    """A part that is JSON, msgpack or CBOR with one value in it, or one entry, made another; any other as it is."""
    for loads, dumps in _CODECS:
        try:
            whole = loads(part)
            if not isinstance(whole, Mapping):
                return part
            paths = [*itertools.islice(_paths(whole), MOST_PATHS)]
            other = _at(whole, chance.choice(paths))
            return dumps(_rebuilt(whole, chance.choice(paths), lambda value, other=other: _odd(chance, value, other)))
        except (ValueError, TypeError, RecursionError, OverflowError, cbor2.CBORError):
            continue
    return part


def _children(value: Any) -> Sequence[tuple[Any, Any]]:
    """What is inside, each with the name or place by which it is found."""
    match value:
        case Mapping():
            return [*value.items()]
        case list() | tuple():
            return [*enumerate(value)]
        case cbor2.CBORTag():
            return [("value", value.value)]
    return ()


def _paths(value: Any) -> Iterator[tuple[Any, ...]]:
    yield ()
    for name, child in _children(value):
        yield from ((name, *path) for path in _paths(child))


def _at(value: Any, path: Sequence[Any]) -> Any:
    for name in path:
        value = dict(_children(value))[name]
    return value


def _rebuilt(value: Any, path: Sequence[Any], change: Callable[[Any], Any]) -> Any:
    """The value with that of its parts changed."""
    if not path:
        return change(value)
    inside = {name: _rebuilt(child, path[1:], change) if name == path[0] else child for name, child in _children(value)}
    if isinstance(value, cbor2.CBORTag):
        return cbor2.CBORTag(value.tag, inside["value"])
    return inside if isinstance(value, Mapping) else [*inside.values()]


def _odd(chance: random.Random, value: Any, other: Any) -> Any:
    """Something in place of a value. other: a value from elsewhere in the message."""
    inside = _children(value)
    match value:
        case cbor2.CBORTag() if chance.random() < 0.8:
            return cbor2.CBORTag(chance.choice((0, 40, 1040, 56500, 55799, chance.randint(60, 90))), value.value)
        case Mapping() if inside and chance.random() < 0.8:
            gone, name = chance.choice(inside)[0], chance.choice(inside)[0]
            return chance.choice(({k: v for k, v in inside if k != gone}, {**value, name: value[gone]}))
        case list() | tuple() if inside and chance.random() < 0.5:
            k = chance.randrange(len(value))
            return [*value[:k], *[value[k]] * chance.choice((0, 2)), *value[k + 1 :]]
        case int() if chance.random() < 0.5:
            return chance.choice((value + 1, value - 1, 2 * value, -value - 1))
    return chance.choice((other, chance.choice(_ODD), chance.choice(_ODD), chance.choice(_ODD)))
