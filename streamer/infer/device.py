"""Which device a model runs on: CUDA where it really works, else the CPU, and always with the reason.

"cuda" means the first CUDA device or BadConfig with what is missing; it never falls back. "auto" means CUDA if nothing
stands in its way. The driver is asked before ONNX Runtime is, because ONNX Runtime prints errors where there is none.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import Literal, get_args

import onnxruntime

from streamer.records import BadConfig

__all__ = ["Device", "choose_device", "cuda_obstacle", "runtime", "silence"]

Device = Literal["auto", "cuda", "cpu"]

ORT_FATAL, ORT_WARNING = 4, 2  # two of ONNX Runtime's log severities; WARNING is its default


def cuda_obstacle() -> str | None:
    """Why models cannot run on CUDA here and what to do; None if nothing stands in the way.

    Asks the installed packages, then the driver, then loads the CUDA libraries. Prints nothing.
    """
    return (
        _runtime_obstacle(_installed("onnxruntime", "onnxruntime-gpu"), onnxruntime.get_available_providers())
        or _driver_obstacle()
        or _library_obstacle()
    )


def choose_device(device: Device) -> tuple[Literal["cuda", "cpu"], str]:
    """The device that is meant, and why. Raises BadConfig if "cuda" is asked for and something is missing."""
    if device not in get_args(Device):
        raise BadConfig(f'device: found \'{device}\', expected "auto", "cuda" or "cpu"')
    if device == "cpu":
        return "cpu", "as asked"
    obstacle = cuda_obstacle()
    if obstacle is None:
        return "cuda", "as asked" if device == "cuda" else "a CUDA device is there"
    if device == "cuda":
        raise BadConfig(f'device "cuda": {obstacle}. Put that right, or choose device = "auto"')
    return "cpu", obstacle


def runtime() -> str:
    """What is installed, for errors."""
    return f"ONNX Runtime {onnxruntime.__version__}"


def _installed(*packages: str) -> list[str]:
    """Those of the packages that are installed."""
    found = []
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.version(package)
            found.append(package)
    return found


def _runtime_obstacle(installed: Iterable[str], providers: Iterable[str]) -> str | None:
    if {"onnxruntime", "onnxruntime-gpu"} <= set(installed):
        return (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; uninstall both, then "
            "install onnxruntime-gpu alone"
        )
    if "CUDAExecutionProvider" not in providers:
        return f"{runtime()} was built without CUDA; pip install 'streamer[cuda]' (Linux on x86-64 only)"
    return None


def _driver_obstacle() -> str | None:
    """What the driver says; code 100 is "no device", 3 "not initialised" (libcuda's CUresult)."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"no NVIDIA driver on this machine ({error})"
    count = ctypes.c_int(0)
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code or not count.value:
        return f"the NVIDIA driver shows no device (code {code}); look at nvidia-smi and CUDA_VISIBLE_DEVICES"
    return None


def _library_obstacle() -> str | None:
    """Load CUDA and cuDNN, from the wheels of the extra `cuda` or from the system. What fails, ONNX Runtime prints."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        onnxruntime.preload_dlls()
    failures = [line for line in said.getvalue().splitlines() if line.startswith("Failed to load")]
    if failures:
        return f"{'; '.join(failures)}; pip install 'streamer[cuda]'"
    try:
        ctypes.CDLL("libcudnn.so.9")
    except OSError as error:
        return f"cuDNN cannot be loaded ({error}); pip install 'streamer[cuda]'"
    return None


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep ONNX Runtime from printing about a device that "auto" can do without."""
    onnxruntime.set_default_logger_severity(ORT_FATAL)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(ORT_WARNING)
