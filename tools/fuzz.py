"""What must hold whatever comes over the wire, tried on messages that nobody thought of.

    python tools/fuzz.py --seconds 3600                   every target, an equal share of the time each
    python tools/fuzz.py dectris2 cbor --seconds 600      these
    python tools/fuzz.py --replay runs/fuzz/FILE          what a finding does, message by message

Targets are the formats of `streamer.wire`, and the readers below them: cbor, compression, headers, messagepack.
tests/oracle.py says what must hold of each; here is added that no message takes more than MOST_SECONDS of processor
time or MOST_BYTES of memory.

Engines. "atheris" looks for inputs that reach code no other input reached (libFuzzer; the functions of streamer are
instrumented, but for compiled ones); it is taken where it is installed (`pip install 'streamer[fuzz]'`, Python 3.11).
"mutator" damages known messages blindly, and the same way for the same seed. Both start from tests/corpus, and damage
bytes, parts, the order of messages, and single values inside JSON, msgpack and CBOR.

An input is one or more messages (tests/inputs.py says how). One Format object reads BATCH inputs, then the good
messages of its format, which must come out as ever.

A finding is a file in --findings, named after its target; of findings with one cause one is kept. Hanging and dying are
findings, too. The exit code is 1 if there are any. --corpus keeps the inputs that atheris found worth keeping.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib.util
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import structlog

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from streamer import compression, config  # noqa: E402 - tests are found only now
from tests import oracle  # noqa: E402
from tests.inputs import Message, mutate, pack, unpack  # noqa: E402
from tests.oracle import Broken, Target  # noqa: E402

BATCH = 64
MAX_BYTES = 1 << 16
MOST_SECONDS = 2.0
MOST_BYTES = 20_000_000
MEASURED = 8
"""Of this many messages the memory of one is measured, because that takes longer than reading it."""

HANGS_S = 20
"""Seconds after which a message that has not been read is a finding, by the clock on the wall."""

COMPILED = {"streamer.compression", "streamer.reduce.azimuthal"}


class Fuzz:
    """Puts inputs to a target and writes down what should not be."""

    def __init__(self, target: Target, findings: Path) -> None:
        self.target = target
        self.findings = findings
        self.known: set[str] = set()
        self.readable: list[Message] = []
        self.batch: list[bytes] = []
        self.executions = 0

    def __call__(self, octets: bytes) -> None:
        self.batch.append(octets)
        self.executions += 1
        for parts in unpack(octets):
            self.guarded(lambda parts=parts: measured(self.target, parts, self.executions % MEASURED == 0), octets)
        if len(self.batch) >= BATCH:
            self.finish()

    def finish(self) -> None:
        """End a batch: whatever came in it, the good messages are read as ever."""
        self.guarded(self.target.end, b"".join(self.batch))
        self.batch.clear()
        self.target.renew()

    def refuses(self, parts: Message) -> bool:
        """Whether a message is refused, or a finding."""
        try:
            return self.target.check(parts).startswith("refused")
        except Exception:  # noqa: BLE001 - it was written down before
            return True

    def guarded(self, action: Callable[[], Any], reproducer: bytes) -> None:
        """Anything raised is a finding; it is written where its cause was not seen before."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not be
            cause = hashlib.sha1(signature(error).encode(), usedforsecurity=False).hexdigest()[:10]
            if cause not in self.known:
                self.known.add(cause)
                path = self.findings / f"{self.target.name}-{cause}"
                path.write_bytes(reproducer)
                print(f"FINDING {path}\n{told(error)}", flush=True)


def told(error: BaseException) -> str:
    """The traceback, for any terminal, whatever the message had in its texts."""
    text = "".join(traceback.format_exception(error))[-3000:]
    return text.encode("ascii", "backslashreplace").decode()


