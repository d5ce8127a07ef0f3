"""Looks at this machine and says what would keep streamer from running well on it.

Every finding is one line: what was looked at, what was found, and what to do where that is not good. Nothing is
changed.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from streamer import compression, infer
from streamer.records import BadConfig, BadModel

PACKAGES = ("numpy", "numba", "pyzmq", "pyFAI", "h5py", "cbor2", "msgpack", "prometheus-client", "PyWavelets")
RUNTIMES = ("onnxruntime-gpu", "onnxruntime")
ROOM_WANTED = 2**30  # a day's journal, the kernels' cache and a short recording


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. state: "ok", "note" (works, could be better) or "bad" (will not work)."""

    what: str
    state: Literal["ok", "note", "bad"]
    text: str


def examine() -> Iterator[Finding]:
    """Everything worth knowing, one finding after the other."""
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield _cores()
    for package in PACKAGES:
        yield _package(package)
    yield _runtime()
    yield _device()
    yield _kernels()
    yield from _models()
    yield _disk()


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        return Finding("cores", "note", f"{cores}; two or more let decoding and receiving run beside each other")
    return Finding("cores", "ok", f"{cores} usable")


def _package(name: str) -> Finding:
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        return Finding(name, "bad", "not installed; install streamer again: pip install --force-reinstall streamer")


def _runtime() -> Finding:
    found = {}
    for name in RUNTIMES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    listed = ", ".join(f"{name} {number}" for name, number in found.items())
    if len(found) > 1:
        text = f"{listed}: they overwrite each other's files; uninstall both, then install onnxruntime-gpu alone"
        return Finding("ONNX Runtime", "bad", text)
    if not found:
        return Finding("ONNX Runtime", "bad", "not installed; pip install onnxruntime-gpu (or onnxruntime)")
    return Finding("ONNX Runtime", "ok", listed)


def _device() -> Finding:
    try:
        device, why = infer.choose_device("auto")
    except (BadConfig, BadModel) as wrong:
        return Finding("device", "bad", str(wrong))
    return Finding("device", "ok", f"{device} ({why})")


def _kernels() -> Finding:
    try:
        compression.warm()
    except OSError as error:
        return Finding("kernels", "bad", f"cannot be compiled or cached ({error}); set NUMBA_CACHE_DIR to a folder")
    return Finding("kernels", "ok", "compiled and cached")


def _models() -> Iterator[Finding]:
    for folder in infer.list_models():
        try:
            model = infer.load_model(str(folder), device="cpu", max_batch=1)
        except BadModel as wrong:
            yield Finding(f"model {folder.name}", "bad", str(wrong))
        else:
            yield Finding(f"model {folder.name}", "ok", f"{model.card.version}, {model.card.question}")


def _disk() -> Finding:
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if free < ROOM_WANTED:
        return Finding("disk", "note", f"{free / 2**30:.1f} GiB free in {folder}; journals and recordings need more")
    return Finding("disk", "ok", f"{free / 2**30:.0f} GiB free in {folder}")
