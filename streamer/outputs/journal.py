"""The journal: every alarm and the account of every series, append-only, on the disk before the call returns.

One JSON object per line (UTF-8). The first line says what the file is; every other line has `time` (UTC, ISO 8601,
when it was written) and `kind`:

    {"journal":"streamer.journal/1","time":"2026-11-21T10:42:07.113+00:00"}
    {"time":"…","kind":"alarm","alarm":{…}}      an alarm began, changed or ended; its fields as in `wire/results.py`
    {"time":"…","kind":"series","series":{…}}    a series was closed, or its account changed afterwards

A number JSON has no word for is written as the text "nan", "inf" or "-inf". Nothing written is changed later: after a
crash a torn last line is closed by the next record, and readers skip it. At `max_bytes` the file becomes `<path>.1`
(and .1 becomes .2, … up to `keep`); the new file begins with the alarms that are still open, so that `open_alarms`
needs only the newest one.

One process writes a journal; a second one is refused. All methods are called from one thread.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from streamer.metrics import Metrics
from streamer.outputs import Output
from streamer.records import Account, Alarm, BadConfig, BadFrame, OutputDown, Result, SeriesKey, Status
from streamer.wire.results import plain_account, plain_alarm, read_alarm

__all__ = ["Journal", "open_alarms"]

log = structlog.get_logger("streamer.output")

HEAD = b'{"journal":"streamer.journal/1"'  # how the first line of every journal begins


class Journal(Output):
    """Appends to the file at `path`; makes it, and the folder it is in, where they do not exist.

    max_bytes: size at which a new file is begun. keep: how many old ones stay.
    """

    name = "journal"
    is_record = True

    def __init__(self, path: Path, max_bytes: int = 16 * 2**20, keep: int = 8) -> None:
        problems = []
        if max_bytes < 4096:
            problems.append(f"journal: max_bytes is {max_bytes}, expected at least 4096")
        if keep < 1:
            problems.append(f"journal: keep is {keep}, expected at least 1, so that the file before a crash stays")
        try:
            _check(Path(path))
        except BadConfig as bad:
            problems.extend(bad.problems)
        except OSError as error:
            problems.append(f"journal: cannot read {path}: {error.strerror}; set another path in [publish.journal]")
        if problems:
            raise BadConfig(*problems)
        self.path = Path(path)
        self.max_bytes = max_bytes
        self.keep = keep
        self._clock: Callable[[], datetime] = lambda: datetime.now(UTC)
        self._file: _File | None = None
        self._carried = 0  # bytes the current file began with
        self._open: dict[str, Alarm] = {}
        self._accounts: dict[SeriesKey, Account] = {}

    def remembered(self) -> list[Alarm]:
        return open_alarms(self.path)

    def open(self, metrics: Metrics) -> None:
        """Take the file. Raises OutputDown (not permitted, held by another process), BadConfig (not a journal)."""
        self.close()
        with _translated(self.path):
            self._open = {alarm.id: alarm for alarm in open_alarms(self.path)}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = _File(self.path)
            try:
                if file.size < len(HEAD):
                    self._begin(file)
            except OSError:
                file.close()
                raise
            self._file = file

    def write(self, result: Result) -> None:
        """Nothing: what was decided is journalled, what was measured is not."""

    def alarm(self, alarm: Alarm) -> None:
        """Record an alarm."""
        self._open.pop(alarm.id, None)
        if alarm.is_active:
            self._open[alarm.id] = alarm
        self._record(self._alarm_line(alarm))

    def status(self, status: Status) -> None:
        """Record the series closed since the last status, and those whose account changed since."""
        for account in status.closed:
            if self._accounts.get(account.series) != account:
                self._record(self._line("series", plain_account(account)))
                self._accounts[account.series] = account
        recent = {account.series for account in status.closed}
        self._accounts = {series: account for series, account in self._accounts.items() if series in recent}

    def close(self) -> None:
        """Release the file. Everything is on the disk already."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def _record(self, line: bytes) -> None:
        if self._file is None:
            raise OutputDown(f"journal: {self.path} is closed; open it first")
        with _translated(self.path):
            # A file that open alarms alone nearly fill is let grow, or every record would begin another one.
            if self._file.size + len(line) > max(self.max_bytes, 2 * self._carried):
                self._file = self._next_file(self._file)
            self._file.append(line)

    def _next_file(self, old: _File) -> _File:
        """Write the next file complete, then move it into place: at no moment is an open alarm in neither file."""
        unfinished = self.path.with_name(f"{self.path.name}.new")
        unfinished.unlink(missing_ok=True)
        new = _File(unfinished)
        try:
            self._begin(new)
            files = [self.path, *(_numbered(self.path, age) for age in range(1, self.keep + 1))]
            for younger, older in reversed(list(pairwise(files))):
                if younger.exists():
                    younger.replace(older)
            unfinished.replace(self.path)
            _flush_folder(self.path.parent)
        except OSError:
            new.close()
            raise
        old.close()
        return new

    def _begin(self, file: _File) -> None:
        """The lines every file begins with: what it is, and the alarms that are open."""
        header = HEAD + b',"time":"' + self._now().encode() + b'"}\n'
        file.truncate()  # of a header torn by a crash, after which nothing was recorded
        file.append(header + b"".join(map(self._alarm_line, self._open.values())))
        self._carried = file.size

    def _alarm_line(self, alarm: Alarm) -> bytes:
        return self._line("alarm", plain_alarm(alarm))

    def _line(self, kind: str, content: Mapping[str, Any]) -> bytes:
        entry = {"time": self._now(), "kind": kind, kind: _writable(content)}
        text = json.dumps(entry, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        # What UTF-8 cannot say (a file name of another encoding) becomes the escape JSON has for it.
        return text.encode("utf-8", "backslashreplace") + b"\n"

    def _now(self) -> str:
        return self._clock().isoformat(timespec="milliseconds")


def open_alarms(path: Path) -> list[Alarm]:
    """The alarms that had not ended when the journal was last written, oldest first; [] where there is no journal.

    Lines that cannot be read (torn by a crash, damaged) are skipped and their number is logged.
    Raises BadConfig if the file is not a journal, OSError if it cannot be read.
    """
    path = Path(path)
    _check(path)
    alarms: dict[str, Alarm] = {}
    damaged = 0
    for line in _lines(path):
        try:
            alarm = _alarm_of(line)
        except (ValueError, RecursionError, BadFrame):
            damaged += 1
            continue
        if alarm is not None:
            alarms.pop(alarm.id, None)
            if alarm.is_active:
                alarms[alarm.id] = alarm
    if damaged:
        log.warning("journal: lines could not be read and were skipped", path=str(path), lines=damaged)
    return sorted(alarms.values(), key=lambda alarm: alarm.began)


class _File:
    """An append-only file of one process; what `append` wrote is on the disk when it returns. Methods raise OSError."""

    def __init__(self, path: Path) -> None:
        self._number = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._is_torn = self.size > 0 and os.pread(self._number, 1, self.size - 1) != b"\n"
        except OSError:
            self.close()
            raise

    @property
    def size(self) -> int:
        """Bytes."""
        return os.fstat(self._number).st_size

    def append(self, line: bytes) -> None:
        """Add a line, on a line of its own even if the one before was left torn by a full disk or a crash."""
        rest = b"\n" + line if self._is_torn else line
        self._is_torn = True
        while rest:
            rest = rest[os.write(self._number, rest) :]
        os.fsync(self._number)
        self._is_torn = False

    def truncate(self) -> None:
        """Begin anew."""
        os.ftruncate(self._number, 0)
        self._is_torn = False

    def close(self) -> None:
        """Give the file to whoever wants it."""
        os.close(self._number)


def _check(path: Path) -> None:
    """Raise BadConfig if there is something at `path` that is not a journal, OSError if it cannot be read."""
    try:
        with path.open("rb") as file:
            found = file.read(len(HEAD))
    except FileNotFoundError:
        return
    if found != HEAD[: len(found)]:
        raise BadConfig(
            f"journal: {path} begins with {found!r}, a journal with {HEAD!r}; "
            "set another path in [publish.journal] or move that file away"
        )


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of the newest file after its header; that is `<path>.1` if a crash came between moving two files."""
    newest = path if path.exists() else _numbered(path, 1)
    if not newest.exists():
        return
    with newest.open("rb") as file:
        file.readline()
        yield from file


def _alarm_of(line: bytes) -> Alarm | None:
    """The alarm in a line, None for a line about something else. Raises ValueError, RecursionError, BadFrame."""
    entry = json.loads(line)
    if not isinstance(entry, dict):
        raise ValueError("not an object")  # noqa: TRY004 - of the kinds json.loads raises
    return read_alarm(entry.get("alarm")) if entry.get("kind") == "alarm" else None


def _numbered(path: Path, age: int) -> Path:
    return path.with_name(f"{path.name}.{age}")


def _flush_folder(folder: Path) -> None:
    """Make renamed files survive a power failure."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _writable(value: Any) -> Any:
    """The value in the words of JSON."""
    if isinstance(value, np.generic):
        value = value.item()
    match value:
        case float() if not math.isfinite(value):
            return str(value)
        case Mapping():
            return {str(key): _writable(item) for key, item in value.items()}
        case list() | tuple():
            return [_writable(item) for item in value]
        case str() | int() | float() | None:
            return value
        case _:
            return str(value)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """OSError to OutputDown, with what to do."""
    try:
        yield
    except BlockingIOError as error:
        raise OutputDown(f"journal: another process writes {path}; stop it or set another path") from error
    except OSError as error:
        raise OutputDown(
            f"journal: cannot write {path}: {error.strerror}; make room or set another path in [publish.journal]"
        ) from error
