"""Frames that wait for the device: rows of host memory and, on CUDA, the same rows there."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from streamer.infer.driver import Uploads

__all__ = ["Ring"]


class Ring:
    """`rows` frames of `places` values each, of which a frame fills the first ones and the others are 0.

    frames: what the network is given, (rows, places): an array on the CPU, else a value of ONNX Runtime on the device.
    On CUDA a frame is on its way to the device when `put` returns, and there after `wait`.
    """

    def __init__(self, rows: int, places: int, dtype: np.dtype[Any], device: str) -> None:
        self.rows = rows
        self._uploads: Uploads | None = None
        if device == "cpu":
            self._host: NDArray[Any] = np.zeros((rows, places), dtype)
            self.frames: Any = self._host
            return
        self._uploads = Uploads()
        self._host = self._uploads.pinned(rows * places * dtype.itemsize).view(dtype).reshape(rows, places)
        self.frames = onnxruntime.OrtValue.ortvalue_from_shape_and_type([rows, places], dtype, device, 0)
        for row in range(rows):
            self._upload(row)
        self.wait()

    def put(self, row: int, image: NDArray[Any]) -> None:
        """Copy an image into a row. The image may be overwritten afterwards."""
        self._host[row, : image.size].reshape(image.shape)[...] = image
        self._upload(row)

    def wait(self) -> None:
        """Until every frame that was put is where the network reads it."""
        if self._uploads is not None:
            self._uploads.wait()

    def _upload(self, row: int) -> None:
        if self._uploads is not None:
            self._uploads.copy(self.frames.data_ptr() + row * self._host[row].nbytes, self._host[row])
