"""Copies to the device, against a driver made of ordinary memory: what it is asked for, in which order."""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import numpy as np
import pytest

from streamer.infer import cuda_obstacle, driver
from streamer.infer.driver import Uploads
from streamer.records import BadModel


class Memory:
    """Answers as NVIDIA's driver does. `copies` are carried out when the stream is waited for."""

    def __init__(self, failing: str = "") -> None:
        self.calls: list[str] = []
        self.blocks: dict[int, Any] = {}
        self.copies: list[tuple[int, int, int]] = []
        self.failing = failing

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            getattr(self, f"_{name.removesuffix('_v2')}", lambda *_: None)(*arguments)
            return 2 if name == self.failing else 0

        if name.startswith("_"):
            raise AttributeError(name)
        return call

    def _cuMemHostAlloc(self, address: Any, nbytes: int, _flags: int) -> None:
        block = (ctypes.c_uint8 * nbytes)(*([7] * nbytes))
        address._obj.value = ctypes.addressof(block)
        self.blocks[ctypes.addressof(block)] = block

    def _cuMemFreeHost(self, address: Any) -> None:
        del self.blocks[address.value]

    def _cuMemcpyHtoDAsync(self, target: int, source: int, nbytes: int, _stream: Any) -> None:
        self.copies.append((target, source, nbytes))

    def _cuStreamSynchronize(self, _stream: Any) -> None:
        for copy in self.copies:
            ctypes.memmove(*copy)
        self.copies.clear()


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    made = Memory()
    monkeypatch.setattr(driver, "_driver", lambda: made)
    return made


def test_what_is_copied_is_there_after_waiting(memory: Memory) -> None:
    uploads = Uploads()
    rows = uploads.pinned(3 * 40).view(np.uint16).reshape(3, 20)
    device = np.zeros((3, 20), np.uint16)
    rows[:] = np.arange(60).reshape(3, 20)
    for row in (2, 0):
        uploads.copy(device.ctypes.data + row * rows[row].nbytes, rows[row])
    assert not device.any()
    uploads.wait()
    np.testing.assert_array_equal(device[[0, 2]], rows[[0, 2]])
    assert not device[1].any()


def test_pinned_memory_is_zero_and_freed_with_its_last_view(memory: Memory) -> None:
    rows = Uploads().pinned(64).view(np.uint32).reshape(2, 8)
    assert not rows.any()
    row = rows[1]
    del rows
    gc.collect()
    assert len(memory.blocks) == 1
    del row
    gc.collect()
    assert not memory.blocks


def test_every_call_is_made_in_the_device_s_context(memory: Memory) -> None:
    uploads = Uploads()
    source = uploads.pinned(8)
    memory.calls.clear()
    uploads.copy(source.ctypes.data, source)
    uploads.wait()
    assert memory.calls == ["cuCtxSetCurrent", "cuMemcpyHtoDAsync_v2", "cuCtxSetCurrent", "cuStreamSynchronize"]


@pytest.mark.parametrize("function", ["cuDevicePrimaryCtxRetain", "cuMemHostAlloc", "cuMemcpyHtoDAsync_v2"])
def test_what_the_driver_refuses_is_an_error_with_its_code(memory: Memory, function: str) -> None:
    memory.failing = function

    def copied() -> None:
        uploads = Uploads()
        uploads.copy(0, uploads.pinned(8))

    with pytest.raises(BadModel, match=f"{function} failed with code 2"):
        copied()


def test_without_a_driver_the_error_says_so() -> None:
    if cuda_obstacle() is None:
        pytest.skip("there is a CUDA device")
    with pytest.raises(BadModel, match=r'no NVIDIA driver .* choose device = "cpu"'):
        Uploads()