def signature(error: BaseException) -> str:
    """What findings of one cause have in common: the kind of error, its first words, and where it was raised."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    words = re.split(r"[^a-z ]", str(error))[0] if isinstance(error, Broken) else ""
    return f"{type(error).__name__} {at.name}:{at.lineno} {words}"


def measured(target: Target, parts: Message, with_memory: bool = True) -> str:
    """What the target says of one message. Raises Broken, also where that took too long or too much."""
    if with_memory:
        tracemalloc.start()
    began = time.thread_time()
    try:
        said = target.check(parts)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if time.thread_time() - began > MOST_SECONDS:
        raise Broken(f"took too long: {time.thread_time() - began:.1f} s")
    if peak > MOST_BYTES:
        raise Broken(f"took too much memory: {peak} bytes")
    return said


def run_mutator(fuzz: Fuzz, seeds: Sequence[bytes], seconds: float, seed: int) -> None:
    """Inputs until the time is over. The last one lies in a file, should this process not live to say more."""
    chance, last = random.Random(seed), fuzz.findings / f"{fuzz.target.name}-last"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        octets = mutate(chance.choice(seeds), chance.getrandbits(48), fuzz.readable)
        last.write_bytes(octets)
        fuzz(octets)
    fuzz.finish()
    last.unlink(missing_ok=True)
    print(f"stat::number_of_executed_units: {fuzz.executions}", flush=True)


def run_atheris(fuzz: Fuzz, seeds: Sequence[bytes], seconds: float, seed: int, corpus: Path) -> None:
    """The same, led by coverage. Does not return: libFuzzer ends the process."""
    import atheris

    for function in [one for one in gc.get_objects() if isinstance(one, FunctionType)]:
        if (function.__module__ or "").startswith("streamer.") and function.__module__ not in COMPILED:
            atheris.instrument_func(function)
    kept = corpus / fuzz.target.name
    kept.mkdir(parents=True, exist_ok=True)
    for octets in seeds:
        (kept / hashlib.sha1(octets, usedforsecurity=False).hexdigest()).write_bytes(octets)

    def mutator(octets: bytes, max_size: int, chosen: int) -> bytes:
        return mutate(octets, chosen, fuzz.readable, lambda part: atheris.Mutate(part, len(part) + 64))[:max_size]

    options = {
        "seed": seed,
        "max_total_time": round(seconds),
        "max_len": MAX_BYTES,
        "timeout": HANGS_S,
        "rss_limit_mb": 2048,
        "print_final_stats": 1,
        "artifact_prefix": fuzz.findings / f"{fuzz.target.name}-",
    }
    words = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup([sys.argv[0], *words, str(kept)], fuzz, custom_mutator=mutator)
    atheris.Fuzz()


def fuzz_here(name: str, given: argparse.Namespace) -> None:
    """One target in this process."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    compression.warm()
    target = oracle.target(name)
    inputs = [pack(messages) for messages in target.seeds]
    seeds = [octets for octets in inputs if len(octets) <= MAX_BYTES]
    fuzz = Fuzz(target, given.findings)
    for octets in seeds:
        fuzz(octets)
        fuzz.readable += [parts for parts in unpack(octets) if not fuzz.refuses(parts)]
    if given.engine == "atheris":
        run_atheris(fuzz, seeds, given.seconds, given.seed, given.corpus)
    run_mutator(fuzz, seeds, given.seconds, given.seed)


def fuzz_there(name: str, given: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """One target in a process of its own, and what came of it."""
    options = ("engine", "seed", "findings", "corpus")
    words = [word for option in options for word in (f"--{option}", str(getattr(given, option)))]
    command = [sys.executable, __file__, name, "--here", "--seconds", str(seconds), *words]
    before, began = written(given.findings, name), time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            octets = process.communicate(timeout=seconds + 6 * HANGS_S)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            octets = process.communicate()[0]
    took, log = time.monotonic() - began, octets.decode(errors="replace")
    (given.findings / f"{name}.log").write_text(log, encoding="utf-8")
    findings = sorted(path for path, _ in written(given.findings, name) - before)
    if process.returncode and not findings:
        findings = [f"died with code {process.returncode}: see {given.findings / name}.log"]
    executions = max([0, *map(int, re.findall(r"number_of_executed_units: (\d+)", log))])
    return {
        "target": name,
        "engine": given.engine,
        "executions": executions,
        "seconds": round(took, 1),
        "per_second": round(executions / took),
        "coverage": max(map(int, re.findall(r"cov: (\d+)", log)), default=None),
        "findings": findings,
    }


def written(folder: Path, name: str) -> set[tuple[str, int]]:
    """The findings there are of a target, and when each was written: what is found again is a finding again."""
    return {(str(path), path.stat().st_mtime_ns) for path in folder.glob(f"{name}-*")}


def replay(path: Path, target: Target) -> bool:
    """Show what every message of a finding does; whether all that must hold held."""
    steps = [(parts, lambda parts=parts: measured(target, parts)) for parts in unpack(path.read_bytes())]
    held = True
    for parts, step in [*steps, ((), lambda: target.end() or "the good messages are read as ever")]:
        print(f"{len(parts)} parts {[part[:60] for part in parts]}" if parts else "then")
        try:
            print(f"    {step()}")
        except Exception as error:  # noqa: BLE001 - this is what is to be seen
            held = False
            print(told(error))
    return held


def main() -> int:
    """The command line."""
    everything = [*config.names("wire"), *oracle.READERS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(everything)}; default all")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=("atheris", "mutator"), help="default atheris where it is installed")
    parser.add_argument("--corpus", type=Path, help="folder to keep inputs in, and to begin with those that are there")
    parser.add_argument("--findings", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--replay", type=Path, metavar="FILE", help="show what a finding does")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if unknown := {*given.targets} - {*everything}:
        parser.error(f"no target {min(unknown)!r}; there are {', '.join(everything)}")
    if given.replay:
        name = given.targets[0] if given.targets else given.replay.name.partition("-")[0]
        return 0 if replay(given.replay, oracle.target(name)) else 1
    given.engine = given.engine or ("atheris" if importlib.util.find_spec("atheris") else "mutator")
    given.findings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="streamer-fuzz-") as folder:
        given.corpus = given.corpus or Path(folder)
        targets = given.targets or everything
        if given.here:
            fuzz_here(targets[0], given)
            return 0
        reports = []
        for name in targets:
            reports.append(fuzz_there(name, given, given.seconds / len(targets)))
            print(json.dumps(reports[-1]) if given.json else in_words(reports[-1]), flush=True)
    return 1 if any(report["findings"] for report in reports) else 0


def in_words(report: dict[str, Any]) -> str:
    """One line for a terminal, and one for each finding."""
    coverage = "" if report["coverage"] is None else f", {report['coverage']} edges reached"
    line = "{target:<12} {engine}: {executions} inputs in {seconds} s ({per_second}/s)".format(**report)
    return "\n  ".join([f"{line}{coverage}, {len(report['findings'])} findings", *report["findings"]])


if __name__ == "__main__":
    sys.exit(main())
