"""Messages no detector should send: named ones, and endless ones made by damaging good ones.

corpus("dectris2")                  named cases, each with the reason it must be refused for (tests/corpus/dectris2.py)
good("dectris2")                    a whole series in small, to be damaged
mutations(seed, n, good(...))       n damaged messages, the same for the same seed
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

Parts = list[bytes]


class Case(NamedTuple):
    """One message, what is wrong with it, and the reason it must be counted under."""

    name: str
    parts: Parts
    reason: str


def corpus(name: str) -> list[Case]:
    """The named cases of one format."""
    cases: list[Case] = importlib.import_module(f"tests.corpus.{name}").damaged()
    return cases


def good(name: str) -> list[Parts]:
    """Undamaged messages of one format: a start, images, an end."""
    messages: list[Parts] = importlib.import_module(f"tests.corpus.{name}").good()
    return messages


def mutations(seed: int, n: int, messages: Sequence[Parts]) -> Iterator[Parts]:
    """n messages, each one of `messages` with one to three kinds of damage."""
    chance = random.Random(seed)
    for _ in range(n):
        parts = [bytearray(part) for part in chance.choice(messages)]
        for _ in range(chance.randint(1, 3)):
            chance.choice(_DAMAGES)(chance, chance.choice(parts))
        yield [bytes(part) for part in parts]


def _truncate(chance: random.Random, part: bytearray) -> None:
    del part[chance.randint(0, len(part)) :]


def _flip_bits(chance: random.Random, part: bytearray) -> None:
    for _ in range(chance.randint(1, 4)):
        if part:
            part[_early(chance, part)] ^= 1 << chance.randrange(8)


def _splice(chance: random.Random, part: bytearray) -> None:
    """Bytes from one place put into another, over or between what is there."""
    a, b, length = _early(chance, part), _early(chance, part), chance.randint(1, 40)
    part[b : b + chance.choice([0, length])] = part[a : a + length]


def _blow_up(chance: random.Random, part: bytearray) -> None:
    """A length, or what happens to stand there, becomes huge."""
    at = _early(chance, part)
    width = chance.choice([1, 2, 4, 8])
    part[at : at + width] = chance.choice([b"\xff" * width, b"\x7f" + b"\xff" * (width - 1), bytes(width)])


def _swap_type(chance: random.Random, part: bytearray) -> None:
    """An item of one CBOR type becomes one of another, with the same length."""
    if part:
        at = _early(chance, part)
        part[at] = (part[at] & 31) | chance.randrange(8) << 5


def _early(chance: random.Random, part: bytearray) -> int:
    """A position, more often near the beginning, where the structure is."""
    return int(len(part) * chance.random() ** 2)


_DAMAGES: list[Callable[[random.Random, bytearray], None]] = [_truncate, _flip_bits, _splice, _blow_up, _swap_type]
