"""What a hop did, one JSON line per deed: readable after the hop was killed, and all that the checker believes.

Every line has `at` (monotonic seconds, the same clock in every process of a machine), `hop` (who) and `did` (what):

    sender      sending, sent     before and after the socket: message, kind, arming, series, number, images,
                                  is_damaged, is_counted (the format knows no series, only a running number)
                stopped           nothing more comes, and nothing was cut short
    link        connected, passed, reset, ended, cut    link, to, and for `passed` the message
    consumer    analysed          arming, series, number, says_number: the last one as the pixels say it
                closed            series, by: first heard of in its status
                killed            by SIGKILL
                account           series and all counts: one per account in its last report
                totals, wire      all counts of its last report
    relay       relayed           messages, and for each of its destinations: to, received, sent, dropped, unheard,
                                  waiting, repeated

A message is named by a digest of its parts, so that no hop needs to understand it.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class Log:
    """The log of one hop: a new file in a folder, written through line by line. Safe to call from several threads."""

    def __init__(self, folder: Path, hop: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"{hop.replace(' ', '-')}.jsonl").open("x", encoding="utf-8")
        self._lock = threading.Lock()
        self._hop = hop

    def write(self, did: str, **what: Any) -> None:
        """One deed. It is with the kernel when this returns: killing the process loses nothing of it."""
        with self._lock:
            self._file.write(json.dumps({"at": time.monotonic(), "hop": self._hop, "did": did, **what}) + "\n")
            self._file.flush()

    def close(self) -> None:
        with self._lock:
            self._file.close()


def read(folder: Path) -> list[Line]:
    """All lines of all hops in the order of time. A line that a killed hop did not finish is left out."""
    return sorted((line for file in sorted(folder.glob("*.jsonl")) for line in _lines(file)), key=lambda one: one["at"])


def digest(parts: Sequence[Any]) -> str:
    """What names a message."""
    sizes = b"".join(len(memoryview(part).cast("B")).to_bytes(8, "big") for part in parts)
    return hashlib.blake2b(sizes + b"".join(map(bytes, parts)), digest_size=12).hexdigest()


def _lines(file: Path) -> Iterator[Line]:
    for text in file.read_text(encoding="utf-8").splitlines(keepends=True):
        if text.endswith("\n"):
            yield json.loads(text)
