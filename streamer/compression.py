"""bslz4 and lz4 into a given buffer, without the interpreter lock.

Both algorithms frame their blocks as the HDF5 filters of the same name do (numbers big-endian):

    8 bytes   length of the decompressed data in bytes
    4 bytes   block size in bytes (of decompressed data; DECTRIS detectors use 8192)
    then per block: 4 bytes compressed length, and one LZ4 block

    bslz4   each block is bitshuffled before LZ4. The last block is short, and because bitshuffle works on eight
            elements at a time, up to seven elements are stored as they are behind it, without a length.
    lz4     a block whose compressed length equals its decompressed length is stored as it is.

Bitshuffle keeps bit b of byte k of all elements together: a block of 8·m elements becomes the rows (k, b) of m bytes,
in which bit i of byte g belongs to element 8·g + i. It is undone where the block lies in the first-level cache, 32
groups at a time, in vector instructions (`_unshuffle_vectors_code`): by the one that multiplies matrices of 8 × 8 bits
where there is one, else by three exchanges of bits between rows, the 8 × 8 bit transpose of Warren, Hacker's Delight,
section 7-3. What numba makes of plain loops over the rows takes twice as long.

LZ4 itself is the C library inside the `lz4` wheel, called from compiled code through its exported symbols. Where a
platform does not export them, each block takes the way through Python: the same bytes, slower.

Every length is compared with the bytes that are there and with the room that is left before it is used.

BadFrame reasons: "truncated" (the data end before a block does), "size" (a length that contradicts the image or
leaves bytes over), "compression" (unknown algorithm or element size, or a damaged LZ4 block).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, TypeVar, cast

import llvmlite.binding
import lz4.block
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
from numpy.typing import NDArray

from streamer.records import BadFrame, BadInput, Buffer

__all__ = ["DEFAULT_BLOCK", "Scratch", "compress", "decompress", "warm"]

Bytes = NDArray[np.uint8]
Planes = tuple[int, ...]
"""The bytes of an element, (0, 1) for uint16; () without bitshuffle. A tuple, because its length is part of its type:
compiled loops over it are unrolled and the loops around them become vector instructions, ten times as fast."""

DEFAULT_BLOCK = 8192
"""Bytes per block: what DECTRIS detectors and the HDF5 bitshuffle filter use. Two such blocks fit a first-level cache
of 32 kB; a stream without a header has no other way to say its block size."""

CACHE_LINE, VECTOR, LANE = 64, 32, 16
"""Bytes in a cache line; in a vector, and so the groups of eight elements that are unshuffled together; in the parts of
a vector within which processors put bytes side by side."""

LARGEST_BLOCK = 0x7E000000
"""LZ4_MAX_INPUT_SIZE of lz4.h: larger blocks cannot be expressed in its C interface."""

LARGEST_RATIO = 255
"""LZ4 spends at least one byte on 255 bytes of output, so data cannot grow more than this."""

_HEADER = struct.Struct(">QI")
_ELEMENTS: dict[int, type[np.unsignedinteger[Any]]] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def decompress(algorithm: str, elem_size: int, data: Buffer, out: Bytes, *, header_is_optional: bool = False) -> None:
    """Decompress `data` into `out`, whose length is the truth: the data must announce and fill exactly that.

    algorithm: "bslz4" or "lz4".  elem_size: 1, 2, 4 or 8 bytes (bslz4 only).  out: (n,) uint8, contiguous, writable;
    on an error its content is undefined.
    header_is_optional: data that do not begin with the length of `out` are taken to have a header of zeros or none at
        all: bslz4 in blocks of DEFAULT_BLOCK, lz4 as one single block. (Some senders of the older stream leave it out.)
    Raises BadFrame, BadInput if `out` is not contiguous bytes.
    """
    if out.dtype != np.uint8 or out.ndim != 1 or not out.flags.c_contiguous or not out.flags.writeable:
        raise BadInput(
            f"decompress: out is {out.dtype} of shape {out.shape}; give contiguous writable uint8 of shape (n,)"
        )
    unit = _unit(algorithm, elem_size)
    if out.nbytes % (unit // 8 or 1):
        raise BadFrame("size", f"{algorithm}: {out.nbytes} bytes do not hold whole elements of {elem_size} bytes")
    source = np.frombuffer(memoryview(data).toreadonly(), np.uint8)
    start, block = _header(source, out.nbytes, header_is_optional)
    if start == 0 and algorithm == "lz4":
        out[:] = np.frombuffer(_portable_block(source, out.nbytes), np.uint8)
        return
    if not 0 < block <= LARGEST_BLOCK or block % unit:
        raise BadFrame(
            "size", f"{algorithm}: block size {block} bytes, expected a multiple of {unit} up to {LARGEST_BLOCK}"
        )
    if out.nbytes > LARGEST_RATIO * source.size:
        raise BadFrame("truncated", f"{algorithm}: {source.size} bytes cannot hold {out.nbytes} bytes of image")
    elements = out.view(_ELEMENTS[elem_size] if algorithm == "bslz4" else np.uint8)
    if not elements.flags.aligned:
        raise BadInput(f"decompress: out does not begin at a multiple of {elem_size} bytes; give an aligned buffer")
    planes = tuple(range(elem_size)) if algorithm == "bslz4" else ()
    walk = _native_decompress if LZ4_IS_EXPORTED else _portable_decompress
    _check(algorithm, walk(source, start, min(block, max(out.nbytes, unit)), elements, planes))


def compress(algorithm: str, elem_size: int, array: NDArray[Any], block: int = DEFAULT_BLOCK) -> bytes:
    """The bytes of `array` in the framing of `algorithm`, so that `decompress` gives them back.

    algorithm: "bslz4" or "lz4".  elem_size: 1, 2, 4 or 8 bytes (bslz4 only).  array: any shape; read in C order.
    block: bytes per block, a multiple of 8 · elem_size for bslz4.
    Raises BadInput for an algorithm, element size or block size that does not exist.
    """
    try:
        unit = _unit(algorithm, elem_size)
    except BadFrame as error:
        raise BadInput(str(error)) from error
    if not 0 < block <= LARGEST_BLOCK or block % unit:
        raise BadInput(f"compress: block size {block} bytes; give a multiple of {unit} up to {LARGEST_BLOCK}")
    octets = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if octets.nbytes % (unit // 8 or 1):
        raise BadInput(f"compress: {octets.nbytes} bytes do not hold whole elements of {elem_size} bytes")
    elements = octets.view(_ELEMENTS[elem_size] if algorithm == "bslz4" else np.uint8)
    elements = elements if elements.flags.aligned else elements.copy()
    elements.flags.writeable = False  # one compiled kernel for writable and read-only arrays
    planes = tuple(range(elem_size)) if algorithm == "bslz4" else ()
    header = _HEADER.pack(octets.nbytes, block)
    if not LZ4_IS_EXPORTED:
        return header + _portable_compress(block, elements, planes)
    target = np.empty(_bound(octets.nbytes, block), np.uint8)
    written = _native_compress(block, elements, planes, target)
    return header + target[:written].tobytes()


def warm() -> None:
    """Compile the kernels or load them from disk, so that the first frame is as fast as the last."""
    for elem_size, dtype in _ELEMENTS.items():
        elements = np.arange(70, dtype=dtype)
        for algorithm in ("bslz4", "lz4"):
            decompress(
                algorithm, elem_size, compress(algorithm, elem_size, elements), np.empty(elements.nbytes, np.uint8)
            )


SMALL = 1 << 20
"""Bytes that are not worth giving back."""


class Scratch:
    """Buffers for decoded images, used again for every message: one Scratch per worker, not shared between threads.

    The n-th `empty` after a `reset` hands out the n-th buffer, so the channels of one message get buffers of their
    own. A buffer is made, and its pages touched, when it is first needed, and again when images of another size come;
    while they stay the same a frame costs no allocation and no page fault. What one message asked for beyond the needs
    of the next is given back, so that a single monstrous message takes no lasting memory. What was handed out is valid
    until the next `reset`.

    limit: bytes in all buffers together.
    """

    _ALIGNMENT = 64  # bytes: one cache line, the widest vector register

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit = limit
        self._buffers: list[Bytes] = []
        self._used = 0

    @property
    def nbytes(self) -> int:
        """What the buffers hold in memory."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def reset(self) -> None:
        """All buffers are free again; those that the last image message did not use are gone. Call it before each."""
        if self._used:
            del self._buffers[self._used :]
        self._used = 0

    def empty(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """An uninitialised C-contiguous array in the next free buffer. Raises BadFrame "size" beyond the limit."""
        dtype = np.dtype(dtype)
        length = dtype.itemsize
        for extent in shape:
            length *= int(extent)
        buffer = self._buffer(length)
        self._used += 1
        array: NDArray[Any] = buffer[:length].view(dtype).reshape(shape)
        return array

    def _buffer(self, length: int) -> Bytes:
        """The next free buffer, at least `length` bytes long."""
        is_new = self._used == len(self._buffers)
        if not is_new and length <= self._buffers[self._used].nbytes <= 2 * length + SMALL:
            return self._buffers[self._used]
        held = self.nbytes - (0 if is_new else self._buffers[self._used].nbytes)
        if held + length > self.limit:
            raise BadFrame("size", f"an image of {length} bytes does not fit: {held} of {self.limit} bytes are in use")
        if is_new:
            self._buffers.append(np.empty(0, np.uint8))
        self._buffers[self._used] = np.empty(0, np.uint8)  # the old one goes before the new one comes
        room = np.empty(length + self._ALIGNMENT, np.uint8)
        first = -room.ctypes.data % self._ALIGNMENT
        buffer = room[first : first + length]
        buffer.fill(0)
        self._buffers[self._used] = buffer
        return buffer


def _unit(algorithm: str, elem_size: int) -> int:
    """The bytes a block is a multiple of: eight elements under bitshuffle, one byte without."""
    if algorithm == "lz4":
        return 1
    if algorithm != "bslz4":
        raise BadFrame("compression", f"compression {algorithm[:20]!r} is not known, expected 'bslz4' or 'lz4'")
    if elem_size not in _ELEMENTS:
        raise BadFrame("compression", f"bslz4: elements of {elem_size} bytes, expected one of {list(_ELEMENTS)}")
    return 8 * elem_size


def _header(source: Bytes, expected: int, is_optional: bool) -> tuple[int, int]:
    """Where the first block begins, and the block size in bytes."""
    is_whole = source.size >= _HEADER.size
    declared, block = _HEADER.unpack(source[: _HEADER.size].tobytes()) if is_whole else (None, DEFAULT_BLOCK)
    if declared == expected:
        return _HEADER.size, block
    if is_optional:
        return (_HEADER.size, block or DEFAULT_BLOCK) if declared == 0 else (0, DEFAULT_BLOCK)
    if declared is None:
        raise BadFrame("truncated", f"compressed data of {source.size} bytes, the header alone has {_HEADER.size}")
    raise BadFrame("size", f"compressed data announce {declared} bytes, the image has {expected}")


# How a walk over the blocks ended.
_DONE, _TRUNCATED, _DAMAGED, _LEFT_OVER = range(4)
_ENDINGS = {
    _TRUNCATED: ("truncated", "the data end inside a block"),
    _DAMAGED: ("compression", "a block is damaged"),
    _LEFT_OVER: ("size", "bytes are left over after the last block"),
}


def _check(algorithm: str, ending: int) -> None:
    if ending != _DONE:
        reason, text = _ENDINGS[ending]
        raise BadFrame(reason, f"{algorithm}: {text}")


F = TypeVar("F", bound=Callable[..., Any])


def _compiled(function: F) -> F:
    """Compiled on first use, kept on disk, and run without the interpreter lock."""
    return cast(F, numba.njit(function, nogil=True, cache=True))


def _export_lz4() -> bool:
    """Make LZ4's C functions visible to compiled code; False where the wheel hides them."""
    try:
        llvmlite.binding.load_library_permanently(lz4.block._block.__file__)
    except RuntimeError:
        return False
    symbols = ("LZ4_decompress_safe", "LZ4_compress_default")
    return all(llvmlite.binding.address_of_symbol(symbol) for symbol in symbols)


LZ4_IS_EXPORTED = _export_lz4()
_lz4_signature = types.int32(types.intp, types.intp, types.int32, types.int32)
_lz4_decompress: Any = types.ExternalFunction("LZ4_decompress_safe", _lz4_signature)
_lz4_compress: Any = types.ExternalFunction("LZ4_compress_default", _lz4_signature)


@_compiled
def _exchange(upper: Bytes, lower: Bytes, shift: np.uint8, pattern: np.uint8) -> None:
    """Swap the bits `pattern << shift` of one row with the bits `pattern` of another."""
    for g in range(upper.size):
        differ = np.uint8((np.uint8(upper[g] >> shift) ^ lower[g]) & pattern)
        lower[g] ^= differ
        upper[g] ^= np.uint8(differ << shift)


@_compiled
def _transpose_bits(rows: Bytes) -> None:
    """Bit i of row b becomes bit b of row i, for every column: its own inverse.  rows: (8, m)."""
    for b in (0, 2, 4, 6):
        _exchange(rows[b], rows[b + 1], np.uint8(1), np.uint8(0x55))
    for b in (0, 1, 4, 5):
        _exchange(rows[b], rows[b + 2], np.uint8(2), np.uint8(0x33))
    for b in (0, 1, 2, 3):
        _exchange(rows[b], rows[b + 4], np.uint8(4), np.uint8(0x0F))


def _unshuffle_vectors_code(typing_context: Any, block: Any, elements: Any, groups: Any, first: Any) -> Any:
    """Undo bitshuffle for the VECTOR groups of eight elements that begin with group `first` of a block of `groups`.

    A row of these groups is a vector. The rows of a byte are put side by side, so that the eight bytes of a group lie
    together; where the processor can (GFNI), the 8 × 8 bits in them are transposed then by one instruction, elsewhere
    bits were exchanged between the rows before. Then the bytes of every element are put side by side in the same way.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = (
            builder.bitcast(make_array(kind)(context, builder, array).data, ir.IntType(8).as_pointer())  # type: ignore[no-untyped-call]
            for kind, array in zip(signature.args[:2], arguments[:2], strict=True)
        )
        groups, first = arguments[2:]
        planes, size, octets = signature.args[1].dtype.bitwidth // 8, first.type, ir.VectorType(ir.IntType(8), VECTOR)
        features = context.codegen().magic_tuple()[2]
        has_gfni = "+gfni" in features and "+avx2" in features

        def row(plane: int, bit: int) -> Any:
            at = builder.add(first, builder.mul(groups, size(8 * plane + bit)))
            return builder.load(builder.bitcast(builder.gep(source, [at]), octets.as_pointer()), align=1)

        def exchange(rows: list[Any], distance: int, pattern: int) -> None:
            """Swap the bits `pattern << distance` of a row with the bits `pattern` of the one `distance` below."""
            shift, mask = octets([distance] * VECTOR), octets([pattern] * VECTOR)
            for upper in (b for b in range(8) if not b & distance):
                lower = upper + distance
                differ = builder.and_(builder.xor(builder.lshr(rows[upper], shift), rows[lower]), mask)
                rows[lower] = builder.xor(rows[lower], differ)
                rows[upper] = builder.xor(rows[upper], builder.shl(differ, shift))

        def side_by_side(one: Any, other: Any, width: int) -> list[Any]:
            """Numbers of `width` bytes of both in turn: the first half of every LANE, and the second."""
            kind, count, lane = ir.VectorType(ir.IntType(8 * width), VECTOR // width), VECTOR // width, LANE // width
            one, other = builder.bitcast(one, kind), builder.bitcast(other, kind)
            both = []
            for half in (0, lane // 2):
                places = [
                    side + at + half + i
                    for at in range(0, count, lane)
                    for i in range(lane // 2)
                    for side in (0, count)
                ]
                mask = ir.Constant(ir.VectorType(ir.IntType(32), count), places)
                both.append(builder.bitcast(builder.shuffle_vector(one, other, mask), octets))
            return both

        def joined(columns: list[list[Any]]) -> list[Any]:
            """Columns of bytes, each a list of vectors, as one of numbers that have a byte of each."""
            width = 1
            while len(columns) > 1:
                pairs = zip(columns[::2], columns[1::2], strict=True)
                columns = [
                    [both for pair in zip(*two, strict=True) for both in side_by_side(*pair, width)] for two in pairs
                ]
                width *= 2
            return columns[0]

        def transposed(plane: int) -> list[Any]:
            rows = [row(plane, bit) for bit in range(8)]
            if not has_gfni:
                for distance, pattern in ((1, 0x55), (2, 0x33), (4, 0x0F)):
                    exchange(rows, distance, pattern)
                return joined([[one] for one in rows])
            kind = ir.FunctionType(octets, [octets, octets, ir.IntType(8)])
            name = f"llvm.x86.vgf2p8affineqb.{8 * VECTOR}"
            multiply = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
            unit = octets([1 << i for i in range(8)] * (VECTOR // 8))
            # The instruction counts the rows of a matrix from the last.
            matrices = joined([[one] for one in reversed(rows)])
            return [builder.call(multiply, [unit, matrix, ir.IntType(8)(0)]) for matrix in matrices]

        for n, vector in enumerate(joined([transposed(plane) for plane in range(planes)])):
            for at in range(0, VECTOR, LANE):
                mask = ir.Constant(ir.VectorType(ir.IntType(32), LANE), list(range(at, at + LANE)))
                part = builder.shuffle_vector(vector, vector, mask)
                place = builder.add(builder.mul(builder.add(first, size(at)), size(8 * planes)), size(LANE * n))
                place = builder.bitcast(builder.gep(target, [place]), part.type.as_pointer())
                builder.store(part, place, align=1)
        return context.get_dummy_value()

    return types.void(block, elements, types.uintp, types.uintp), generate


_unshuffle_vectors: Any = intrinsic(_unshuffle_vectors_code)


@_compiled
def _unshuffle(block: Bytes, elements: NDArray[Any], planes: Planes) -> None:
    """Undo bitshuffle.  block: (8·m·itemsize,) bytes; elements: (8·m,) unsigned."""
    cast_to = elements.dtype.type
    groups = elements.size // 8
    in_vectors = groups // VECTOR * VECTOR
    for g in range(0, in_vectors, VECTOR):
        _unshuffle_vectors(block, elements, np.uintp(groups), np.uintp(g))
    rows = block.reshape(len(planes), 8, groups)
    for g in range(in_vectors, groups):
        for i in range(8):
            element = cast_to(0)
            for k in range(len(planes)):
                for b in range(8):
                    element |= cast_to(cast_to((rows[k, b, g] >> np.uint8(i)) & np.uint8(1)) << cast_to(8 * k + b))
            elements[8 * g + i] = element


@_compiled
def _shuffle(elements: NDArray[Any], block: Bytes, planes: Planes) -> None:
    """Bitshuffle `elements` into `block`: the inverse of `_unshuffle`."""
    cast_to = elements.dtype.type
    rows = block.reshape(len(planes), 8, elements.size // 8)
    for g in range(rows.shape[2]):
        for i in range(8):
            for k in range(len(planes)):
                rows[k, i, g] = np.uint8((elements[8 * g + i] >> cast_to(8 * k)) & cast_to(0xFF))
    for k in range(len(planes)):
        _transpose_bits(rows[k])


def _expect_code(typing_context: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of array[index], to be written, and do not wait. The index may lie behind the end."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = make_array(signature.args[0])(context, builder, arguments[0]).data  # type: ignore[no-untyped-call]
        address = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, flag, flag, flag])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", (address.type,), kind)
        builder.call(prefetch, [address, flag(1), flag(2), flag(1)])
        return context.get_dummy_value()

    return types.void(array, index), generate


_expect: Any = intrinsic(_expect_code)


@_compiled
def _native_decompress(source: Bytes, at: int, block: int, elements: NDArray[Any], planes: Planes) -> int:
    """Walk over the blocks of `source` from byte `at` and fill `elements`; how it ended."""
    out = elements.view(np.uint8)
    size = elements.itemsize
    unit = 8 * size if len(planes) else 1
    workspace = np.empty(block if len(planes) else 0, np.uint8)
    done = 0
    while done < out.size:
        length = min(block, out.size - done) // unit * unit
        if length == 0:  # fewer than eight elements: stored as they are
            rest = out.size - done
            if source.size - at < rest:
                return _TRUNCATED
            out[done:] = source[at : at + rest]
            at += rest
            break
        if source.size - at < 4:
            return _TRUNCATED
        packed = int(source[at]) << 24 | int(source[at + 1]) << 16 | int(source[at + 2]) << 8 | int(source[at + 3])
        at += 4
        if packed > source.size - at:
            return _TRUNCATED
        if packed > LARGEST_BLOCK:
            return _DAMAGED
        # Where the next block goes is fetched meanwhile: the buffer has left the caches since the last image.
        for line in range(done + length, done + 2 * length, CACHE_LINE):
            _expect(out, np.uintp(line))
        target = workspace[:length] if len(planes) else out[done : done + length]
        if packed == length and not len(planes):
            target[:] = source[at : at + packed]
        elif _lz4_decompress(source.ctypes.data + at, target.ctypes.data, np.int32(packed), np.int32(length)) != length:
            return _DAMAGED
        if len(planes):
            _unshuffle(target, elements[done // size : (done + length) // size], planes)
        at += packed
        done += length
    return _DONE if at == source.size else _LEFT_OVER


@_compiled
def _native_compress(block: int, elements: NDArray[Any], planes: Planes, target: Bytes) -> int:
    """Write the blocks of `elements` to `target`, which has `_bound` bytes; how many were written."""
    octets = elements.view(np.uint8)
    size = elements.itemsize
    unit = 8 * size if len(planes) else 1
    workspace = np.empty(min(block, octets.size), np.uint8)
    at = 0
    done = 0
    while done < octets.size:
        length = min(block, octets.size - done) // unit * unit
        if length == 0:
            rest = octets.size - done
            target[at : at + rest] = octets[done:]
            at += rest
            break
        plain = workspace[:length]
        if len(planes):
            _shuffle(elements[done // size : (done + length) // size], plain, planes)
        else:
            plain[:] = octets[done : done + length]
        room = min(target.size - at - 4, LARGEST_BLOCK)
        packed = int(_lz4_compress(plain.ctypes.data, target.ctypes.data + at + 4, np.int32(length), np.int32(room)))
        if packed >= length and not len(planes):
            packed = length
            target[at + 4 : at + 4 + length] = plain
        for k in range(4):
            target[at + k] = np.uint8((packed >> (24 - 8 * k)) & 0xFF)
        at += 4 + packed
        done += length
    return at


def _bound(length: int, block: int) -> int:
    """The most bytes the blocks of `length` bytes can need (LZ4_compressBound of lz4.h, per block)."""
    blocks = -(-length // block) + 1
    return length + length // 255 + blocks * (4 + 16 + 8)


def _portable_decompress(source: Bytes, at: int, block: int, elements: NDArray[Any], planes: Planes) -> int:
    """What `_native_decompress` does, with LZ4 called through Python."""
    out = elements.view(np.uint8)
    unit = 8 * elements.itemsize if planes else 1
    done = 0
    while length := min(block, out.size - done) // unit * unit:
        packed = int.from_bytes(source[at : at + 4].tobytes(), "big")
        at += 4
        if source.size < at + packed:
            return _TRUNCATED
        piece = source[at : at + packed]
        if planes or packed != length:
            try:
                piece = np.frombuffer(bytearray(_portable_block(piece, length)), np.uint8)
            except BadFrame:
                return _DAMAGED
        if planes:
            _unshuffle(piece, elements[done // elements.itemsize : (done + length) // elements.itemsize], planes)
        else:
            out[done : done + length] = piece
        at += packed
        done += length
    rest = out.size - done
    if source.size < at + rest:
        return _TRUNCATED
    out[done:] = source[at : at + rest]
    return _DONE if at + rest == source.size else _LEFT_OVER


def _portable_compress(block: int, elements: NDArray[Any], planes: Planes) -> bytes:
    """What `_native_compress` does, with LZ4 called through Python."""
    octets = elements.view(np.uint8)
    unit = 8 * elements.itemsize if planes else 1
    pieces = []
    done = 0
    while length := min(block, octets.size - done) // unit * unit:
        plain = octets[done : done + length]
        if planes:
            plain = np.empty(length, np.uint8)
            _shuffle(elements[done // elements.itemsize : (done + length) // elements.itemsize], plain, planes)
        packed = lz4.block.compress(plain, store_size=False)
        if len(packed) >= length and not planes:
            packed = plain.tobytes()
        pieces += [len(packed).to_bytes(4, "big"), packed]
        done += length
    return b"".join([*pieces, octets[done:].tobytes()])


def _portable_block(source: Bytes, length: int) -> bytes:
    """One LZ4 block that must decompress to exactly `length` bytes. Raises BadFrame."""
    if length > LARGEST_RATIO * source.size:
        raise BadFrame("truncated", f"lz4: {source.size} bytes cannot hold {length} bytes of image")
    try:
        plain: bytes = lz4.block.decompress(source, uncompressed_size=length)
    except lz4.block.LZ4BlockError as error:
        raise BadFrame("compression", f"lz4: a block is damaged ({error})") from error
    if len(plain) != length:
        raise BadFrame("compression", f"lz4: a block of {len(plain)} bytes, expected {length}")
    return plain
