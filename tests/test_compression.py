"""bslz4 and lz4 against implementations written by others, against damage, and with LZ4's C symbols hidden."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import lz4.block
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamer import compression
from streamer.compression import Scratch, compress, decompress
from streamer.records import BadFrame, BadInput

DTYPES = [np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64")]


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    compression.warm()


@pytest.fixture(params=["native", "portable"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Once with LZ4 called from compiled code, once as where its symbols are not exported."""
    if request.param == "portable":
        monkeypatch.setattr(compression, "LZ4_IS_EXPORTED", False)
    elif not compression.LZ4_IS_EXPORTED:
        pytest.skip("this platform's lz4 wheel does not export its C symbols")
    return str(request.param)


def bitshuffled(elements: NDArray[Any]) -> bytes:
    """Bit b of byte k of all elements side by side, as the definition says it. elements: (8·m,)."""
    octets = np.ascontiguousarray(elements).view(np.uint8).reshape(elements.size, elements.itemsize)
    bits = np.unpackbits(octets, axis=1, bitorder="little")
    return np.packbits(bits.T, axis=1, bitorder="little").tobytes()


def bslz4_by_definition(elements: NDArray[Any], block: int) -> bytes:
    """The whole framing, without anything of the package."""
    whole = elements.size // 8 * 8
    step = block // elements.itemsize
    pieces = [struct.pack(">QI", elements.nbytes, block)]
    for first in range(0, whole, step):
        packed = lz4.block.compress(bitshuffled(elements[first : min(first + step, whole)]), store_size=False)
        pieces += [struct.pack(">I", len(packed)), packed]
    return b"".join([*pieces, elements[whole:].tobytes()])


def decompressed(algorithm: str, data: bytes, like: NDArray[Any], **how: Any) -> NDArray[Any]:
    out = np.full(like.nbytes, 0xA5, np.uint8)
    decompress(algorithm, like.itemsize, data, out, **how)
    return out.view(like.dtype).reshape(like.shape)


def counts(size: int, dtype: np.dtype[Any], seed: int = 0) -> NDArray[Any]:
    """Photon counts with a few pixels without measurement."""
    elements = np.random.default_rng(seed).poisson(3.0, size).astype(dtype)
    elements[::97] = np.iinfo(dtype).max
    return elements


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 7, 8, 9, 64, 1000, 4096, 4099, 8192 * 3 + 5])
def test_bslz4_written_by_definition_is_read(way: str, dtype: np.dtype[Any], size: int) -> None:
    elements = counts(size, dtype)
    for block in (8 * dtype.itemsize, 8192, 1 << 20):
        assert np.array_equal(decompressed("bslz4", bslz4_by_definition(elements, block), elements), elements)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_hdf5_filter_and_this_room_read_each_other(way: str, dtype: np.dtype[Any], tmp_path: Path) -> None:
    for number, size in enumerate((5, 1000, 30_001)):
        elements = counts(size, dtype)
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            options = {"chunks": (size,), **hdf5plugin.Bitshuffle(cname="lz4")}
            theirs = file.create_dataset("theirs", data=elements, **options)
            assert np.array_equal(decompressed("bslz4", theirs.id.read_direct_chunk((0,))[1], elements), elements)
            ours = file.create_dataset("ours", (size,), dtype, **options)
            ours.id.write_direct_chunk((0,), compress("bslz4", dtype.itemsize, elements))
            assert np.array_equal(ours[:], elements)


def test_the_hdf5_lz4_filter_and_this_room_read_each_other(way: str, tmp_path: Path) -> None:
    noise = np.frombuffer(np.random.default_rng(0).bytes(5000), np.uint16)
    for number, elements in enumerate((counts(30_001, np.dtype(np.uint16)), noise)):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            options = {"chunks": elements.shape, **hdf5plugin.LZ4(nbytes=4096)}
            theirs = file.create_dataset("theirs", data=elements, **options)
            assert np.array_equal(decompressed("lz4", theirs.id.read_direct_chunk((0,))[1], elements), elements)
            ours = file.create_dataset("ours", elements.shape, elements.dtype, **options)
            ours.id.write_direct_chunk((0,), compress("lz4", 0, elements, block=4096))
            assert np.array_equal(ours[:], elements)


