"""What the commands print: answers on standard output, everything else on standard error."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from streamer.outputs import Output
from streamer.records import Account, Alarm, Quantity, Result, Status
from streamer.wire import results

# What is printed is somebody's data: nothing in it is markup, and whoever reads a pipe wants whole lines.
out = Console(highlight=False, markup=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

FIRST = 10  # results on a screen before it is full of them
EVERY_S = 1.0

OUTCOMES = ("analysed", "before_join", "missing", "malformed", "dropped", "late", "pending")


def log_to_stderr(*, as_json: bool = False, quiet: bool = False) -> None:
    """Where the log goes and how it reads: for people on a terminal, as JSON lines beside JSON answers."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info if as_json else structlog.processors.StackInfoRenderer(),
            structlog.processors.JSONRenderer() if as_json else _for_people(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING if quiet else logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _for_people() -> structlog.dev.ConsoleRenderer:
    plain = structlog.dev.plain_traceback  # a traceback with all local values drowns what it is about
    return structlog.dev.ConsoleRenderer(colors=err.is_terminal, exception_formatter=plain)


def print_json(record: Mapping[str, Any]) -> None:
    """One JSON line. NaN and infinity, which JSON does not know, become null."""
    sys.stdout.write(json.dumps(_finite(record), default=_plain) + "\n")
    sys.stdout.flush()


def complain(error: Exception) -> None:
    """What went wrong, one finding a line, in a form that can be searched for."""
    for line in str(error).splitlines():
        err.print(f"streamer: {line}", style="bold red" if err.is_terminal else None)


@contextmanager
def progress(total: int | None, verb: str, *, hidden: bool) -> Iterator[Callable[[], None]]:
    """A bar on standard error where the end is known, a count where it is not, nothing where nobody looks."""
    columns = [SpinnerColumn(), TextColumn(verb), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=err, transient=True, disable=hidden or not err.is_terminal) as bars:
        task = bars.add_task(verb, total=total)
        yield lambda: bars.advance(task)


def plain_result(result: Result) -> dict[str, Any]:
    """A result as plain values, arrays as lists."""
    return {
        "analysis": result.analysis,
        "series": str(result.series),
        "number": result.number,
        "channel": result.channel,
        "start_s": result.start_s,
        "quantities": {name: _plain_quantity(quantity) for name, quantity in result.quantities.items()},
    }


def line(result: Result) -> str:
    """A result's scalars in one line."""
    scalars = [f"{name} {_measured(one)}" for name, one in result.quantities.items() if np.ndim(one.value) == 0]
    return f"{result.analysis} {result.series} #{result.number}  " + "  ".join(scalars)


class Shown:
    """Prints results as lines: the first ones all, then one in EVERY_S, because nobody reads faster."""

    def __init__(self, *, all_of_them: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._all_of_them = all_of_them
        self._clock = clock
        self._count = 0
        self._next = -math.inf

    def print(self, result: Result) -> None:
        """The next result, if it is shown."""
        self._count += 1
        if self._count == FIRST + 1 and not self._all_of_them:
            err.print(f"… from here on one result in {EVERY_S:g} s is shown; --json and --limit show all")
            self._next = self._clock() + EVERY_S
        if self._all_of_them or self._count <= FIRST:
            out.print(line(result))
        elif self._clock() >= self._next:
            self._next = self._clock() + EVERY_S
            out.print(line(result))


def print_accounts(accounts: Sequence[Account]) -> None:
    """What became of every frame: the sum that must hold, a series at a time."""
    for account in accounts:
        joined = ", joined late" if account.joined_late else ""
        known = "announced" if account.is_announced else "seen, no total announced"
        out.print(f"series {account.series}, closed by {account.closed_by}{joined}")
        terms = [f"{getattr(account, name)} {name.replace('_', ' ')}" for name in OUTCOMES]
        out.print(f"  {account.announced} {known} = " + " + ".join(terms))


def print_alarms(alarms: Sequence[Mapping[str, Any]]) -> None:
    """Alarms, the oldest first, with the frame at which each began."""
    for alarm in alarms:
        began = "" if alarm["number"] is None else f" from frame {alarm['number']}"
        over = "" if alarm["ended_number"] is None else f" at frame {alarm['ended_number']}"
        end = "still active" if alarm["ended"] is None else f"over{over}"
        out.print(f"▲ {alarm['severity']:<8} {alarm['name']}{began}, {end}. {alarm['text']}")


def print_report(report: Mapping[str, Any]) -> None:
    """What `run` and `demo` end with. Every loss has its name in the first line."""
    lost = [
        f"{report[name]} {name.replace('_', ' ')}"
        for name in ("missing", "malformed", "dropped", "late", "unaccounted")
        if report.get(name)
    ]
    out.print(
        f"received {report['received']}, analysed {report['analysed']}, "
        + (f"LOST: {', '.join(lost)}" if lost else "nothing lost")
        + (f", {report['before_join']} came before it joined" if report.get("before_join") else "")
        + "".join(f", {name} {value:.1f} ms" for name, value in report["latency_ms"].items())
    )
    wire = report.get("wire")
    if wire and wire["malformed"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in wire["malformed"].items())
        out.print(f"malformed messages: {reasons}")
    print_alarms(report["alarms"])


class JsonLines(Output):
    """Prints everything a service says as JSON lines."""

    name = "json"

    def write(self, result: Result) -> None:
        print_json({"result": plain_result(result)})

    def alarm(self, alarm: Alarm) -> None:
        print_json({"alarm": results.plain_alarm(alarm)})

    def status(self, status: Status) -> None:
        account = None if status.series is None else results.plain_account(status.series)
        print_json(
            {
                "status": {
                    "state": status.state,
                    "is_ready": status.is_ready,
                    "wire": results.plain_account(status.wire),
                    "series": account,
                    "frames_per_second": round(status.frames_per_second, 2),
                    "latency_ms": dict(status.latency_ms),
                }
            }
        )


class Blind(Output):
    """Shows nothing."""

    name = "blind"

    def write(self, result: Result) -> None:
        """Nothing is shown."""

    def alarm(self, alarm: Alarm) -> None:
        """Nothing is shown."""


def _measured(quantity: Quantity) -> str:
    value = float(quantity.value)
    unit = "" if quantity.unit == "1" else f" {quantity.unit}"
    if quantity.sigma is None:
        return f"{value:.4g}{unit}"
    return f"{value:.4g} ± {float(quantity.sigma):.2g}{unit}"


def _plain_quantity(quantity: Quantity) -> dict[str, Any]:
    return {
        "value": _plain(quantity.value),
        "sigma": None if quantity.sigma is None else _plain(quantity.sigma),
        "unit": quantity.unit,
        "axes": {name: {"values": _plain(values), "unit": unit} for name, (values, unit) in quantity.axes.items()},
    }


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return str(value) if isinstance(value, Path) else value


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value
