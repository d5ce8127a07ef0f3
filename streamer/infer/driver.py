"""Copies to a CUDA device beside what it computes: a few calls of NVIDIA's driver, by ctypes.

ONNX Runtime copies what it is given when a network is asked, and the device waits. Frames are worth copying earlier, as
soon as they are decoded: from pinned memory, which the device reads by itself, and on a stream of their own. Neither
is to be had from ONNX Runtime's Python. Its own memory and work are in the device's primary context, as ours are, so
addresses mean the same to both.

Every call lets go of the interpreter lock and may come from any thread.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.records import BadModel

__all__ = ["Uploads"]

DEVICE = 0
"""As everywhere in this room: the first one that CUDA_VISIBLE_DEVICES shows."""

PORTABLE = 1
"""CU_MEMHOSTALLOC_PORTABLE: pinned for every context."""

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: does not wait for the default stream."""


class Uploads:
    """A stream of copies from pinned memory to the device. Raises BadModel with what the driver says."""

    def __init__(self) -> None:
        self._cuda = _driver()
        device = ctypes.c_int()
        self._context = ctypes.c_void_p()
        self._stream = ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(device), DEVICE)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._enter()
        self._call("cuStreamCreate", ctypes.byref(self._stream), NON_BLOCKING)

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """(nbytes,) zeros in memory that is never swapped out. Freed with the last view of it."""
        self._enter()
        address = ctypes.c_void_p()
        self._call("cuMemHostAlloc", ctypes.byref(address), nbytes, PORTABLE)
        memory = (ctypes.c_uint8 * nbytes).from_address(address.value or 0)
        weakref.finalize(memory, self._free, address).atexit = False
        array: NDArray[np.uint8] = np.ctypeslib.as_array(memory)
        array[:] = 0
        return array

    def copy(self, address: int, source: NDArray[Any]) -> None:
        """Copy a contiguous array out of pinned memory to an address on the device. It returns at once."""
        self._enter()
        self._call("cuMemcpyHtoDAsync_v2", address, source.ctypes.data, source.nbytes, self._stream)

    def wait(self) -> None:
        """Until everything that was to be copied is there."""
        self._enter()
        self._call("cuStreamSynchronize", self._stream)

    def _free(self, address: ctypes.c_void_p) -> None:
        self._enter()
        self._call("cuMemFreeHost", address)

    def _enter(self) -> None:
        """A thread that never called CUDA has no context."""
        self._call("cuCtxSetCurrent", self._context)

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._cuda, function)(*arguments)
        if code:
            raise BadModel(f"CUDA: {function} failed with code {code} (CUresult in cuda.h); look at nvidia-smi")


def _driver() -> Any:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise BadModel(f'CUDA: no NVIDIA driver on this machine ({error}); choose device = "cpu"') from error
    pointer, size, word = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint
    for name, arguments in {
        "cuInit": (word,),
        "cuDeviceGet": (pointer, ctypes.c_int),
        "cuDevicePrimaryCtxRetain": (pointer, ctypes.c_int),
        "cuCtxSetCurrent": (pointer,),
        "cuStreamCreate": (pointer, word),
        "cuStreamSynchronize": (pointer,),
        "cuMemHostAlloc": (pointer, size, word),
        "cuMemFreeHost": (pointer,),
        "cuMemcpyHtoDAsync_v2": (ctypes.c_uint64, pointer, size, pointer),
    }.items():
        getattr(cuda, name).argtypes = arguments
    return cuda
