"""Ours and every peer, measured in turn in one run on the same input, with the answers compared.

    python tools/bench.py reduce                one image → I(q) ± σ, on one core
    python tools/bench.py decode                one message → one image, on one core
    python tools/bench.py chain                 messages → I(q) ± σ → model → alarm decision, frames per second
    python tools/bench.py latency               frame received → decided and published, at 100 Hz
    python tools/bench.py models                the network, by batch and threads
    python tools/bench.py memory --frames 1000000
    python tools/bench.py --plot FOLDER         how cost grows with pixels, bins, workers and batch

The input is the simulated SAXS frame (3 counts per pixel on average, gaps, beamstop, fixed seed), eight different ones
in turn. A line is one peer: `ratio` says how many times as fast as the peer we are, `ratio_min` and `ratio_max` are the
slowest and the fastest round. With --json every line is an object, and nothing else is on standard output.

With --device cuda, `reduce` measures the same reduction as a graph on the GPU, alone and with the copy and the network,
and in `chain`, `latency` and `models` the network runs there (in `chain` and `latency` with the reduction).

Peers that streamer does not depend on (bitshuffle, dectris-compression, midas-integrate) are measured where they are
installed.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

SINGLE_CORE = ("reduce", "decode")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
BENCHES = ("reduce", "decode", "chain", "latency", "models", "memory")


def main() -> int:
    """The command line. Libraries are imported only after it is known on how many cores they run."""
    given = arguments()
    if given.bench in SINGLE_CORE and given.cores == 1 and given.device == "cpu":
        _stay_on_one_core()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import structlog

    from tools.benches.measure import Report

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    logging.getLogger("pyFAI").setLevel(logging.ERROR)
    run(given, Report(given.json))
    return 0


def run(given: argparse.Namespace, report: "Report") -> None:  # noqa: F821, UP037
    """Measure what was asked for."""
    report.machine()
    if given.device == "cuda" and (why := _no_cuda()):
        report.note(given.bench or "plot", f"no CUDA device: {why}")
        return
    if given.bench is not None:
        _run_one(given, report)
    if given.plot is not None:
        from tools.benches import growth

        growth.plot(report, given.plot, given.detector or ["1M", "4M"], given.rounds)


def _run_one(given: argparse.Namespace, report: "Report") -> None:  # noqa: F821, UP037
    detectors = given.detector or (["1M"] if given.bench == "latency" else ["1M", "4M"])
    match given.bench:
        case "reduce":
            from tools.benches import graph, reducing

            if given.device == "cuda":
                graph.bench(report, detectors, given.rounds)
            else:
                reducing.bench(report, detectors, given.rounds, given.peer or [])
        case "decode":
            from tools.benches import decoding

            decoding.bench(report, detectors, given.rounds)
        case "chain":
            from tools.benches import chain

            chain.bench(report, detectors, given.rounds, given.seconds or 5.0, given.workers, given.device)
        case "latency":
            from tools.benches import latency

            latency.bench(report, detectors, given.seconds or 20.0, given.workers, given.device)
        case "models":
            from tools.benches import models

            models.bench(report, given.rounds, given.device)
        case "memory":
            from tools.benches import memory

            memory.bench(report, given.frames)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("bench", nargs="?", choices=BENCHES)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument(
        "--detector", action="append", choices=("128k", "500k", "1M", "4M"), help="1M and 4M if not given"
    )
    parser.add_argument("--peer", action="append", help="for reduce: only peers with this in their name, e.g. csc")
    parser.add_argument("--rounds", type=int, default=5, help="ratios are given for the slowest and the fastest one")
    parser.add_argument("--seconds", type=float, help="of a run of chain (5) or latency (20)")
    parser.add_argument("--workers", type=int, default=2, help="threads that decode and reduce")
    parser.add_argument("--cores", type=int, default=1, help="for reduce and decode; 0 for all there are")
    parser.add_argument("--frames", type=int, default=1_000_000, help="of the memory bench")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="measure how cost grows, and draw it there")
    given = parser.parse_args(words)
    if given.bench is None and given.plot is None:
        parser.error(f"give one of {', '.join(BENCHES)}, or --plot FOLDER")
    if given.rounds < 1 or given.workers < 1 or given.frames < 1:
        parser.error("--rounds, --workers and --frames are 1 or more")
    return given


def _stay_on_one_core() -> None:
    """The last core of those allowed, and one thread in every library that would start more."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for name in THREADS:
        os.environ[name] = "1"


def _no_cuda() -> str:
    """Why there is no CUDA device; "" where there is one."""
    from streamer.infer import choose_device
    from streamer.records import BadConfig, BadModel

    try:
        choose_device("cuda")
    except (BadConfig, BadModel) as why:
        return str(why)
    return ""


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # whoever read the lines has seen enough
        sys.exit(0)
