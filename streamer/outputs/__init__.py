"""Outputs: one file, one place where results go. Each runs on its own thread behind its own bounded queue."""

from __future__ import annotations

import abc
from typing import Literal

from streamer.metrics import Metrics
from streamer.records import Alarm, Result, Status


class Output(abc.ABC):
    """One place where results go. Every call may raise OutputDown: it is retried with back-off, the stream goes on.

    when_full: "skip" drops the oldest result and counts it, "wait" holds the stream back. An older status gives way to
    a newer one; alarms are kept while results are not, thousands of them.
    is_record: alarms are written here before any other output hears of them.
    """

    name: str
    when_full: Literal["skip", "wait"] = "skip"
    is_record: bool = False

    def remembered(self) -> list[Alarm]:
        """Alarms that an earlier process left standing, as far as this output knows. Called before `open`."""
        return []

    def open(self, metrics: Metrics) -> None:
        """Bind sockets, open files. metrics: the process's registry."""

    @abc.abstractmethod
    def write(self, result: Result) -> None:
        """One result."""

    @abc.abstractmethod
    def alarm(self, alarm: Alarm) -> None:
        """An alarm began, changed or ended."""

    def status(self, status: Status) -> None:
        """How the stream is doing, once a second and at its end."""

    def refresh(self) -> None:
        """Time passed and nothing was heard: a view may show that what it shows is old."""

    def close(self) -> None:
        """Flush and release. Calling it twice is harmless."""
