"""Bytes become an image: how many, of what type, in which order, and never more than was allowed.

Every format ends here. Nothing is allocated before the payload is known to be able to fill the image, and the image is
always in memory of its own, in rows and columns, in the machine's byte order.

BadFrame reasons: "dtype", "shape" (a payload that does not fill its image), "size" (an image larger than allowed),
and those of `compression`.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from streamer import compression
from streamer.records import BadFrame, Buffer, SeriesKey

__all__ = ["Announced", "Packed", "Scratch", "dtype_named", "unpack", "usable"]


_DTYPES = {
    name: np.dtype(name)
    for name in (
        *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "float32", "float64", "bool"),
    )
}

_USABLE = frozenset(np.dtype(name) for name in ("uint8", "uint16", "uint32", "int32", "float32"))
_WIDENED = {
    np.dtype(name): np.dtype(wider)
    for name, wider in (("bool", "u1"), ("i1", "i4"), ("i2", "i4"), ("f2", "f4"), ("f8", "f4"))
}
_NARROWED = {np.dtype("u8"): np.dtype("u4"), np.dtype("i8"): np.dtype("i4")}


class Scratch(Protocol):
    """Where decoded images are put: one per worker, emptied before each message (see `compression.Scratch`)."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]: ...


class Packed(NamedTuple):
    """Compressed bytes. elem_size: bytes of one element (bslz4). header_is_optional: see `compression.decompress`."""

    algorithm: str
    elem_size: int
    octets: Buffer
    header_is_optional: bool = False


REMEMBERED_SERIES = 8
"""Series whose image size is kept: stragglers of a stopped series arrive after the next start, not after eight."""


class Announced:
    """How many pixels an image of each of the latest series may have. Safe to call from several threads.

    most: of a series that announced nothing.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._pixels: OrderedDict[SeriesKey, int] = OrderedDict()
        self._lock = threading.Lock()

    def remember(self, series: SeriesKey, pixels: int) -> None:
        """A series announced the size of its images."""
        with self._lock:
            self._pixels[series] = pixels
            self._pixels.move_to_end(series)
            while len(self._pixels) > REMEMBERED_SERIES:
                self._pixels.popitem(last=False)

    def limit(self, series: SeriesKey) -> int:
        """The most pixels one image of a series may have."""
        with self._lock:
            return self._pixels.get(series, self.most)


def dtype_named(name: Any, order: Literal["<", ">"] = "<") -> np.dtype[Any]:
    """The element type of that name ("uint16") in that byte order. Raises BadFrame."""
    found = _DTYPES.get(name) if isinstance(name, str) else None
    if found is None:
        shown = repr(name[:40]) if isinstance(name, str) else f"a {type(name).__name__}"
        raise BadFrame("dtype", f"elements of type {shown}, expected one of {', '.join(_DTYPES)}")
    return found.newbyteorder(order)


def unpack(
    octets: Buffer | Packed,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    *,
    max_pixels: int,
    scratch: Scratch | None = None,
    order: Literal["C", "F"] = "C",
) -> NDArray[Any]:
    """An image from its bytes.

    octets: contiguous.  shape: (rows, columns), or more dimensions; integers.  order: "F" where the elements are sent
    column by column.  max_pixels: the most elements it may have.  scratch: where it is put; None allocates.
    Returns the array of that shape in C order and native byte order. Raises BadFrame.
    """
    count = math.prod(shape)
    if count > max_pixels:
        raise BadFrame("size", f"an image of {' × '.join(map(str, shape))} pixels, expected at most {max_pixels}")
    if count <= 0:
        raise BadFrame("shape", f"an image of {' × '.join(map(str, shape))} pixels, expected at least one")
    length = count * dtype.itemsize
    _check_length(octets, length, dtype)
    empty: Callable[..., NDArray[Any]] = np.empty if scratch is None else scratch.empty
    out = empty((length,), np.uint8)
    if isinstance(octets, Packed):
        compression.decompress(
            octets.algorithm, octets.elem_size, octets.octets, out, header_is_optional=octets.header_is_optional
        )
    else:
        out[:] = np.frombuffer(octets, np.uint8)
    image = out.view(dtype)
    if not dtype.isnative:
        image = image.byteswap(inplace=True).view(dtype.newbyteorder("="))
    if order == "C":
        return image.reshape(shape)
    turned = empty(tuple(shape), image.dtype)
    turned[...] = image.reshape(shape[::-1]).T
    return turned


def usable(image: NDArray[Any]) -> NDArray[Any]:
    """The image in a type that analyses take: uint8, uint16, uint32, int32 or float32.

    Narrow integers and booleans are widened, floats of another size are rounded to float32 (seven digits), and 64-bit
    integers are narrowed if every pixel fits. Raises BadFrame ("dtype") where one does not.
    """
    if image.dtype in _USABLE:
        return image
    if image.dtype in _WIDENED:
        with np.errstate(over="ignore", invalid="ignore"):
            return image.astype(_WIDENED[image.dtype])
    narrow = _NARROWED.get(image.dtype)
    if narrow is None:
        raise BadFrame("dtype", f"an image of {image.dtype}; expected integers or floats")
    limits = np.iinfo(narrow)
    if image.size and (image.min() < limits.min or image.max() > limits.max):
        raise BadFrame("dtype", f"an image of {image.dtype} with pixels beyond {narrow}, which is the widest analysed")
    return image.astype(narrow)


def _check_length(octets: Buffer | Packed, length: int, dtype: np.dtype[Any]) -> None:
    """Refuse, before any memory is taken, a payload that cannot fill its image."""
    if not isinstance(octets, Packed):
        found = memoryview(octets).nbytes
        if found != length:
            raise BadFrame("shape", f"{found} bytes of pixels, the image's shape and type need {length}")
    elif octets.algorithm == "bslz4" and octets.elem_size != dtype.itemsize:
        raise BadFrame("compression", f"bslz4 of {octets.elem_size}-byte elements in an array of {dtype}")
    else:
        found = memoryview(octets.octets).nbytes
        if length > compression.LARGEST_RATIO * found:
            raise BadFrame("truncated", f"{found} compressed bytes cannot fill an image of {length} bytes")
