"""`models`: the network by batch size and threads, ours against a plain ONNX Runtime session.

Ours checks every batch for what was not measured, and its threads do not spin; the peer is a session with the same
number of threads and else ONNX Runtime's defaults. Where a batch is larger than the card allows, ours makes several
calls of it. Figures are milliseconds per frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from streamer.infer import find_model, list_models, load_model
from tools.benches.measure import Report, cores, duel, rel_diff

BATCHES = (1, 2, 4, 8, 16, 32, 64)
CALLS = 8
"""Of a round."""
AGREEMENT = 1e-3
"""Relative: another batch size may add up in another order."""


def bench(report: Report, rounds: int, device: str) -> None:
    """Every model that is installed."""
    for folder in list_models():
        for threads in sorted({1, cores()}):
            for batch in BATCHES:
                _measure(report, folder.name, threads, batch, rounds, device)


def _measure(report: Report, name: str, threads: int, batch: int, rounds: int, device: str) -> None:
    model = load_model(name, device=device, max_batch=batch, threads=threads)  # type: ignore[arg-type]
    inputs = list(random_inputs(model.card, batch))
    session = _plain_session(name, threads, device)
    outputs = list(model.card.outputs)
    contest = duel(lambda i: model.run(inputs[i]), lambda i: session.run(outputs, inputs[i]), CALLS, rounds)
    mine, theirs = model.run(inputs[0]), dict(zip(outputs, session.run(outputs, inputs[0]), strict=True))
    difference = max(rel_diff(mine[output], theirs[output]) for output in outputs)
    if not difference <= AGREEMENT:
        raise SystemExit(
            f"models: {name} says something else in a plain session (relative difference {difference:.2g})"
        )
    figures = {key: value / batch if key.endswith("_ms") else value for key, value in contest.figures.items()}
    case = f"{name} batch {batch}, {threads} thread{'s' if threads > 1 else ''}, {device}"
    report.line("models", case, peer="onnxruntime session", **figures, rel_diff=difference)


def random_inputs(card: Any, batch: int) -> Iterator[dict[str, NDArray[Any]]]:
    random = np.random.default_rng(0)
    for _ in range(CALLS):
        yield {
            name: random.normal(size=(batch, *tensor.shape)).astype(tensor.dtype)
            for name, tensor in card.inputs.items()
        }


def _plain_session(name: str, threads: int, device: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    providers = ["CUDAExecutionProvider"] if device == "cuda" else []
    return onnxruntime.InferenceSession(
        find_model(name) / "model.onnx", options, providers=[*providers, "CPUExecutionProvider"]
    )