@given(
    octets=st.binary(max_size=600).map(lambda octets: octets * 3),
    algorithm=st.sampled_from(["bslz4", "lz4"]),
    elem_size=st.sampled_from([1, 2, 4, 8]),
    groups=st.integers(1, 40),
    is_exported=st.booleans(),
)
def test_what_was_compressed_is_decompressed(
    octets: bytes, algorithm: str, elem_size: int, groups: int, is_exported: bool
) -> None:
    array = np.frombuffer(octets[: len(octets) // 8 * 8], f"u{elem_size}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "LZ4_IS_EXPORTED", is_exported and compression.LZ4_IS_EXPORTED)
        data = compress(algorithm, elem_size, array, block=8 * elem_size * groups)
        assert np.array_equal(decompressed(algorithm, data, array), array)


def test_the_header_says_length_and_block_size(way: str) -> None:
    assert compress("bslz4", 2, np.zeros(5000, np.uint16))[:12] == struct.pack(">QI", 10_000, 8192)


def test_an_empty_array_survives(way: str) -> None:
    empty = np.empty(0, np.uint16)
    assert decompressed("bslz4", compress("bslz4", 2, empty), empty).size == 0


@pytest.mark.parametrize("algorithm", ["bslz4", "lz4"])
def test_every_truncation_is_refused_as_truncated(way: str, algorithm: str) -> None:
    elements = counts(1003, np.dtype(np.uint16))
    data = compress(algorithm, 2, elements, block=512)
    for cut in range(len(data)):
        with pytest.raises(BadFrame) as caught:
            decompressed(algorithm, data[:cut], elements)
        assert caught.value.reason == "truncated"


@pytest.mark.parametrize("algorithm", ["bslz4", "lz4"])
@given(seed=st.integers(0, 2**32 - 1))
def test_damage_is_refused_or_yields_an_image_and_stays_inside_the_buffer(algorithm: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    elements = counts(1003, np.dtype(np.uint16))
    data = np.frombuffer(bytearray(compress(algorithm, 2, elements, block=512)), np.uint8)
    for at in rng.integers(0, data.size, 3):
        data[at] ^= rng.integers(1, 256)
    fence = np.full(elements.nbytes + 2048, 0x5A, np.uint8)
    out = fence[1024:-1024]
    reason = ""
    try:
        decompress(algorithm, 2, data.tobytes(), out)
    except BadFrame as error:
        reason = error.reason
    assert reason in {"", "truncated", "size", "compression"}
    assert (fence[:1024] == 0x5A).all()
    assert (fence[-1024:] == 0x5A).all()


def test_a_declared_length_other_than_the_buffers_is_refused(way: str) -> None:
    elements = counts(1000, np.dtype(np.uint16))
    data = compress("bslz4", 2, elements)
    for declared in (0, 1998, 2002, 2**40, 2**64 - 1):
        with pytest.raises(BadFrame, match=f"announce {declared} bytes, the image has 2000") as caught:
            decompressed("bslz4", struct.pack(">Q", declared) + data[8:], elements)
        assert caught.value.reason == "size"


@pytest.mark.parametrize("block", [0, 1, 15, 2**31, 2**32 - 16])
def test_a_block_size_that_cannot_be_is_refused(way: str, block: int) -> None:
    elements = counts(1000, np.dtype(np.uint16))
    data = compress("bslz4", 2, elements)
    with pytest.raises(BadFrame, match="block size") as caught:
        decompressed("bslz4", data[:8] + struct.pack(">I", block) + data[12:], elements)
    assert caught.value.reason == "size"


def test_bytes_left_over_are_refused(way: str) -> None:
    elements = counts(1000, np.dtype(np.uint16))
    with pytest.raises(BadFrame, match="left over") as caught:
        decompressed("bslz4", compress("bslz4", 2, elements) + b"\x00", elements)
    assert caught.value.reason == "size"


def test_a_block_that_is_not_lz4_is_refused(way: str) -> None:
    elements = counts(1000, np.dtype(np.uint16))
    data = compress("bslz4", 2, elements)
    with pytest.raises(BadFrame, match="damaged") as caught:
        decompressed("bslz4", data[:16] + b"\xff" * (len(data) - 16), elements)
    assert caught.value.reason == "compression"


@pytest.mark.parametrize(("algorithm", "elem_size"), [("zstd", 2), ("bslz4", 0), ("bslz4", 3), ("bslz4", -2), ("", 1)])
def test_an_unknown_algorithm_or_element_size_is_refused(algorithm: str, elem_size: int) -> None:
    with pytest.raises(BadFrame) as caught:
        decompress(algorithm, elem_size, bytes(100), np.empty(16, np.uint8))
    assert caught.value.reason == "compression"
    with pytest.raises(BadInput):
        compress(algorithm, elem_size, np.zeros(16, np.uint8))


def test_a_buffer_of_no_whole_elements_is_refused() -> None:
    with pytest.raises(BadFrame, match="whole elements"):
        decompress("bslz4", 4, bytes(100), np.empty(15, np.uint8))


@pytest.mark.parametrize("out", [np.empty(8, np.uint16), np.empty((4, 4), np.uint8), np.empty(32, np.uint8)[::2]])
def test_a_buffer_that_is_not_plain_bytes_is_the_callers_error(out: NDArray[Any]) -> None:
    with pytest.raises(BadInput, match="contiguous writable uint8"):
        decompress("bslz4", 2, bytes(100), out)


def test_a_buffer_that_is_not_aligned_is_the_callers_error() -> None:
    elements = counts(1000, np.dtype(np.uint16))
    with pytest.raises(BadInput, match="aligned"):
        decompress("bslz4", 2, compress("bslz4", 2, elements), np.empty(2001, np.uint8)[1:])


def test_an_array_is_compressed_wherever_and_however_it_lies(way: str) -> None:
    elements = counts(3000, np.dtype(np.uint16)).reshape(50, 60)
    unaligned = np.frombuffer(b"x" + elements.tobytes(), np.uint8)[1:].view(np.uint16).reshape(50, 60)
    for array in (elements, unaligned, elements.T.copy().T, np.repeat(elements, 2, axis=1)[:, ::2]):
        assert np.array_equal(decompressed("bslz4", compress("bslz4", 2, array), elements), elements)
    assert elements.flags.writeable


def test_data_without_header_are_read_only_where_the_caller_says_so(way: str) -> None:
    elements = counts(10_003, np.dtype(np.uint16))
    whole = compress("bslz4", 2, elements)
    single = lz4.block.compress(elements.tobytes(), store_size=False)
    for algorithm, data in (("bslz4", whole[12:]), ("bslz4", bytes(12) + whole[12:]), ("lz4", single)):
        with pytest.raises(BadFrame):
            decompressed(algorithm, data, elements)
        assert np.array_equal(decompressed(algorithm, data, elements, header_is_optional=True), elements)
    assert np.array_equal(decompressed("bslz4", whole, elements, header_is_optional=True), elements)


@pytest.mark.parametrize("algorithm", ["bslz4", "lz4"])
def test_data_without_header_and_cut_short_are_refused(way: str, algorithm: str) -> None:
    elements = counts(1003, np.dtype(np.uint16))
    data = compress("bslz4", 2, elements)[12:]
    for cut in (0, 3, 12, len(data) - 1):
        with pytest.raises(BadFrame):
            decompressed(algorithm, data[:cut], elements, header_is_optional=True)


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
def test_any_buffer_is_read_where_it_lies(way: str, buffer: Any) -> None:
    elements = counts(5000, np.dtype(np.uint16))
    assert np.array_equal(decompressed("bslz4", buffer(compress("bslz4", 2, elements)), elements), elements)


def test_a_processor_without_vector_instructions_reads_the_same(tmp_path: Path) -> None:
    """Compiled for the plainest processor there is, in a process and a cache of its own."""
    images = {f"uint{8 * size}": (np.arange(5001) ** 3).astype(f"u{size}") for size in (1, 2, 4, 8)}
    np.savez(tmp_path / "images.npz", **images)
    for name, image in images.items():
        (tmp_path / name).write_bytes(compress("bslz4", image.itemsize, image))
    script = """if True:
        import sys
        import numpy as np
        from pathlib import Path
        from streamer.compression import decompress
        folder = Path(sys.argv[1])
        for name, image in np.load(folder / "images.npz").items():
            out = np.empty(image.nbytes, np.uint8)
            decompress("bslz4", image.itemsize, (folder / name).read_bytes(), out)
            print(name, np.array_equal(out.view(image.dtype), image))
    """
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    said = subprocess.run(
        [sys.executable, "-c", script, tmp_path], env=os.environ | plain, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == [word for name in images for word in (name, "True")]


def test_scratch_gives_each_channel_its_own_buffer_and_every_message_the_same_ones() -> None:
    scratch = Scratch()
    first, second = scratch.empty((20, 30), np.uint16), scratch.empty((20, 30), np.uint16)
    assert not np.shares_memory(first, second)
    scratch.reset()
    assert np.shares_memory(scratch.empty((20, 30), np.uint16), first)
    assert np.shares_memory(scratch.empty((10, 10), np.float32), second)


def test_scratch_hands_out_aligned_contiguous_writable_arrays() -> None:
    scratch = Scratch()
    for shape, dtype in (((3, 5), np.uint16), ((7,), np.uint8), ((2, 2), np.float64)):
        array = scratch.empty(shape, dtype)
        assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.ctypes.data % 64 == 0


def test_scratch_grows_once_and_then_allocates_nothing() -> None:
    scratch = Scratch()
    for rows in (10, 1000, 500):
        scratch.reset()
        scratch.empty((rows, 1000), np.uint16)
    assert scratch.nbytes == 1000 * 1000 * 2
    tracemalloc.start()
    for _ in range(100):
        scratch.reset()
        scratch.empty((1000, 1000), np.uint16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_scratch_refuses_images_beyond_its_limit_and_stays_usable() -> None:
    scratch = Scratch(limit=1000)
    scratch.empty((600,), np.uint8)
    with pytest.raises(BadFrame, match="600 of 1000 bytes") as caught:
        scratch.empty((401,), np.uint8)
    assert caught.value.reason == "size"
    assert scratch.empty((400,), np.uint8).size == 400
    scratch.reset()
    with pytest.raises(BadFrame):
        scratch.empty((2**62, 2**62), np.uint8)


def test_one_monstrous_message_takes_no_lasting_memory() -> None:
    scratch = Scratch()
    for _ in range(14):
        scratch.empty((4000, 1000), np.uint64)
    scratch.reset()
    scratch.empty((4000, 1000), np.uint16)
    scratch.reset()
    assert scratch.nbytes < 10e6


def test_a_message_without_an_image_costs_no_buffer() -> None:
    scratch = Scratch()
    before = scratch.empty((1000, 1000), np.uint16)
    scratch.reset()
    scratch.reset()
    assert np.shares_memory(scratch.empty((1000, 1000), np.uint16), before)
