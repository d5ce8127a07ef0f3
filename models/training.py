"""What every model's training shares: seeds, checkpoints, export to ONNX, the card.

Needs torch and onnx (extra `train`). Nothing here is imported by `streamer`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import tomllib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Generator, Tensor, nn

OPSET = 18


def seeded(seed: int) -> Generator:
    """Seed torch, numpy and Python, and return a generator of its own for the simulator."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  other people's code draws from it
    torch.manual_seed(seed)
    return Generator().manual_seed(seed)


def write_checkpoint(path: Path, **parts: Any) -> None:
    """Write state dictionaries, tensors and numbers; a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    torch.save(parts, partial)
    os.replace(partial, path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `write_checkpoint` wrote. Tensors and numbers only: nothing in the file is executed."""
    parts: dict[str, Any] = torch.load(path, weights_only=True)
    return parts


def export(
    module: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    path: Path,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> None:
    """Write an ONNX file with a dynamic batch axis, weights inside, and check that it is well formed.

    example: a batch for the one input, or one for each of several.
    """
    examples = example if isinstance(example, tuple) else (example,)
    batch = torch.export.Dim("batch", min=1)
    module.eval()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which nothing here needs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's exporter calls what torch deprecates
        program = torch.onnx.export(
            module,
            examples,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple({0: batch} for _ in examples),
        )
    proto = program.model_proto
    for entry in (*proto.graph.node, proto):
        del entry.metadata_props[:]  # where the code lay on the machine that exported it
    for node in proto.graph.node:
        node.doc_string = ""
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString())


def largest_difference(module: nn.Module, path: Path, x: Tensor) -> float:
    """Largest absolute difference between torch and ONNX Runtime over all outputs for the inputs x."""
    with torch.no_grad():
        expected = [out.numpy() for out in module.eval()(x)]
    found = run_onnx(path, x.numpy())
    return max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True))


def run_onnx(path: Path, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """All outputs of a one-input model on one CPU thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs: list[NDArray[np.float32]] = session.run(None, {session.get_inputs()[0].name: x})
    return outputs


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_card(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def write_card(path: Path, card: Mapping[str, Any]) -> None:
    """Write a card as TOML: text, numbers, booleans, lists of them, and tables of tables."""
    path.write_text("\n".join(_toml(card, ())).strip() + "\n", encoding="utf-8")


def _toml(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    if path and (plain or not table):
        yield f"\n[{'.'.join(path)}]"
    yield from (f"{_key(key)} = {_value(value)}" for key, value in plain.items())
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _toml(value, (*path, _key(key)))


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    if isinstance(value, list | tuple):
        if any(isinstance(item, str) for item in value):
            return "[\n" + "".join(f"    {_value(item)},\n" for item in value) + "]"
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, int | float):
        return repr(value)
    raise TypeError(f"card: {value!r} has no form in TOML; use text, numbers, lists and tables")


@contextmanager
def progress(what: str, total: int) -> Iterator[Any]:
    """A progress bar on stderr: yields `advance(steps, note)`."""
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, note="")
        yield lambda steps=1, note="": bar.update(task, advance=steps, note=note)
