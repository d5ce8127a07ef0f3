"""Records that are the same, to the last bit of their arrays."""

from __future__ import annotations

from typing import Any


def assert_same(found: Any, sent: Any) -> None:
    """Equal records; arrays equal in type, shape and every bit."""
    assert type(found) is type(sent)
    for name in type(sent).__dataclass_fields__:
        ours, theirs = getattr(found, name), getattr(sent, name)
        if name in ("mask", "flatfield"):
            assert ours.keys() == theirs.keys()
            pairs = [(ours[channel], theirs[channel]) for channel in theirs]
        elif name == "image":
            pairs = [(ours, theirs)]
        else:
            assert ours == theirs, name
            continue
        for one, other in pairs:
            assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes()), name
